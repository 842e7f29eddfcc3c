"""Merge LoRAs into a checkpoint, streamed tensor by tensor: never more than one tensor of it in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.actions import Action, Sentence
from loraloom.adapters.adapter import Adapter
from loraloom.adapters.attach import AdapterSet, read_adapters
from loraloom.adapters.block_weights import BlockWeights
from loraloom.control import Control, keep_going
from loraloom.errors import AdapterError, OutputError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.files import sha256_of
from loraloom.formats.tensors import TensorInfo, TensorSource, is_finite, write_tensors
from loraloom.hardware import keep_freed_memory
from loraloom.models.checkpoint import Checkpoint, open_checkpoint
from loraloom.models.family import Family
from loraloom.models.loaded import check_is_weight, not_finite
from loraloom.models.names import is_extra
from loraloom.models.prediction import prediction_metadata, read_signs
from loraloom.models.saving import saved_dtype

__all__ = [
    "MERGED_KEY",
    "PRECISIONS",
    "LoraWeight",
    "MergeReport",
    "MergedLora",
    "is_same_or_inside",
    "kept_broken",
    "merge",
    "merged_tensor",
]

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}
MERGED_KEY = "loraloom.merged"
"""Metadata of a merged checkpoint: a JSON list of every LoRA in it, with file name, SHA-256 and weights."""


@dataclass(frozen=True)
class LoraWeight:
    """A LoRA file and how strongly each part of it is applied."""

    path: Path
    unet: float = 1.0
    text_encoder: float = 1.0
    blocks: BlockWeights | None = None
    """What the weight is multiplied by, block by block; None for 1 everywhere."""

    def weight(self, target: AdapterTarget, family: Family) -> float:
        """The weight of a layer."""
        weight = self.unet if target.part == "unet" else self.text_encoder
        return weight if self.blocks is None else weight * self.blocks.of(target.name, sdxl=family.lora_sai_names)


@dataclass(frozen=True)
class MergedLora:
    """A LoRA that was merged: the layers it has, and those applied with a weight other than zero."""

    path: Path
    layers: int
    applied: int


@dataclass(frozen=True)
class MergeReport:
    """What a merge did. ``changed`` counts tensors that really differ from what they were before."""

    path: Path
    tensors: int
    changed: int
    loras: tuple[MergedLora, ...]


Change = tuple[AdapterTarget, "Adapter | _BiasChange", float]


def merge(
    checkpoint: Path,
    loras: Sequence[LoraWeight],
    output: Path,
    *,
    precision: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> MergeReport:
    """Write ``checkpoint`` with the LoRAs merged in to ``output`` (``.safetensors`` or ``.ckpt``).

    ``precision``: fp16, bf16 or float for the weights of the model's parts; None keeps each tensor's own. Tensors that
    no LoRA changes are bit-equal to the source's (unless the precision differs). Nothing is written before every LoRA
    has been found to fit; the output appears only when it is complete. Raises AdapterError for a LoRA that does not
    fit, or weights with which nothing would change or a value would leave the range of its type,
    OutputError for a name that ends in neither suffix. ``control`` is heeded between two tensors, of which
    ``listener`` hears.
    """
    if not loras:
        raise AdapterError("no LoRA to merge", Sentence("name at least one: ", Action.NAME_LORAS))
    if output.suffix.lower() not in (".safetensors", ".ckpt"):
        raise OutputError(f"{output} is neither .safetensors nor .ckpt", "the suffix decides the format")
    keep_freed_memory()
    source = open_checkpoint(checkpoint)
    if notice := source.translation_notice():
        listener(notice)
    targets = source.family.file_targets(source.infos)
    sets = [read_adapters(lora.path, targets, listener=listener) for lora in loras]
    if any(is_same_or_inside(output, path) for path in (checkpoint, *(lora.path for lora in loras))):
        raise OutputError(f"{output} is one of the inputs", "give the merged checkpoint a name of its own")
    merged = tuple(_counted(lora, adapters, source.family) for lora, adapters in zip(loras, sets, strict=True))
    for notice in _without_effect(loras, sets, merged):
        listener(notice)
    changes = _changes(loras, sets, source)
    for name in changes:
        check_is_weight(source.path, name, source.info(name).dtype)
    dtype = PRECISIONS[precision] if precision else None
    changed: set[str] = set()
    broken: list[str] = []
    write_tensors(
        output,
        [_source(source, name, changes.get(name, ()), dtype, changed, broken) for name in source],
        metadata=_metadata(source, loras, control),
        extras=source.extras,
        listener=listener,
        control=control,
    )
    if broken:
        listener(kept_broken(source, broken))
    if len(changed) < len(changes):
        lost = f"{len(changes) - len(changed)} of {len(changes)} tensors came out as they were"
        listener(Notice(f"{lost}: the change is zero, or too small for the precision of the file", "warning"))
    return MergeReport(output, len(source), len(changed), merged)


def merged_tensor(weight: Tensor, changes: Sequence[Change], dtype: torch.dtype | None = None) -> Tensor:
    """``weight``, of any shape, plus the sum of the changes, computed in float32 and rounded once.

    It is rounded to ``dtype`` (None: its own).
    """
    merged = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32, copy=True)
    for (start, stop), delta in _deltas(changes, merged).items():
        rows = merged[start:stop]
        rows += delta.reshape(rows.shape)
    return merged.to(dtype or weight.dtype)


def _deltas(changes: Sequence[Change], weight: Tensor) -> dict[tuple[int, int], Tensor]:
    """The weighted changes, those of the same rows added up first, so that two LoRAs merge alike in either order."""
    deltas: dict[tuple[int, int], Tensor] = {}
    for target, adapter, strength in changes:
        where = target.rows or (0, weight.shape[0])
        base = weight[slice(*where)].reshape(target.shape) if adapter.needs_base else None
        delta = adapter.delta(base) * strength
        deltas[where] = deltas[where].add_(delta) if where in deltas else delta
    return deltas


class _BiasChange:
    """The change that an adapter makes to its layer's bias, where a change of a weight is expected."""

    needs_base = False

    def __init__(self, delta: Tensor) -> None:
        self._delta = delta

    def delta(self, base: Tensor | None = None) -> Tensor:
        return self._delta.clone()


def _counted(lora: LoraWeight, adapters: AdapterSet, family: Family) -> MergedLora:
    applied = sum(lora.weight(target, family) != 0.0 for target, _ in adapters.items())
    return MergedLora(lora.path, len(adapters), applied)


def _without_effect(
    loras: Sequence[LoraWeight], sets: Sequence[AdapterSet], merged: Sequence[MergedLora]
) -> Iterator[Notice]:
    """Notices about weights that apply to nothing; AdapterError when no LoRA changes anything at all."""
    if not any(lora.applied for lora in merged):
        names = ", ".join(str(lora.path) for lora in merged)
        raise AdapterError(
            f"nothing would change: {names} has no layer with a weight other than 0",
            "LORA:text_encoder:unet gives the parts weights of their own",
        )
    for lora, adapters, counted in zip(loras, sets, merged, strict=True):
        parts = adapters.parts()
        if not counted.applied:
            yield Notice(f"{lora.path} changes nothing: none of its layers has a weight other than 0", "warning")
        elif parts == ["unet"] and lora.text_encoder not in (0.0, lora.unet):
            yield Notice(f"{lora.path} holds no text encoder layers: its text encoder weight has no effect", "warning")
        elif "unet" not in parts and lora.unet not in (0.0, lora.text_encoder):
            yield Notice(f"{lora.path} holds no U-Net layers: its U-Net weight has no effect", "warning")


def _changes(loras: Sequence[LoraWeight], sets: Sequence[AdapterSet], source: Checkpoint) -> dict[str, list[Change]]:
    """What happens to each tensor of the checkpoint; a weight of zero leaves it alone.

    Raises AdapterError for a change of a bias that the checkpoint does not have.
    """
    changes: dict[str, list[Change]] = {}
    for lora, adapters in zip(loras, sets, strict=True):
        for target, adapter in adapters.items():
            strength = lora.weight(target, source.family)
            if strength == 0.0:
                continue
            changes.setdefault(target.tensor, []).append((target, adapter, strength))
            bias = adapter.bias_delta()
            if bias is None or not bool(bias.any()):
                continue
            if target.bias not in source:
                raise AdapterError(f"{lora.path} changes the bias of {target.name}, which has none in this checkpoint")
            changes.setdefault(target.bias, []).append((target, _BiasChange(bias), strength))
    return changes


def _source(
    source: Checkpoint,
    name: str,
    changes: Sequence[Change],
    dtype: torch.dtype | None,
    changed: set[str],
    broken: list[str],
) -> TensorSource:
    info = source.info(name)
    wanted = saved_dtype(name, info, source.family, dtype)
    load = partial(_load, source, name, changes, wanted, changed, broken)
    return TensorSource(name, TensorInfo(wanted, info.shape), load)


def _load(
    source: Checkpoint,
    name: str,
    changes: Sequence[Change],
    dtype: torch.dtype,
    changed: set[str],
    broken: list[str],
) -> Tensor:
    """One tensor of the output; notes in ``changed`` whether the LoRAs made a difference to it.

    NaN in the checkpoint is an error where a LoRA changes the tensor; elsewhere it is noted in ``broken``.
    """
    weight = source[name]
    if not is_extra(name) and weight.is_floating_point() and not is_finite(weight):
        if changes:
            raise not_finite(source.path, name, weight)
        broken.append(name)
        return weight.to(dtype)
    if not changes and dtype == weight.dtype:
        return weight
    plain = weight.to(dtype)
    result = merged_tensor(weight, changes, dtype) if changes else plain
    if not is_finite(result):
        raise AdapterError(
            f"{name} would hold values beyond the range of {str(dtype).removeprefix('torch.')}",
            Sentence("use smaller weights, or another precision: ", Action.MERGE_PRECISION),
        )
    if changes and not torch.equal(result, plain):
        changed.add(name)
    return result


def kept_broken(source: Checkpoint, names: Sequence[str]) -> Notice:
    """What to say of tensors that hold NaN or infinite values, and that a merge leaves as they are."""
    several = f"{len(names)} tensors that this merge leaves alone hold"
    count = "1 tensor that this merge leaves alone holds" if len(names) == 1 else several
    return Notice(
        f"{source.path}: {count} NaN or infinite values, the first is {names[0]}: "
        "they are written as they are, and the model may paint nothing but black",
        "warning",
    )


def is_same_or_inside(output: Path, source: Path) -> bool:
    """Whether writing ``output`` would replace ``source``, or a file of the Diffusers folder ``source``."""
    with suppress(OSError):
        if output.exists() and output.samefile(source):
            return True
        return source.is_dir() and output.resolve().is_relative_to(source.resolve())
    return False


def _metadata(source: Checkpoint, loras: Sequence[LoraWeight], control: Control) -> dict[str, str]:
    """The source's, what was merged (earlier merges first), and what the model predicts where it is not obvious."""
    checkpoint = file_name(source.path)
    merged = [
        {
            "checkpoint": checkpoint,
            "file": file_name(lora.path),
            "sha256": sha256_of(lora.path, control),
            "unet": lora.unet,
            "text_encoder": lora.text_encoder,
            **({"blocks": lora.blocks.text} if lora.blocks is not None else {}),
        }
        for lora in loras
    ]
    names = [checkpoint, *(f"{file_name(lora.path)}:{lora.text_encoder:g}:{lora.unet:g}" for lora in loras)]
    kept = {key: value for key, value in source.metadata.items() if key != "modelspec.hash_sha256"}
    signs = read_signs(source, source.metadata, source.path)
    marks = prediction_metadata(signs) if signs.prediction == "v" or signs.zero_terminal_snr else {}
    history = json.dumps([*_merged_before(source), *merged])
    return {**kept, **marks, "modelspec.merged_from": ", ".join(names), MERGED_KEY: history}


def _merged_before(source: Checkpoint) -> list[Any]:
    with suppress(ValueError):
        earlier = json.loads(source.metadata.get(MERGED_KEY, "[]"))
        return earlier if isinstance(earlier, list) else []
    return []


def file_name(path: Path) -> str:
    """The name as text that every file can hold, whatever bytes the file system allows in it."""
    return path.resolve().name.encode("utf-8", "backslashreplace").decode("utf-8")
