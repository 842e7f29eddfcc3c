"""A LoRA of what distinguishes a tuned checkpoint from its base, by randomised SVD, streamed layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraloom.control import Control, each_of, heed, keep_going
from loraloom.errors import AdapterError, CheckpointError, OutputError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.adapter_writer import check_output, write_lora
from loraloom.formats.tensors import is_finite
from loraloom.models.checkpoint import Checkpoint, open_checkpoint
from loraloom.models.names import is_extra
from loraloom.models.parts import check_is_weight, not_finite
from loraloom.models.prediction import read_signs
from loraloom.weights.lora_layers import network_facts
from loraloom.weights.low_rank import Factors, Residual, factors_of_matrix
from loraloom.weights.merge import PRECISIONS, file_name, is_same_or_inside

__all__ = ["EXTRACTED_KEY", "ExtractReport", "ExtractedLayer", "extract_lora"]

EXTRACTED_KEY = "loraloom.extracted"
"""Metadata of an extracted LoRA: JSON with both checkpoints, the residual of all layers and of each."""


@dataclass(frozen=True)
class ExtractedLayer:
    """``residual``: relative Frobenius norm of the layer's difference that the LoRA leaves out."""

    name: str
    rank: int
    residual: float


@dataclass(frozen=True)
class ExtractReport:
    """``unchanged`` layers were skipped; ``residual`` is that of all layers together.

    ``outside``: share of the whole difference (squared Frobenius norm) that is in tensors no LoRA layer can hold.
    """

    path: Path
    layers: tuple[ExtractedLayer, ...]
    unchanged: int
    residual: float
    outside: float


def extract_lora(
    base: Path,
    tuned: Path,
    output: Path,
    *,
    rank: int = 32,
    conv_rank: int | None = None,
    to_residual: float | None = None,
    min_difference: float = 0.0,
    precision: str = "fp16",
    listener: Listener = ignore,
    control: Control = keep_going,
) -> ExtractReport:
    """Write the LoRA that turns ``base`` into ``tuned``, as well as its rank allows.

    ``conv_rank``: for 3x3 convolutions (None: ``rank``; 0 leaves them out). ``to_residual``: the smallest rank, up to
    these two, whose relative residual in the layer is no larger. Layers in which no value differs by more than
    ``min_difference`` are skipped. One layer of both checkpoints is in memory at a time, besides the factors;
    ``control`` is heeded between two of them.
    Raises CheckpointError for checkpoints of two families or sizes, AdapterError where there is nothing to extract,
    OutputError for an output that is one of the checkpoints.
    """
    _check_options(output, rank, conv_rank, to_residual)
    if any(is_same_or_inside(output, path) for path in (base, tuned)):
        raise OutputError(f"{output} is one of the inputs", "give the LoRA a name of its own")
    pair = _opened(base, tuned)
    limits = _Limits(rank, rank if conv_rank is None else conv_rank, to_residual, min_difference)
    found = _factored(pair, limits, PRECISIONS[precision], listener, control)
    if not found.layers:
        raise AdapterError(
            f"{tuned} differs from {base} in none of the {len(pair.layers)} layers that a LoRA can change",
            f"no value differs by more than {min_difference:g}: is it the right pair?",
        )

    share = _share_outside(pair, found, listener, control)
    write_lora(
        output,
        {layer.target.name: layer.roles for layer in found.layers},
        metadata=_metadata(pair, found),
        dtype=PRECISIONS[precision],
        targets={before.name: before for before, _ in pair.layers},
        control=control,
    )
    return ExtractReport(output, found.told, found.unchanged, found.residual.relative, share)


@dataclass(frozen=True)
class _Pair:
    """Two checkpoints of one family and size, and the layers a LoRA can change as each of them knows them."""

    first: Checkpoint
    second: Checkpoint
    layers: Sequence[tuple[AdapterTarget, AdapterTarget]]


@dataclass(frozen=True)
class _Limits:
    """How large the LoRA may be: the options of :func:`extract_lora`."""

    rank: int
    conv_rank: int
    to_residual: float | None
    min_difference: float

    def rank_of(self, target: AdapterTarget, delta: Tensor) -> int:
        """The largest rank of a layer whose difference is ``delta`` (out, in times kernel); 0 leaves it out."""
        rows, columns = delta.shape
        return min(self.conv_rank if target.kind == "conv3x3" else self.rank, rows, columns)

    def passes_over(self, delta: Tensor) -> bool:
        """Whether a difference of any shape is too small to be kept.

        Casts and saving leave tiny differences; a layer with nothing else would only cost rank.
        """
        return not bool((delta.abs() > self.min_difference).any())


@dataclass(frozen=True)
class _Layer:
    """A layer of the LoRA: its tensors by role, and how well they are the difference (``norm``: Frobenius, its)."""

    target: AdapterTarget
    roles: Mapping[str, Tensor]
    norm: float
    told: ExtractedLayer


@dataclass(frozen=True)
class _Found:
    """The difference as layers of a LoRA. ``left_out``: squared norm of what is in layers that get no rank."""

    layers: Sequence[_Layer]
    unchanged: int
    left_out: float

    @property
    def told(self) -> tuple[ExtractedLayer, ...]:
        """What the report says of each layer."""
        return tuple(layer.told for layer in self.layers)

    @property
    def residual(self) -> Residual:
        """Of all layers together."""
        return Residual.of((layer.norm, layer.told.residual) for layer in self.layers)


def _factored(pair: _Pair, limits: _Limits, dtype: torch.dtype, listener: Listener, control: Control) -> _Found:
    """Every layer's difference as factors of the file's type, one layer after another."""
    layers: list[_Layer] = []
    unchanged, left_out = 0, 0.0
    for before, after in each_of("layers", pair.layers, listener, control):
        delta = _difference(pair, before, after)
        rank = limits.rank_of(before, delta)
        if limits.passes_over(delta):
            unchanged += 1
        elif rank == 0:
            left_out += float(torch.linalg.vector_norm(delta)) ** 2
        else:
            layers.append(_layer(before, delta, rank, limits.to_residual, dtype))
    return _Found(layers, unchanged, left_out)


def _layer(target: AdapterTarget, delta: Tensor, limit: int, to_residual: float | None, dtype: torch.dtype) -> _Layer:
    """The factors of a difference (out, in times kernel) of at most this rank, in the type of the file."""
    factors, rank = _factors(delta, limit, to_residual)
    down, up = factors.pair(rank)
    kernel = target.shape[2:]
    roles = {
        "down": down.reshape(rank, -1, *kernel).to(dtype),
        "up": up.reshape(-1, rank, *(1 for _ in kernel)).to(dtype),
        "alpha": torch.tensor(float(rank)),
    }
    return _Layer(target, roles, factors.norm, ExtractedLayer(target.name, rank, factors.residual(rank)))


def _share_outside(pair: _Pair, found: _Found, listener: Listener, control: Control) -> float:
    """The share of the whole difference that the LoRA cannot hold, of which ``listener`` hears if there is any."""
    elsewhere, names = _other_differences(pair, control)
    outside = found.left_out + elsewhere
    share = outside / (outside + found.residual.whole)
    if outside:
        listener(_outside_notice(share, names))
    return share


def _outside_notice(share: float, names: Sequence[str]) -> Notice:
    """What to say of the share of the difference that is elsewhere, ``names`` besides layers that were left out."""
    told = f", the first is {names[0]}" if names else ""
    return Notice(
        f"{share:.2%} of the difference (squared norm) is in tensors that this LoRA does not hold "
        f"({len(names)} besides layers left out{told})",
        "warning" if share > 0.05 else "info",
    )


_LARGEST_NORM = 1e18
"""Of a difference: its square is what singular values are found from, and float32 ends at 3.4e38."""


def _check_options(output: Path, rank: int, conv_rank: int | None, to_residual: float | None) -> None:
    check_output(output)
    if rank < 1 or (conv_rank is not None and conv_rank < 0):
        raise AdapterError("a rank is at least 1", "a convolution rank of 0 leaves the convolutions out")
    if to_residual is not None and not 0 < to_residual < 1:
        raise AdapterError(f"a residual of {to_residual:g} is not between 0 and 1", "0.05 loses 5 % of the norm")


def _opened(base: Path, tuned: Path) -> _Pair:
    """Both checkpoints, their layers matched by name; CheckpointError for two families, or a model of another size."""
    first, second = open_checkpoint(base), open_checkpoint(tuned)
    if first.family.name != second.family.name:
        raise CheckpointError(
            f"{first.path} is {first.family.title} and {second.path} is {second.family.title}",
            "only checkpoints of one family have a difference",
        )
    others = {target.name: target for target in second.family.adapter_targets(second.infos)}
    pairs = []
    for target in first.family.adapter_targets(first.infos):
        other = others.get(target.name)
        if other is None:
            raise CheckpointError(f"{second.path} has no layer {target.name}", f"{first.path} has: is it complete?")
        if other.shape != target.shape:
            raise CheckpointError(
                f"layer {target.name} has shape {target.shape} in {first.path} and {other.shape} in {second.path}",
                "the two models differ in size",
            )
        for checkpoint, tensor in ((first, target.tensor), (second, other.tensor)):
            check_is_weight(checkpoint.path, tensor, checkpoint.info(tensor).dtype)
        pairs.append((target, other))
    return _Pair(first, second, pairs)


def _difference(pair: _Pair, before: AdapterTarget, after: AdapterTarget) -> Tensor:
    """What the second has more than the first, (out, in times kernel) in float32."""
    first, second = pair.first, pair.second
    old, new = (
        (source[target.tensor] if target.rows is None else source[target.tensor][slice(*target.rows)]).float()
        for source, target in ((first, before), (second, after))
    )
    delta = (new - old).flatten(1)
    if not bool(torch.isfinite(delta).all()):
        source, target = (second, after) if bool(torch.isfinite(old).all()) else (first, before)
        raise not_finite(source.path, target.tensor, source[target.tensor])
    if float(torch.linalg.vector_norm(delta.double())) > _LARGEST_NORM:
        raise CheckpointError(
            f"{second.path}: the tensor {after.tensor} differs from that of {first.path} by more than float32 "
            "can add up",
            "one of the two is damaged: get another copy or version",
        )
    return delta


def _factors(delta: Tensor, limit: int, to_residual: float | None) -> tuple[Factors, int]:
    """Factors and the rank to keep: ``limit``, or the smallest whose residual is small enough."""
    if to_residual is None:
        return factors_of_matrix(delta, limit), limit
    tried = min(16, limit)
    while True:
        factors = factors_of_matrix(delta, tried)
        if factors.residual(tried) <= to_residual or tried == limit:
            break
        tried = min(2 * tried, limit)
    enough = (rank for rank in range(1, tried) if factors.residual(rank) <= to_residual)
    return factors, next(enough, tried)


def _other_differences(pair: _Pair, control: Control) -> tuple[float, list[str]]:
    """Squared norm of the differences elsewhere in the U-Net and the text encoders, and the tensors they are in."""
    first, second = pair.first, pair.second
    held = {before.tensor for before, _ in pair.layers}
    total, names = 0.0, []
    for name in _model_tensors(first):
        heed(control)
        if name in held or name not in second or first.info(name).shape != second.info(name).shape:
            continue
        old, new = first[name], second[name]
        if not old.is_floating_point():
            continue
        for checkpoint, tensor in ((first, old), (second, new)):
            if not is_finite(tensor):
                raise not_finite(checkpoint.path, name, tensor)
        square = float(torch.linalg.vector_norm(new.float() - old.float())) ** 2
        if square:
            total += square
            names.append(name)
    return total, names


def _model_tensors(checkpoint: Checkpoint) -> Iterator[str]:
    return (name for name in checkpoint if not is_extra(name) and not name.startswith(checkpoint.family.vae_prefix))


def _metadata(pair: _Pair, found: _Found) -> dict[str, str]:
    base, tuned = file_name(pair.first.path), file_name(pair.second.path)
    family = pair.first.family
    prediction = read_signs(pair.second, pair.second.metadata, pair.second.path).prediction or "epsilon"
    plain, convolutions = (
        {layer.target.name: layer.told.rank for layer in found.layers if (layer.target.kind == "conv3x3") == wanted}
        for wanted in (False, True)
    )
    record = {
        "base": base,
        "tuned": tuned,
        "residual": round(found.residual.relative, 6),
        "layers": {layer.name: [layer.rank, round(layer.residual, 6)] for layer in found.told},
    }
    return {
        **network_facts(plain, convolutions),
        "ss_base_model_version": family.base_model_version_for(prediction),
        "ss_sd_model_name": base,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.modelspec_architecture_for(prediction)}/lora",
        "modelspec.title": f"{pair.second.path.stem} less {pair.first.path.stem}",
        EXTRACTED_KEY: json.dumps(record),
    }
