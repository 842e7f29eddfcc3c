"""Merge LoRAs into a checkpoint, streamed tensor by tensor: never more than one tensor of it in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraloom.actions import Action, Sentence
from loraloom.adapters.adapter import Adapter
from loraloom.adapters.attach import AdapterSet, read_adapters
from loraloom.adapters.strength import FULL, LoraStrength
from loraloom.control import Control, keep_going
from loraloom.errors import AdapterError, OutputError
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.files import sha256_of
from loraloom.formats.tensors import TensorInfo, TensorSource, is_finite, write_tensors
from loraloom.hardware import keep_freed_memory
from loraloom.models.checkpoint import Checkpoint, open_checkpoint
from loraloom.models.family import Family
from loraloom.models.names import is_extra
from loraloom.models.parts import check_is_weight, not_finite
from loraloom.models.prediction import prediction_metadata, read_signs
from loraloom.models.saving import saved_dtype

__all__ = [
    "MERGED_KEY",
    "PRECISIONS",
    "Change",
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
    """A LoRA file and how strongly it is applied."""

    path: Path
    strength: LoraStrength = FULL

    def for_family(self, family: Family | None) -> LoraWeight:
        """The same, with the numbers that presets of block weights have in a family (None: as in most)."""
        return replace(self, strength=self.strength.listed((family or Family).preset_blocks))

    def as_record(self, control: Control = keep_going) -> dict[str, object]:
        """The file, its checksum and the weights, as the metadata of a result tells them.

        ``control`` is heeded while the file is read for its checksum.
        """
        strength = self.strength
        return {
            "file": file_name(self.path),
            "sha256": sha256_of(self.path, control),
            "unet": strength.unet,
            "text_encoder": strength.text_encoder,
            **({"blocks": strength.blocks.text} if strength.blocks is not None else {}),
        }


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


@dataclass(frozen=True)
class Change:
    """What is added to a tensor, or to some of its rows: ``strength`` times what ``delta`` gives."""

    rows: tuple[int, int] | None
    """None for all of them."""
    delta: Callable[[Tensor | None], Tensor]
    """Given the rows in the layer's shape where it asks for them (``base_shape``), else None."""
    strength: float
    base_shape: tuple[int, ...] | None = None

    @classmethod
    def of_weight(cls, target: AdapterTarget, adapter: Adapter, strength: float) -> Change:
        """What an adapter does to the weight of its layer."""
        return cls(target.rows, adapter.delta, strength, target.shape if adapter.needs_base else None)

    @classmethod
    def of_bias(cls, target: AdapterTarget, bias: Tensor, strength: float) -> Change:
        """What an adapter does to the bias of its layer: ``bias`` (out,) is added, ``strength`` times."""
        return cls(target.rows, lambda base: bias, strength)


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
    loras = [lora.for_family(source.family) for lora in loras]

    merged = tuple(_counted(lora, adapters) for lora, adapters in zip(loras, sets, strict=True))
    for notice in _without_effect(loras, sets, merged):
        listener(notice)
    changes = _changes(loras, sets, source)

    # Whole numbers cannot be merged into: better said now than in the middle of a file of gigabytes.
    for name in changes:
        check_is_weight(source.path, name, source.info(name).dtype)
    dtype = PRECISIONS[precision] if precision else None
    result = _Merged(source, changes, dtype)

    write_tensors(
        output,
        result.sources(),
        metadata=_metadata(source, loras, control),
        extras=source.extras,
        listener=listener,
        control=control,
    )

    if result.broken:
        listener(kept_broken(source, result.broken))
    if len(result.changed) < len(changes):
        lost = f"{len(changes) - len(result.changed)} of {len(changes)} tensors came out unchanged"
        listener(Notice(f"{lost}: the change is zero, or too small for the precision of the file", "warning"))
    return MergeReport(output, len(source), len(result.changed), merged)


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
    for change in changes:
        where = change.rows or (0, weight.shape[0])
        base = None if change.base_shape is None else weight[slice(*where)].reshape(change.base_shape)
        delta = change.delta(base) * change.strength
        deltas[where] = deltas[where].add_(delta) if where in deltas else delta
    return deltas


def _counted(lora: LoraWeight, adapters: AdapterSet) -> MergedLora:
    applied = sum(lora.strength.of(target.name) != 0.0 for target, _ in adapters.items())
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
        parts, strength = adapters.parts(), lora.strength
        if not counted.applied:
            yield Notice(f"{lora.path} changes nothing: none of its layers has a weight other than 0", "warning")
        elif parts == ["unet"] and strength.text_encoder not in (0.0, strength.unet):
            yield Notice(f"{lora.path} holds no text encoder layers: its text encoder weight has no effect", "warning")
        elif "unet" not in parts and strength.unet not in (0.0, strength.text_encoder):
            yield Notice(f"{lora.path} holds no U-Net layers: its U-Net weight has no effect", "warning")


def _changes(loras: Sequence[LoraWeight], sets: Sequence[AdapterSet], source: Checkpoint) -> dict[str, list[Change]]:
    """What happens to each tensor of the checkpoint; a weight of zero leaves it alone.

    Raises AdapterError for a change of a bias that the checkpoint does not have.
    """
    changes: dict[str, list[Change]] = {}
    for lora, adapters in zip(loras, sets, strict=True):
        for target, adapter in adapters.items():
            strength = lora.strength.of(target.name)
            if strength == 0.0:
                continue
            changes.setdefault(target.tensor, []).append(Change.of_weight(target, adapter, strength))
            bias = adapter.bias_delta()
            if bias is None or not bool(bias.any()):
                continue
            if target.bias not in source:
                raise AdapterError(f"{lora.path} changes the bias of {target.name}, which has none in this checkpoint")
            changes.setdefault(target.bias, []).append(Change.of_bias(target, bias, strength))
    return changes


class _Merged:
    """The tensors of the result, each made when it is written, and what came of them."""

    def __init__(self, source: Checkpoint, changes: Mapping[str, Sequence[Change]], dtype: torch.dtype | None) -> None:
        self._source = source
        self._changes = changes
        self._dtype = dtype
        self.changed: set[str] = set()
        """Tensors that the LoRAs made a difference to."""
        self.broken: list[str] = []
        """Tensors with NaN that no LoRA changes."""

    def sources(self) -> list[TensorSource]:
        """What the writer takes, in the order of the checkpoint."""
        return [self._tensor_source(name) for name in self._source]

    def _tensor_source(self, name: str) -> TensorSource:
        info = self._source.info(name)
        wanted = saved_dtype(name, info, self._source.family, self._dtype)
        return TensorSource(name, TensorInfo(wanted, info.shape), partial(self._made, name, wanted))

    def _made(self, name: str, dtype: torch.dtype) -> Tensor:
        """One tensor. NaN in the checkpoint is an error where a LoRA changes it; elsewhere it is noted."""
        weight, changes = self._source[name], self._changes.get(name, ())
        if not is_extra(name) and weight.is_floating_point() and not is_finite(weight):
            if changes:
                raise not_finite(self._source.path, name, weight)
            self.broken.append(name)
            return weight.to(dtype)
        # Bit for bit: what no LoRA changes is not even converted.
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
            self.changed.add(name)
        return result


def kept_broken(source: Checkpoint, names: Sequence[str]) -> Notice:
    """What to say of tensors that hold NaN or infinite values, and that a merge leaves as they are."""
    several = f"{len(names)} tensors that this merge leaves alone hold"
    count = "1 tensor that this merge leaves alone holds" if len(names) == 1 else several
    return Notice(
        f"{source.path}: {count} NaN or infinite values, the first is {names[0]}: "
        "they are written as they are, and the model may paint only black",
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
    merged = [{"checkpoint": checkpoint, **lora.as_record(control)} for lora in loras]
    told = (f"{file_name(lora.path)}:{lora.strength.text_encoder:g}:{lora.strength.unet:g}" for lora in loras)
    names = [checkpoint, *told]
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
