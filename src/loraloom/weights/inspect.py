"""What any model file is, told from its content: a checkpoint of some family, a LoRA, or something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loraloom.errors import AdapterError, CheckpointError
from loraloom.formats.adapter_file import AdapterFile, read_adapter_file
from loraloom.formats.dialects import recognise
from loraloom.formats.tensors import TensorFile, open_tensors
from loraloom.models.checkpoint import open_checkpoint

__all__ = ["FileReport", "inspect_file"]


@dataclass(frozen=True)
class FileReport:
    """``kind``: checkpoint, LoRA or other; ``facts`` in reading order; ``metadata`` as stored."""

    path: Path
    kind: str
    title: str
    facts: Mapping[str, str]
    metadata: Mapping[str, str] = field(default_factory=dict)


def inspect_file(path: Path) -> FileReport:
    """Tell what a file (or a Diffusers folder) is. Raises FileError for one that cannot be read at all."""
    if path.is_dir():
        return _checkpoint_report(path, {})
    tensors = open_tensors(path)
    facts = _tensor_facts(tensors)
    if recognise(tensors) is not None:
        return _lora_report(path, facts)
    try:
        return _checkpoint_report(path, facts)
    except CheckpointError as error:
        return FileReport(path, "other", error.problem, {**facts, "hint": error.hint}, tensors.metadata)


def _tensor_facts(tensors: TensorFile) -> dict[str, str]:
    infos = [tensors.info(name) for name in tensors]
    types = Counter(str(info.dtype).removeprefix("torch.") for info in infos)
    values = sum(_count(info.shape) for info in infos)
    return {
        "container": tensors.kind,
        "size": f"{tensors.path.stat().st_size / 2**20:,.1f} MiB",
        "tensors": f"{len(infos):,} ({', '.join(f'{count:,} {name}' for name, count in types.most_common())})",
        "parameters": f"{values / 1e6:,.2f} M",
    }


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def _checkpoint_report(path: Path, facts: Mapping[str, str]) -> FileReport:
    checkpoint = open_checkpoint(path)
    prefixes = Counter(_part(name) for name in checkpoint)
    told = {
        "family": checkpoint.family.title,
        **facts,
        "parts": ", ".join(f"{part} {count:,}" for part, count in prefixes.most_common()),
        "LoRA layers": f"{len(checkpoint.family.adapter_targets(checkpoint.infos)):,} can be trained",
    }
    return FileReport(path, "checkpoint", checkpoint.family.title, told, checkpoint.metadata)


def _part(name: str) -> str:
    parts = {
        "model.diffusion_model.": "U-Net",
        "first_stage_model.": "VAE",
        "cond_stage_model.": "text encoder",
        "conditioner.embedders.": "text encoders",
        "model_ema.": "EMA",
    }
    return next((part for prefix, part in parts.items() if name.startswith(prefix)), "other")


def _lora_report(path: Path, facts: Mapping[str, str]) -> FileReport:
    try:
        file = read_adapter_file(path)
    except AdapterError as error:
        return FileReport(path, "LoRA", error.problem, {**facts, "hint": error.hint})
    ranks = Counter(layer["down"].shape[0] for layer in file.layers.values() if "down" in layer)
    alphas = Counter(
        float(layer["alpha"]) if "alpha" in layer else float(layer["down"].shape[0])
        for layer in file.layers.values()
        if "down" in layer
    )
    told = {
        "made for": _family_of(file),
        "dialect": file.dialect.title,
        "layers": f"{len(file.layers)} ({', '.join(f'{n} {part}' for part, n in _parts(file).items())})",
        "rank": ", ".join(f"{rank} ({count} layers)" for rank, count in ranks.most_common()),
        "alpha": ", ".join(f"{alpha:g} ({count} layers)" for alpha, count in alphas.most_common()),
        **facts,
    }
    for key, label in (
        ("modelspec.title", "title"),
        ("modelspec.trigger_phrase", "trigger words"),
        ("ss_sd_model_name", "trained on"),
        ("ss_steps", "steps"),
        ("ss_learning_rate", "learning rate"),
    ):
        if file.metadata.get(key):
            told[label] = file.metadata[key]
    return FileReport(path, "LoRA", f"a LoRA for {told['made for']}", told, file.metadata)


def _parts(file: AdapterFile) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for name in file.layers:
        is_unet = name.startswith(("lora_unet_", "unet."))
        second = name.startswith(("lora_te2_", "text_encoder_2."))
        counts["U-Net" if is_unet else "text encoder 2" if second else "text encoder"] += 1
    return dict(counts)


def _family_of(file: AdapterFile) -> str:
    """The family, from layer names and the width of the text that cross-attention reads."""
    names = list(file.layers)
    if any(name.startswith(("lora_te1_", "lora_te2_", "lora_unet_input_blocks", "text_encoder_2.")) for name in names):
        return "SDXL"
    for name, layer in file.layers.items():
        if name.endswith(("attn2_to_k", "attn2.to_k")) and "down" in layer:
            width = layer["down"].shape[1]
            return {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}.get(width, f"a model with text width {width}")
    return file.metadata.get("ss_base_model_version", "unknown")
