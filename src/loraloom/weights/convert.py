"""A LoRA file in another dialect: the same change of the same layers, under the names that another program reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraloom.adapters.attach import match_layers
from loraloom.errors import AdapterError, OutputError
from loraloom.formats.adapter_file import AdapterFile, AdapterTarget, layer_keys, read_adapter_file, write_adapter_file
from loraloom.formats.dialects import kind_of, title_of
from loraloom.formats.lora_family import family_name
from loraloom.formats.tensors import write_tensors
from loraloom.models.family import FAMILIES, Family
from loraloom.weights.lora_layers import file_precision, layer_of, network_facts
from loraloom.weights.merge import PRECISIONS, is_same_or_inside

__all__ = ["ConvertReport", "convert_lora"]

_KEPT_METADATA = ("ss_", "modelspec.", "loraloom.")


@dataclass(frozen=True)
class ConvertReport:
    """``source``: the dialect that was read; ``beside``: files read with it; ``words`` are in ``embeddings``."""

    path: Path
    source: str
    family: str
    layers: int
    beside: tuple[Path, ...]
    words: tuple[str, ...]
    embeddings: tuple[Path, ...]
    """Where the textual-inversion vectors are: the file itself (kohya), a file for each word beside it (diffusers)."""


def convert_lora(lora: Path, output: Path, *, to: str = "kohya", precision: str | None = None) -> ConvertReport:
    """Write a LoRA of any dialect as ``to``: ``kohya`` or ``diffusers`` (PEFT's names).

    Layers keep their values. For diffusers alpha is multiplied into the factors, since most versions of it take the
    rank for alpha; it reads LoRA and DoRA, so other kinds are an AdapterError. ``precision`` left out: the file's own.
    """
    if output.suffix.lower() != ".safetensors":
        raise OutputError(f"{output} does not end in .safetensors", "LoRAs are written as .safetensors")
    file = read_adapter_file(lora)
    if any(is_same_or_inside(output, path) for path in (lora, *file.beside)):
        raise OutputError(f"{output} is one of the inputs", "give the result a name of its own")
    family, matched = _matched(file)
    tensors: dict[str, Tensor] = {}
    ranks: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for target, name in matched.items():
        tensors |= _KEYS[to](file, target, name)
        down = file.layers[name].get("down")
        if down is not None:
            ranks[target.kind == "conv3x3"][target.name] = len(down)
    dtype = file_precision(file) if precision is None else PRECISIONS[precision]
    metadata = {key: value for key, value in file.metadata.items() if key.startswith(_KEPT_METADATA)}
    if "ss_base_model_version" not in metadata:
        metadata["ss_base_model_version"] = family.base_model_version
    if "ss_network_dim" not in metadata and (ranks[0] or ranks[1]):
        metadata |= network_facts(*ranks)
    words = tuple(file.embeddings)
    beside: dict[Path, dict[str, Tensor]] = {}
    if to == "kohya":
        tensors |= _bundled(file.embeddings)
    else:
        for number, (word, places) in enumerate(file.embeddings.items(), start=1):
            path = output.with_name(f"{output.stem}{f'-{number}' if len(words) > 1 else ''}.ti.safetensors")
            beside[path] = {word if place == "any" else place: vectors.clone() for place, vectors in places.items()}
    write_adapter_file(output, tensors, metadata=metadata, dtype=dtype)
    for path, vectors in beside.items():
        write_tensors(path, vectors)
    embeddings = tuple(beside) or ((output,) if words else ())
    return ConvertReport(output, file.dialect.title, family.title, len(matched), file.beside, words, embeddings)


def _matched(file: AdapterFile) -> tuple[Family, dict[AdapterTarget, str]]:
    """The family whose layers the file names, and which is which."""
    told = family_name(file.layers, file.metadata)
    names = [told] if told else list(FAMILIES)
    first_error: AdapterError | None = None
    for name in names:
        family: Family = FAMILIES.load(name)()
        try:
            return family, match_layers(file, family.all_targets())
        except AdapterError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _kohya_keys(file: AdapterFile, target: AdapterTarget, name: str) -> dict[str, Tensor]:
    roles = dict(file.layers[name])
    if kind_of(roles) is None:
        raise AdapterError(f"{file.path}: layer {name} is made of {', '.join(sorted(roles))}", "the file is damaged")
    if {"down", "up"} <= set(roles):
        layer = layer_of(_plain(file, name), name, "converting")
        roles["alpha"] = torch.tensor(layer.scale * layer.rank)
        if target.kind != "linear" and "mid" not in roles:
            roles["down"] = roles["down"].reshape(layer.rank, -1, *(layer.kernel or (1, 1)))
            roles["up"] = roles["up"].reshape(-1, layer.rank, 1, 1)
    return layer_keys(target.name, roles)


def _diffusers_keys(file: AdapterFile, target: AdapterTarget, name: str) -> dict[str, Tensor]:
    magnitude = file.layers[name].get("dora_scale")
    plain = _plain(file, name)
    if kind_of(plain.layers[name]) != "lora":
        raise AdapterError(
            f"{file.path}: layer {name} is {title_of(file.layers[name])}; diffusers reads LoRA and DoRA only",
            "merge it into a checkpoint, then `loraloom extract` a LoRA from that",
        )
    layer = layer_of(plain, name, "converting")
    ones = tuple(1 for _ in target.shape[2:])
    kernel = layer.kernel if target.kind == "conv3x3" else ones
    start = f"{target.part}.{target.diffusers_name}"
    keys = {
        f"{start}.lora_A.weight": layer.down.reshape(layer.rank, -1, *kernel),
        f"{start}.lora_B.weight": (layer.up * layer.scale).reshape(-1, layer.rank, *ones),
    }
    if magnitude is not None:
        if magnitude.shape[0] == 1:
            raise AdapterError(
                f"{file.path}: layer {name} is a DoRA with a length for each input channel; PEFT has them for outputs",
                "merge it into a checkpoint, then `loraloom extract` a LoRA from that",
            )
        shape = (-1,) if target.kind == "linear" else (1, -1, 1, 1)
        # With .weight: transformers reads no other spelling, PEFT both.
        keys[f"{start}.lora_magnitude_vector.weight"] = magnitude.float().reshape(shape)
    return keys


def _plain(file: AdapterFile, name: str) -> AdapterFile:
    """The layer alone, without DoRA's lengths: what :func:`layer_of` reads."""
    roles = {role: tensor for role, tensor in file.layers[name].items() if role != "dora_scale"}
    return AdapterFile(file.path, file.dialect, {name: roles}, {})


_KEYS = {"kohya": _kohya_keys, "diffusers": _diffusers_keys}


def _bundled(embeddings: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The vectors as the web UI (1.6 and later) finds them in a LoRA file."""
    keys = {}
    for word, places in embeddings.items():
        for place, vectors in places.items():
            rows = vectors[None] if vectors.ndim == 1 else vectors
            inside = "string_to_param.*" if place == "any" else place
            keys[f"bundle_emb.{word}.{inside}"] = rows.clone()
    return keys
