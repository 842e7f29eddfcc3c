"""Merge LoRAs into a checkpoint, streamed tensor by tensor: never more than one tensor of it in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from loraloom.adapters.attach import AdapterSet, read_adapters
from loraloom.adapters.lora import Adapter
from loraloom.errors import AdapterError, OutputError
from loraloom.formats.adapter_file import AdapterTarget
from loraloom.formats.files import sha256_of
from loraloom.formats.tensors import TensorInfo, TensorSource, write_tensors
from loraloom.models.checkpoint import Checkpoint, open_checkpoint

__all__ = ["LoraWeight", "MergeReport", "merge", "merged_tensor"]

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}


@dataclass(frozen=True)
class LoraWeight:
    """A LoRA file and how strongly each part of it is applied."""

    path: Path
    unet: float = 1.0
    text_encoder: float = 1.0

    def weight(self, part: str) -> float:
        """The weight of ``unet``, ``text_encoder`` or ``text_encoder_2``."""
        return self.unet if part == "unet" else self.text_encoder


@dataclass(frozen=True)
class MergeReport:
    """What a merge did: the file, how many of its tensors changed, and layers applied per LoRA."""

    path: Path
    tensors: int
    changed: int
    layers: Mapping[Path, int]


Change = tuple[AdapterTarget, Adapter, float]


def merge(checkpoint: Path, loras: Sequence[LoraWeight], output: Path, *, precision: str | None = None) -> MergeReport:
    """Write ``checkpoint`` with the LoRAs merged in to ``output`` (``.safetensors`` or ``.ckpt``).

    ``precision``: fp16, bf16 or float for floating-point tensors; None keeps each tensor's own. Tensors that no LoRA
    changes are bit-equal to the source's (unless the precision differs). Nothing is written before every LoRA has
    been found to fit; the output appears only when it is complete.
    """
    if not loras:
        raise AdapterError(
            "no LoRA to merge", "name at least one: loraloom merge CHECKPOINT LORA:0.8 -o OUT.safetensors"
        )
    if output.suffix.lower() not in (".safetensors", ".ckpt"):
        raise OutputError(f"{output} is neither .safetensors nor .ckpt", "the suffix decides the format")
    source = open_checkpoint(checkpoint)
    if output.exists() and (output.samefile(checkpoint) or any(output.samefile(lora.path) for lora in loras)):
        raise OutputError(f"{output} is one of the inputs", "give the merged checkpoint a name of its own")
    targets = source.family.adapter_targets(source.infos)
    sets = {lora: read_adapters(lora.path, targets) for lora in loras}
    changes = _changes(sets)
    dtype = PRECISIONS[precision] if precision else None
    write_tensors(
        output,
        (_source(source, name, changes.get(name, ()), dtype) for name in source),
        metadata=_metadata(source, loras),
    )
    layers = {lora.path: len(adapters) for lora, adapters in sets.items()}
    return MergeReport(output, len(source), len(changes), layers)


def merged_tensor(weight: Tensor, changes: Sequence[Change]) -> Tensor:
    """``weight`` plus every change, computed in float32, in the dtype of ``weight``."""
    merged = weight.to(torch.float32, copy=True)
    for target, adapter, strength in changes:
        start, stop = target.rows or (0, merged.shape[0])
        rows = merged[start:stop]
        rows += (adapter.delta() * strength).reshape(rows.shape)
    return merged.to(weight.dtype)


def _changes(sets: Mapping[LoraWeight, AdapterSet]) -> dict[str, list[Change]]:
    """What happens to each tensor of the checkpoint; a weight of zero leaves it alone."""
    changes: dict[str, list[Change]] = {}
    for lora, adapters in sets.items():
        for target, adapter in adapters.items():
            strength = lora.weight(target.part)
            if strength != 0.0:
                changes.setdefault(target.tensor, []).append((target, adapter, strength))
    return changes


def _source(source: Checkpoint, name: str, changes: Sequence[Change], dtype: torch.dtype | None) -> TensorSource:
    info = source.info(name)
    wanted = dtype if dtype is not None and info.dtype.is_floating_point else info.dtype
    return TensorSource(name, TensorInfo(wanted, info.shape), partial(_load, source, name, changes, wanted))


def _load(source: Checkpoint, name: str, changes: Sequence[Change], dtype: torch.dtype) -> Tensor:
    weight = source[name]
    if not changes:
        return weight.to(dtype)
    # Rounding once, to the type that is written: a merge to float keeps what fp16 would lose.
    return merged_tensor(weight if dtype == weight.dtype else weight.to(torch.float32), changes).to(dtype)


def _metadata(source: Checkpoint, loras: Sequence[LoraWeight]) -> dict[str, str]:
    merged = [
        {
            "file": lora.path.name,
            "sha256": sha256_of(lora.path),
            "unet": lora.unet,
            "text_encoder": lora.text_encoder,
        }
        for lora in loras
    ]
    names = [source.path.name, *(f"{lora.path.name}:{lora.text_encoder:g}:{lora.unet:g}" for lora in loras)]
    kept = {key: value for key, value in source.metadata.items() if key != "modelspec.hash_sha256"}
    return {**kept, "modelspec.merged_from": ", ".join(names), "loraloom.merged": json.dumps(merged)}
