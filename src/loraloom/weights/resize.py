"""A LoRA made smaller: every layer cut to a rank, or to the rank that its singular values ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from loraloom.control import Control, each_of, keep_going
from loraloom.errors import AdapterError, OutputError
from loraloom.events import Listener, ignore
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.adapter_kinds import layout_of
from loraloom.formats.adapter_writer import WrittenLora, check_output, write_lora
from loraloom.weights.lora_layers import (
    file_precision,
    layer_of,
    named_layers,
    network_facts,
    output_dialect,
    related_metadata,
)
from loraloom.weights.low_rank import Criterion, Residual, chosen_rank, factors_of_product
from loraloom.weights.merge import PRECISIONS, file_name, is_same_or_inside

__all__ = ["ResizeReport", "ResizedLayer", "resize_lora"]


@dataclass(frozen=True)
class ResizedLayer:
    """``kept``: the share of the layer's energy (squared Frobenius norm) that is left."""

    name: str
    old_rank: int
    rank: int
    kept: float


@dataclass(frozen=True)
class ResizeReport:
    """What a resize did; ``residual``: relative Frobenius norm of all that was cut away.

    ``whole``: layers without a rank (differences of normalizations, biases, whole weights), which stay as they are.
    """

    written: WrittenLora
    layers: tuple[ResizedLayer, ...]
    residual: float
    whole: int
    words: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file that was written."""
        return self.written.path


def resize_lora(
    lora: Path,
    output: Path,
    *,
    rank: int,
    conv_rank: int | None = None,
    criterion: Criterion | None = None,
    precision: str | None = None,
    to: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> ResizeReport:
    """Write ``lora`` with at most ``rank`` in every layer (``conv_rank`` for kernels larger than 1x1, else ``rank``).

    Each layer is the best approximation of its rank in the Frobenius norm. ``criterion`` chooses ranks below the limit
    layer by layer. The change of the weights stays what it was (the scale goes into the factors, alpha equals the
    rank); a rank is never raised. Differences of whole weights and normalizations stay as they are. ``to``: whose
    names, ``kohya`` or ``diffusers``; None for diffusers' where the file has them, else kohya's. Raises AdapterError
    for other kinds (DoRA, LoHa, LoKr, (IA)3), and damaged tensors; OutputError for an output that is the file itself.
    ``control`` is heeded between two layers, of which ``listener`` hears.
    """
    if rank < 1 or (conv_rank is not None and conv_rank < 1):
        raise AdapterError("a rank is at least 1")
    check_output(output)
    file = read_adapter_file(lora)
    if any(is_same_or_inside(output, path) for path in (lora, *file.beside)):
        raise OutputError(f"{output} is one of the inputs", "give the result a name of its own")

    named = named_layers(file)
    layers: dict[str, Mapping[str, Tensor]] = {}
    told = []
    ranks: tuple[dict[str, int], dict[str, int]] = ({}, {})
    cut = Residual()

    for name, roles in each_of("layers", named.layers.items(), listener, control):
        layout = layout_of(roles)
        if layout is not None and layout.adds_up:  # differences of whole tensors, which have no rank
            layers[name] = roles
            continue
        layer = layer_of(roles, f"{lora}: layer {name}", "resizing")
        limit = conv_rank if layer.is_convolution and conv_rank is not None else rank
        factors = factors_of_product(layer.up * layer.scale, layer.down)
        chosen = chosen_rank(factors.values, limit, criterion)
        residual = factors.residual(chosen)
        layers[name] = layer.roles(*factors.pair(chosen))
        ranks[layer.is_convolution][name] = chosen
        told.append(ResizedLayer(name, layer.rank, chosen, 1 - residual**2))
        cut.add(factors.norm, residual)

    if not told:
        raise AdapterError(f"{lora} has no layer with a rank: there is nothing to resize")
    written = write_lora(
        output,
        layers,
        metadata={
            **related_metadata(file, named.family),
            **network_facts(*ranks),
            "loraloom.resized_from": file_name(lora),
        },
        dtype=PRECISIONS[precision] if precision else file_precision(file),
        dialect=output_dialect([file], to),
        targets=named.targets,
        words=file.embeddings,
        source=str(lora),
        control=control,
    )
    return ResizeReport(written, tuple(told), cut.relative, len(layers) - len(told), tuple(file.embeddings))
