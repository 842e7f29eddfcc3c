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
    first, second = open_checkpoint(base), open_checkpoint(tuned)
    pairs = _matched(first, second)
    limits = (rank, rank if conv_rank is None else conv_rank)
    layers: list[_Layer] = []
    unchanged, outside = 0, 0.0
    for before, after in each_of("layers", pairs, listener, control):
        delta = _difference(first, before, second, after)
        # Casts and saving leave tiny differences; a layer with nothing else would only cost rank.
        if not bool((delta.abs() > min_difference).any()):
            unchanged += 1
            continue
        limit = min(limits[before.kind == "conv3x3"], *delta.shape)
        if limit == 0:
            outside += float(torch.linalg.vector_norm(delta)) ** 2
            continue
        layers.append(_layer(before, delta, limit, to_residual, PRECISIONS[precision]))
    if not layers:
        raise AdapterError(
            f"{tuned} differs from {base} in none of the {len(pairs)} layers that a LoRA can change",
            f"no value differs by more than {min_difference:g}: is it the right pair?",
        )

    cut = Residual()
    for layer in layers:
        cut.add(layer.norm, layer.residual)
    left_out, names = _other_differences(first, second, {before.tensor for before, _ in pairs}, control)
    outside += left_out
    share = outside / (outside + cut.whole)
    if outside:
        listener(_outside_notice(share, names))

    told = tuple(ExtractedLayer(layer.target.name, layer.rank, layer.residual) for layer in layers)
    plain, convolutions = (
        {layer.target.name: layer.rank for layer in layers if (layer.target.kind == "conv3x3") == wanted}
        for wanted in (False, True)
    )
    write_lora(
        output,
        {layer.target.name: layer.roles for layer in layers},
        metadata=_metadata(first, second, told, cut.relative, network_facts(plain, convolutions)),
        dtype=PRECISIONS[precision],
        targets={before.name: before for before, _ in pairs},
        control=control,
    )
    return ExtractReport(output, told, unchanged, cut.relative, share)


@dataclass(frozen=True)
class _Layer:
    """A layer of the LoRA: its tensors by role, and how well they are the difference (``norm``: Frobenius, its)."""

    target: AdapterTarget
    roles: Mapping[str, Tensor]
    rank: int
    norm: float
    residual: float


def _layer(target: AdapterTarget, delta: Tensor, limit: int, to_residual: float | None, dtype: torch.dtype) -> _Layer:
    """The factors of a difference (out, in times kernel) of at most this rank, in the type of the file."""
    factors, rank = _factors(delta, limit, to_residual)
    residual = factors.residual(rank)
    down, up = factors.pair(rank)
    kernel = target.shape[2:]
    roles = {
        "down": down.reshape(rank, -1, *kernel).to(dtype),
        "up": up.reshape(-1, rank, *(1 for _ in kernel)).to(dtype),
        "alpha": torch.tensor(float(rank)),
    }
    return _Layer(target, roles, rank, factors.norm, residual)


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


def _matched(first: Checkpoint, second: Checkpoint) -> list[tuple[AdapterTarget, AdapterTarget]]:
    """The layers of both, by name; CheckpointError for two families, or a model of another size."""
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
    return pairs


def _difference(first: Checkpoint, before: AdapterTarget, second: Checkpoint, after: AdapterTarget) -> Tensor:
    """What the second has more than the first, (out, in times kernel) in float32."""
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


def _other_differences(
    first: Checkpoint, second: Checkpoint, held: set[str], control: Control
) -> tuple[float, list[str]]:
    """Squared norm of the differences elsewhere in the U-Net and the text encoders, and the tensors they are in."""
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


def _metadata(
    first: Checkpoint, second: Checkpoint, layers: Sequence[ExtractedLayer], residual: float, network: dict[str, str]
) -> dict[str, str]:
    family = first.family
    prediction = read_signs(second, second.metadata, second.path).prediction or "epsilon"
    record = {
        "base": file_name(first.path),
        "tuned": file_name(second.path),
        "residual": round(residual, 6),
        "layers": {layer.name: [layer.rank, round(layer.residual, 6)] for layer in layers},
    }
    return {
        **network,
        "ss_base_model_version": family.base_model_version_for(prediction),
        "ss_sd_model_name": file_name(first.path),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.modelspec_architecture_for(prediction)}/lora",
        "modelspec.title": f"{second.path.stem} less {first.path.stem}",
        EXTRACTED_KEY: json.dumps(record),
    }
