"""A LoRA made smaller: every layer cut to a rank, or to the rank that its singular values ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from loraloom.control import Control, each_of, keep_going
from loraloom.errors import AdapterError, OutputError
from loraloom.events import Listener, ignore
from loraloom.formats.adapter_file import AdapterFile, read_adapter_file
from loraloom.formats.adapter_kinds import layout_of
from loraloom.formats.adapter_writer import WrittenLora, check_output, write_lora
from loraloom.formats.lora_factors import LoraFactors
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
    limits = _Limits(rank, rank if conv_rank is None else conv_rank, criterion)
    file = _opened(lora, output)
    named = named_layers(file)
    cut = {
        name: _cut(name, layer_of(roles, f"{lora}: layer {name}", "resizing"), limits)
        for name, roles in each_of("layers", named.layers.items(), listener, control)
        if not _is_whole(roles)
    }
    if not cut:
        raise AdapterError(f"{lora} has no layer with a rank: there is nothing to resize")

    written = write_lora(
        output,
        {**named.layers, **{name: layer.roles for name, layer in cut.items()}},
        metadata={
            **related_metadata(file, named.family),
            **network_facts(_ranks(cut, convolutions=False), _ranks(cut, convolutions=True)),
            "loraloom.resized_from": file_name(lora),
        },
        dtype=PRECISIONS[precision] if precision else file_precision(file),
        dialect=output_dialect([file], to),
        targets=named.targets,
        words=file.embeddings,
        source=str(lora),
        control=control,
    )
    told = tuple(layer.told for layer in cut.values())
    lost = Residual.of((layer.norm, layer.residual) for layer in cut.values())
    return ResizeReport(written, told, lost.relative, len(named.layers) - len(cut), tuple(file.embeddings))


@dataclass(frozen=True)
class _Limits:
    """The largest ranks that layers may keep, and what chooses a smaller one."""

    rank: int
    conv_rank: int
    criterion: Criterion | None

    def __post_init__(self) -> None:
        if min(self.rank, self.conv_rank) < 1:
            raise AdapterError("a rank is at least 1")


@dataclass(frozen=True)
class _CutLayer:
    """A layer at its new rank: its tensors by role, and the Frobenius ``norm`` of its change before the cut."""

    roles: Mapping[str, Tensor]
    is_convolution: bool
    norm: float
    residual: float
    told: ResizedLayer


def _opened(lora: Path, output: Path) -> AdapterFile:
    """The file that is made smaller; OutputError for an output that is the file itself, or one it is read with."""
    check_output(output)
    file = read_adapter_file(lora)
    if any(is_same_or_inside(output, path) for path in (lora, *file.beside)):
        raise OutputError(f"{output} is one of the inputs", "give the result a name of its own")
    return file


def _is_whole(roles: Mapping[str, Tensor]) -> bool:
    """Whether a layer is the difference of whole tensors, which has no rank."""
    layout = layout_of(roles)
    return layout is not None and layout.adds_up


def _cut(name: str, layer: LoraFactors, limits: _Limits) -> _CutLayer:
    """The best approximation of a layer within the limits, its scale inside the factors."""
    factors = factors_of_product(layer.up * layer.scale, layer.down)
    limit = limits.conv_rank if layer.is_convolution else limits.rank
    rank = chosen_rank(factors.values, limit, limits.criterion)
    residual = factors.residual(rank)
    told = ResizedLayer(name, layer.rank, rank, 1 - residual**2)
    return _CutLayer(layer.roles(*factors.pair(rank)), layer.is_convolution, factors.norm, residual, told)


def _ranks(layers: Mapping[str, _CutLayer], *, convolutions: bool) -> dict[str, int]:
    return {name: layer.told.rank for name, layer in layers.items() if layer.is_convolution == convolutions}
