"""The two text encoders of Stable Diffusion: CLIP's (Hugging Face names) and OpenCLIP's (its own names).

Both are causal pre-norm transformers over 77 ids (Radford et al., arXiv:2103.00020). State-dict keys are the
checkpoint's keys after the part's prefix, for example ``cond_stage_model.transformer.text_model.`` or
``conditioner.embedders.1.model.``; every size is read from tensor shapes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loraloom.models.layers import (
    Embedding,
    LayerNorm,
    Linear,
    ProjectionRows,
    TensorModule,
    attention,
    gelu,
    quick_gelu,
    recomputing,
)
from loraloom.models.shapes import ShapeTree

__all__ = ["ClipTextEncoder", "EncoderSizes", "OpenClipTextEncoder", "TextEncoder"]

HEAD_SIZE = 64
"""Every CLIP text encoder has heads of 64 channels; a toy narrower than that has one head."""

Shapes = Mapping[str, tuple[int, ...]]
Inserted = Sequence[tuple[int, int, Tensor]]
"""Row, place, and vectors (n, C) that take the places of n ids."""


@dataclass(frozen=True)
class EncoderSizes:
    """Sizes of a text encoder."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    hidden: int
    projection: int | None = None

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return max(1, self.width // HEAD_SIZE)


def _layer_count(tree: ShapeTree) -> int:
    return 1 + max(number for number, _ in tree.numbered())


def _table(rows: int, width: int) -> Embedding:
    """An embedding without values yet: on the meta device, drawing random ones imports torch's compiler (seconds)."""
    return Embedding(rows, width, _weight=torch.empty(rows, width))


def _with_inserted(vectors: Tensor, inserted: Inserted) -> Tensor:
    if not inserted:
        return vectors
    vectors = vectors.clone()
    for row, place, values in inserted:
        vectors[row, place : place + len(values)] = values.to(vectors)
    return vectors


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Causal attention: (B, 77, C) each -> (B, 77, C)."""

    def split(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)

    mixed = attention(split(query), split(key), split(value), causal=True)
    return mixed.transpose(1, 2).flatten(2)


class TextEncoder(nn.Module, ABC):
    """What both encoders share: which layers run, and in which precision."""

    sizes: EncoderSizes
    gradient_checkpointing: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: nothing, norms and activations, whole layers."""

    @abstractmethod
    def embed(self, ids: Tensor, dtype: torch.dtype, inserted: Inserted = ()) -> Tensor:
        """Ids (N, 77) to vectors (N, 77, C), positions added; ``inserted`` vectors stand in for those of ids."""

    @abstractmethod
    def layer_list(self) -> nn.ModuleList:
        """The transformer's layers, first to last."""

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """The layer norm after the last layer, of states (B, tokens, width)."""

    def forward(
        self,
        ids: Tensor,
        *,
        skip: int = 1,
        normalize: bool = True,
        pooled: bool = False,
        dtype: torch.dtype,
        inserted: Inserted = (),
    ) -> tuple[Tensor, Tensor | None]:
        """Encode ids (N, 77), computing in ``dtype``.

        ``skip`` counts layers from the end: 1 is the last layer's output, 2 the one before it, at most the number
        of layers. Layers above it are not computed, unless ``pooled`` asks for the projected vector of each text's
        end (N, D), which needs all of them. ``normalize`` applies the final layer norm to the hidden state.
        ``inserted`` are vectors of textual inversion, each with the text and the place that it begins at.
        """
        layers = self.layer_list()
        if not 1 <= skip <= len(layers):
            raise ValueError(f"skip must be 1 to {len(layers)}, not {skip}")
        wanted = len(layers) - skip
        x = self.embed(ids, dtype, inserted)
        chosen = x
        for index, layer in enumerate(layers):
            x = self._run(layer, x)
            if index == wanted:
                chosen = x
                if not pooled:
                    break
        hidden = self.final_norm(chosen) if normalize else chosen
        return hidden, self.project(self.final_norm(x), ids) if pooled else None

    def _run(self, layer: nn.Module, x: Tensor) -> Tensor:
        if self.gradient_checkpointing == "full" and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(layer, x, use_reentrant=False))
        with recomputing() if self.gradient_checkpointing == "selective" else nullcontext():
            return cast(Tensor, layer(x))

    def project(self, normalized: Tensor, ids: Tensor) -> Tensor:
        """The vector (B, width) at each text's end (the highest id's first place), projected if the encoder does so."""
        return normalized[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]


# ------------------------------------------------------------------------------------------------ CLIP


class _ClipAttention(TensorModule):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.k_proj = Linear(sizes.width, sizes.width)
        self.v_proj = Linear(sizes.width, sizes.width)
        self.q_proj = Linear(sizes.width, sizes.width)
        self.out_proj = Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(_attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))


class _ClipMlp(TensorModule):
    def __init__(self, sizes: EncoderSizes, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.fc1 = Linear(sizes.width, sizes.hidden)
        self.fc2 = Linear(sizes.hidden, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class _ClipLayer(TensorModule):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.self_attn = _ClipAttention(sizes)
        self.layer_norm1 = LayerNorm(sizes.width)
        self.mlp = _ClipMlp(sizes, quick_gelu)
        self.layer_norm2 = LayerNorm(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _ClipEmbeddings(TensorModule):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.token_embedding = _table(sizes.vocabulary, sizes.width)
        self.position_embedding = _table(sizes.positions, sizes.width)

    def forward(self, ids: Tensor, dtype: torch.dtype, inserted: Inserted = ()) -> Tensor:
        positions = self.position_embedding.weight[: ids.shape[1]].to(dtype)
        return _with_inserted(self.token_embedding(ids, dtype), inserted) + positions


class _ClipLayers(nn.Module):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_ClipLayer(sizes) for _ in range(sizes.layers))


class ClipTextEncoder(TextEncoder):
    """OpenAI's CLIP text model (ViT-L/14 in SD 1 and SDXL), named as in Hugging Face's ``text_model``."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embeddings = _ClipEmbeddings(sizes)
        self.encoder = _ClipLayers(sizes)
        self.final_layer_norm = LayerNorm(sizes.width)

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> ClipTextEncoder:
        """The module that fits tensors of these names and shapes; CheckpointError when they do not make one."""
        tree = ShapeTree(shapes, path="text_model")
        vocabulary, width = tree.shape("embeddings.token_embedding.weight", axes=2)
        return cls(
            EncoderSizes(
                vocabulary=vocabulary,
                width=width,
                positions=tree.shape("embeddings.position_embedding.weight", axes=2)[0],
                layers=_layer_count(tree["encoder.layers"]),
                hidden=tree.shape("encoder.layers.0.mlp.fc1.weight", axes=2)[0],
            )
        )

    def embed(self, ids: Tensor, dtype: torch.dtype, inserted: Inserted = ()) -> Tensor:
        return self.embeddings(ids, dtype, inserted)

    def layer_list(self) -> nn.ModuleList:
        return self.encoder.layers

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.final_layer_norm(hidden)


# ------------------------------------------------------------------------------------------------ OpenCLIP


class _OpenClipAttention(TensorModule):
    """Attention whose query, key and value weights lie in one tensor; ``q``, ``k``, ``v`` are layers over its rows."""

    in_proj_weight: Tensor
    in_proj_bias: Tensor | None

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * sizes.width, sizes.width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * sizes.width))
        self.q, self.k, self.v = (ProjectionRows(self, index) for index in range(3))
        self.out_proj = Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(_attend(self.q(x), self.k(x), self.v(x), self.heads))


class _OpenClipMlp(TensorModule):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.c_fc = Linear(sizes.width, sizes.hidden)
        self.c_proj = Linear(sizes.hidden, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(gelu(self.c_fc(x)))


class _OpenClipLayer(TensorModule):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(sizes.width)
        self.attn = _OpenClipAttention(sizes)
        self.ln_2 = LayerNorm(sizes.width)
        self.mlp = _OpenClipMlp(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _OpenClipLayers(nn.Module):
    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_OpenClipLayer(sizes) for _ in range(sizes.layers))


class OpenClipTextEncoder(TextEncoder):
    """OpenCLIP's text model (ViT-H/14 in SD 2, ViT-bigG/14 in SDXL), with its ``text_projection`` where present."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.token_embedding = _table(sizes.vocabulary, sizes.width)
        self.positional_embedding = nn.Parameter(torch.empty(sizes.positions, sizes.width))
        self.transformer = _OpenClipLayers(sizes)
        self.ln_final = LayerNorm(sizes.width)
        projection = None if sizes.projection is None else nn.Parameter(torch.empty(sizes.width, sizes.projection))
        self.text_projection = projection

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> OpenClipTextEncoder:
        """The module that fits tensors of these names and shapes; CheckpointError when they do not make one."""
        tree = ShapeTree(shapes, path="model")
        vocabulary, width = tree.shape("token_embedding.weight", axes=2)
        return cls(
            EncoderSizes(
                vocabulary=vocabulary,
                width=width,
                positions=tree.shape("positional_embedding", axes=2)[0],
                layers=_layer_count(tree["transformer.resblocks"]),
                hidden=tree.shape("transformer.resblocks.0.mlp.c_fc.weight", axes=2)[0],
                projection=tree.shape("text_projection", axes=2)[1] if "text_projection" in tree else None,
            )
        )

    def embed(self, ids: Tensor, dtype: torch.dtype, inserted: Inserted = ()) -> Tensor:
        positions = self.positional_embedding[: ids.shape[1]].to(dtype)
        return _with_inserted(self.token_embedding(ids, dtype), inserted) + positions

    def layer_list(self) -> nn.ModuleList:
        return self.transformer.resblocks

    def final_norm(self, hidden: Tensor) -> Tensor:
        return self.ln_final(hidden)

    def project(self, normalized: Tensor, ids: Tensor) -> Tensor:
        """(N, D) = the end's vector times ``text_projection``, which OpenCLIP stores as (width, D): x @ P."""
        end = super().project(normalized, ids)
        return end if self.text_projection is None else end @ self.text_projection.to(end.dtype)
