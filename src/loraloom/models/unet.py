"""The U-Net of Stable Diffusion 1, 2 and XL. Modules are named as in the file, after ``model.diffusion_model.``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from loraloom.errors import CheckpointError
from loraloom.models.layers import (
    Conv2d,
    GroupNorm,
    TensorModule,
    attention,
    concatenate,
    geglu,
    group_norm_silu,
    recomputing,
)
from loraloom.models.shapes import ShapeTree

__all__ = ["HeadsRule", "Recompute", "UNet", "eight_heads", "heads_of_64", "timestep_embedding"]

_EPS = 1e-5

Recompute = Literal["none", "selective", "full"]
"""What the backward pass computes again instead of keeping it."""

HeadsRule = Callable[[int], int]
"""Number of attention heads for a number of channels: it cannot be read from tensor shapes."""


def eight_heads(channels: int) -> int:
    """SD1: eight heads, however wide."""
    return 8


def heads_of_64(channels: int) -> int:
    """SD2 and SDXL: heads of 64 channels."""
    return max(1, channels // 64)


def timestep_embedding(timesteps: Tensor, channels: int, *, max_period: float = 10000.0) -> Tensor:
    """Sinusoids of timesteps (or of SDXL's sizes), cosines first: (n,) -> (n, channels), float32."""
    half = channels // 2
    # In the order of operations of the original: large timesteps multiply every rounding difference.
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = timesteps.float()[:, None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class UNet(TensorModule):
    """Predicts the noise (or v) in noisy latents.

    ``gradient_checkpointing`` is what is computed again on the way back instead of being kept: "none"; "selective",
    what is cheap (norms, activations, concatenations); "full", each res block and each transformer block.
    ``in_channels`` is 4, or 9 for inpainting models.
    """

    def __init__(self, tree: ShapeTree, heads_rule: HeadsRule) -> None:
        super().__init__()
        self.gradient_checkpointing: Recompute = "none"
        _, self.model_channels = tree.shape("time_embed.0.weight", axes=2)
        _, self.in_channels, _, _ = tree.shape("input_blocks.0.0.weight", axes=4)
        self.time_embed = _two_layers(tree["time_embed"])
        self.label_emb = _Chain(_two_layers(tree["label_emb.0"])) if "label_emb" in tree else None
        self.input_blocks = _blocks(tree["input_blocks"], heads_rule)
        self.middle_block = _Block(tree["middle_block"], heads_rule)
        self.output_blocks = _blocks(tree["output_blocks"], heads_rule)
        self.out = _NormSiluConv(tree["out.0"].group_norm(eps=_EPS), nn.SiLU(), tree["out.2"].convolution())

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], *, heads_rule: HeadsRule) -> UNet:
        """A U-Net that fits the tensors of these names and shapes; CheckpointError when they do not make one."""
        tree = ShapeTree(shapes, path="model.diffusion_model")
        unet = cls(tree, heads_rule)
        tree.require_fit(unet)
        if len(unet.input_blocks) != len(unet.output_blocks):
            raise CheckpointError(
                f"the U-Net has {len(unet.input_blocks)} input blocks and {len(unet.output_blocks)} output blocks",
                "the file is incomplete, or not a Stable Diffusion checkpoint",
            )
        return unet

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, vector: Tensor | None = None) -> Tensor:
        """(B, in, h, w) latents, (B,) timesteps, (B, n, C) text embeddings, for SDXL a (B, D) vector -> (B, out, h, w).

        Computes in x's dtype.
        """
        recompute = self.gradient_checkpointing if torch.is_grad_enabled() else "none"
        with recomputing() if recompute == "selective" else nullcontext():
            return self._denoise(x, timesteps, context, vector, _checkpointed if recompute == "full" else _plain)

    def _denoise(self, x: Tensor, timesteps: Tensor, context: Tensor, vector: Tensor | None, run: _Run) -> Tensor:
        context = context.to(x.dtype)
        emb = F.silu(self._embed(timesteps, vector, x.dtype))
        skips: list[Tensor] = []
        for block in self.input_blocks:
            x = block(x, emb, context, run, None)
            skips.append(x)
        x = self.middle_block(x, emb, context, run, None)
        for block in self.output_blocks:
            x = concatenate(x, skips.pop())
            x = block(x, emb, context, run, skips[-1].shape[-2:] if skips else None)
        return self.out(x)

    def _embed(self, timesteps: Tensor, vector: Tensor | None, dtype: torch.dtype) -> Tensor:
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(dtype))
        if self.label_emb is None:
            return emb
        if vector is None:
            raise ValueError("this U-Net needs a vector besides the text embeddings")
        return emb + self.label_emb(vector.to(dtype))


_Run = Callable[..., Tensor]


def _plain(module: TensorModule, *inputs: Tensor) -> Tensor:
    return module(*inputs)


def _checkpointed(module: TensorModule, *inputs: Tensor) -> Tensor:
    output: Tensor = checkpoint(module, *inputs, use_reentrant=False)
    return output


class _Chain(nn.Sequential, TensorModule):
    """Layers one after another, named by their numbers."""


class _NormSiluConv(_Chain):
    """A norm first, a convolution last, silu between them (and in the file's numbering sometimes a dropout)."""

    def forward(self, input: Tensor) -> Tensor:
        norm, convolution = self[0], self[-1]
        assert isinstance(norm, GroupNorm)
        output: Tensor = convolution(group_norm_silu(norm, input))
        return output


def _two_layers(tree: ShapeTree) -> _Chain:
    return _Chain(tree["0"].linear(), nn.SiLU(), tree["2"].linear())


def _blocks(tree: ShapeTree, heads_rule: HeadsRule) -> nn.ModuleList:
    blocks = dict(tree.numbered())
    if list(blocks) != list(range(len(blocks))):
        raise CheckpointError(f"the U-Net's blocks are numbered {list(blocks)}", "the file is incomplete")
    return nn.ModuleList(_Block(block, heads_rule) for block in blocks.values())


class _Block(nn.ModuleList):
    """One numbered block: convolution, res blocks, transformers and resampling, in the order of their numbers."""

    def __init__(self, tree: ShapeTree, heads_rule: HeadsRule) -> None:
        super().__init__(_layer(below, heads_rule) for _, below in tree.numbered())

    def forward(self, x: Tensor, emb: Tensor, context: Tensor, run: _Run, upsampled: torch.Size | None) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = run(layer, x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, run)
            elif isinstance(layer, Upsample):
                x = layer(x, upsampled)
            else:
                x = layer(x)
        return x


def _layer(tree: ShapeTree, heads_rule: HeadsRule) -> nn.Module:
    if "in_layers" in tree:
        return ResBlock(tree)
    if "transformer_blocks" in tree:
        return SpatialTransformer(tree, heads_rule)
    if "op" in tree:
        return Downsample(tree)
    if "conv" in tree:
        return Upsample(tree)
    return tree.convolution()


class ResBlock(TensorModule):
    """Residual block: (B, in, h, w) and the timestep's (B, E) embedding (after silu) -> (B, out, h, w)."""

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        norm, convolution = tree["in_layers.0"].group_norm(eps=_EPS), tree["in_layers.2"].convolution()
        self.in_layers = _NormSiluConv(norm, nn.SiLU(), convolution)
        # The silu of the embedding is the same for every block: the U-Net applies it once.
        self.emb_layers = _Chain(nn.Identity(), tree["emb_layers.1"].linear())
        norm, convolution = tree["out_layers.0"].group_norm(eps=_EPS), tree["out_layers.3"].convolution()
        self.out_layers = _NormSiluConv(norm, nn.SiLU(), nn.Identity(), convolution)
        self.skip_connection = tree["skip_connection"].convolution() if "skip_connection" in tree else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        residual: Tensor = self.skip_connection(x)
        return residual + self.out_layers(h)


class Downsample(TensorModule):
    """Halves height and width (rounding up)."""

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.op = tree["op"].convolution(stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(TensorModule):
    """Enlarges to ``size``, the size of the next skip, so that sizes not divisible by eight work; else doubles."""

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.conv = tree["conv"].convolution()

    def forward(self, x: Tensor, size: torch.Size | None) -> Tensor:
        if size is None:
            size = torch.Size((2 * x.shape[2], 2 * x.shape[3]))
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class SpatialTransformer(TensorModule):
    """Transformer blocks over the pixels of an image: (B, C, h, w) and (B, n, D) text embeddings -> (B, C, h, w)."""

    def __init__(self, tree: ShapeTree, heads_rule: HeadsRule) -> None:
        super().__init__()
        self.norm = tree["norm"].group_norm(eps=1e-6)
        self.proj_in = tree["proj_in"].projection()
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(block, heads_rule) for _, block in tree["transformer_blocks"].numbered()
        )
        self.proj_out = tree["proj_out"].projection()

    def forward(self, x: Tensor, context: Tensor, run: _Run) -> Tensor:
        # The copies to (B, pixels, C) and back are made contiguous on purpose: a view would have channels-last
        # strides, and on the CPU every layer after it would follow.
        h = self.norm(x)
        if isinstance(self.proj_in, Conv2d):
            h = _tokens(self.proj_in(h))
        else:
            h = self.proj_in(_tokens(h))
        for block in self.transformer_blocks:
            h = run(block, h, context)
        if isinstance(self.proj_out, Conv2d):
            return x + self.proj_out(_image(h, x.shape))
        return x + _image(self.proj_out(h), x.shape)


def _tokens(image: Tensor) -> Tensor:
    return image.flatten(2).transpose(1, 2).contiguous()


def _image(tokens: Tensor, shape: torch.Size) -> Tensor:
    return tokens.transpose(1, 2).contiguous().view(shape)


class TransformerBlock(TensorModule):
    """Self-attention, attention to the text, feed-forward: (B, pixels, C), (B, n, D) -> (B, pixels, C)."""

    def __init__(self, tree: ShapeTree, heads_rule: HeadsRule) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (tree[name].layer_norm() for name in ("norm1", "norm2", "norm3"))
        self.attn1 = Attention(tree["attn1"], heads_rule)
        self.attn2 = Attention(tree["attn2"], heads_rule)
        self.ff = FeedForward(tree["ff"])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Attention(TensorModule):
    """Multi-head attention of x (B, m, C) to the context (B, n, D).

    Safe in fp16 for SD 2.1, whose products of queries and keys pass 65504: scaled_dot_product_attention scales before
    it multiplies or accumulates in fp32, so no upcast of the whole attention is needed.
    """

    def __init__(self, tree: ShapeTree, heads_rule: HeadsRule) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (tree[name].linear() for name in ("to_q", "to_k", "to_v"))
        self.to_out = _Chain(tree["to_out.0"].linear())
        channels = self.to_q.out_features
        self.heads = heads_rule(channels)
        if channels % self.heads:
            raise CheckpointError(
                f"{channels} channels of attention do not divide into {self.heads} heads",
                "the file is not a Stable Diffusion checkpoint",
            )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = self._split(self.to_q(x)), self._split(self.to_k(context)), self._split(self.to_v(context))
        h = attention(q, k, v)
        return self.to_out(h.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class FeedForward(TensorModule):
    """Gated feed-forward layer: ``net.0.proj`` to value and gate, ``net.2`` back."""

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.net = _Chain(Geglu(tree["net.0"]), nn.Identity(), tree["net.2"].linear())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Geglu(TensorModule):
    """Linear layer to value and gate, value times gelu of the gate."""

    def __init__(self, tree: ShapeTree) -> None:
        super().__init__()
        self.proj = tree["proj"].linear()

    def forward(self, x: Tensor) -> Tensor:
        return geglu(self.proj(x))
