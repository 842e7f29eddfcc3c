"""LoRAs added up into one LoRA: exactly, by putting their factors side by side, or cut to a rank."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraloom.errors import AdapterError, OutputError
from loraloom.formats.adapter_file import AdapterFile, layer_keys, read_adapter_file, write_adapter_file
from loraloom.formats.dialects import is_text_layer, kind_of
from loraloom.formats.files import sha256_of
from loraloom.formats.lora_family import family_name
from loraloom.weights.lora_layers import LoraLayer, file_precision, layer_of, network_facts
from loraloom.weights.low_rank import Factors, factors_of_product
from loraloom.weights.merge import PRECISIONS, LoraWeight, file_name, is_same_or_inside

__all__ = ["COMBINED_KEY", "CombineReport", "combine_loras"]

COMBINED_KEY = "loraloom.combined"
"""Metadata of a LoRA made of others: a JSON list with file name, SHA-256 and weights of each."""


@dataclass(frozen=True)
class CombineReport:
    """``ranks`` by layer; ``residuals``: relative Frobenius norm of what was cut, by layer; ``residual`` of all."""

    path: Path
    ranks: Mapping[str, int]
    residuals: Mapping[str, float]
    residual: float


def combine_loras(
    loras: Sequence[LoraWeight],
    output: Path,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    precision: str | None = None,
) -> CombineReport:
    """Write one LoRA whose change is the weighted sum of the others'.

    Without ``rank`` the ranks add up and the sum is exact (up to the precision of the file); with it every layer is the
    best approximation of that rank (``conv_rank`` for kernels larger than 1x1, else ``rank``), found by QR and an SVD
    no larger than the sum of the ranks. Differences of whole weights and normalizations are added; other kinds than
    LoRA and LoCon are an AdapterError, as is a mix of families or of naming schemes.
    """
    if len(loras) < 1:
        raise AdapterError("no LoRA to combine", "name at least two")
    if output.suffix.lower() != ".safetensors":
        raise OutputError(f"{output} does not end in .safetensors", "LoRAs are written as .safetensors")
    for value, option in ((rank, "rank"), (conv_rank, "conv rank")):
        if value is not None and value < 1:
            raise AdapterError(f"{option} {value} is below 1")
    if any(is_same_or_inside(output, lora.path) for lora in loras):
        raise OutputError(f"{output} is one of the inputs", "give the result a name of its own")
    files = [read_adapter_file(lora.path) for lora in loras]
    sdxl = _check_alike(files)
    names = list(dict.fromkeys(name for file in files for name in file.layers))
    limits = (rank, conv_rank if conv_rank is not None else rank)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    convolution_ranks: dict[str, int] = {}
    residuals: dict[str, float] = {}
    whole = left = 0.0
    for name in names:
        holders = [(lora, file) for lora, file in zip(loras, files, strict=True) if name in file.layers]
        weighted = [(file, _weight(lora, name, sdxl=sdxl)) for lora, file in holders]
        weighted = [(file, weight) for file, weight in weighted if weight]
        if not weighted:
            continue
        if kind_of(weighted[0][0].layers[name]) in ("full", "norm"):
            roles = _summed(name, weighted)
        else:
            layers = [(layer_of(file, name, "combining"), weight) for file, weight in weighted]
            _check_shapes(name, layers, [file for file, _ in weighted])
            layer, limit = layers[0][0], limits[layers[0][0].is_convolution]
            down, up = _side_by_side(layers)
            if limit is not None and limit < len(down):
                factors = factors_of_product(up, down)
                residuals[name] = factors.residual(limit)
                down, up = factors.pair(limit)
                whole, left = _add_up(whole, left, factors, residuals[name])
            elif limit is not None:
                residuals[name] = 0.0
                whole += float(_product_norm(up, down)) ** 2
            roles = layer.roles(down, up)
            (convolution_ranks if layer.is_convolution else ranks)[name] = len(down)
        tensors |= layer_keys(name, roles, files[0].dialect)
    if not tensors:
        raise AdapterError("nothing would be left: no layer has a weight other than 0", "check the weights")
    dtype = PRECISIONS[precision] if precision else _widest(files)
    metadata = _metadata(loras, files, network_facts(ranks, convolution_ranks))
    write_adapter_file(output, tensors, metadata=metadata, dtype=dtype)
    return CombineReport(output, ranks | convolution_ranks, residuals, math.sqrt(left / whole) if whole else 0.0)


def _add_up(whole: float, left: float, factors: Factors, residual: float) -> tuple[float, float]:
    return whole + factors.norm**2, left + (residual * factors.norm) ** 2


def _product_norm(up: Tensor, down: Tensor) -> Tensor:
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt()


def _check_alike(files: Sequence[AdapterFile]) -> bool:
    """AdapterError for LoRAs of two families or naming schemes; whether they are SDXL's."""
    first = files[0]
    families = {str(file.path): family_name(file.layers, file.metadata) for file in files}
    known = {path: family for path, family in families.items() if family}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{path} is for {family}" for path, family in known.items())
        raise AdapterError(f"the LoRAs are for different models: {told}", "only LoRAs of one family can be added up")
    for file in files[1:]:
        if file.dialect is not first.dialect or _scheme(file) + _scheme(first) in ("saidiffusers", "diffuserssai"):
            raise AdapterError(
                f"{file.path} and {first.path} name their layers differently",
                "bring both to one form first: loraloom convert",
            )
    return "sdxl" in known.values()


def _scheme(file: AdapterFile) -> str:
    """Whose names the U-Net's layers have; empty for a file without."""
    for name in file.layers:
        if name.startswith(("lora_unet_input_blocks", "lora_unet_output_blocks", "lora_unet_middle_block")):
            return "sai"
        if name.startswith(("lora_unet_down_blocks", "lora_unet_up_blocks", "lora_unet_mid_block")):
            return "diffusers"
    return ""


def _weight(lora: LoraWeight, name: str, *, sdxl: bool) -> float:
    weight = lora.text_encoder if is_text_layer(name) else lora.unet
    return weight * (lora.blocks.of(name, sdxl=sdxl) if lora.blocks is not None else 1.0)


def _check_shapes(name: str, layers: Sequence[tuple[LoraLayer, float]], files: Sequence[AdapterFile]) -> None:
    first = layers[0][0]
    for (layer, _), file in zip(layers, files, strict=True):
        if (len(layer.up), layer.down.shape[1]) != (len(first.up), first.down.shape[1]):
            raise AdapterError(
                f"layer {name} is {len(layer.up)} x {layer.down.shape[1]} in {file.path} but "
                f"{len(first.up)} x {first.down.shape[1]} in {files[0].path}",
                "the LoRAs were made for different models",
            )


def _side_by_side(layers: Sequence[tuple[LoraLayer, float]]) -> tuple[Tensor, Tensor]:
    """Factors whose product is the weighted sum; the scale and the weight are shared evenly between the two."""
    downs, ups = [], []
    for layer, weight in layers:
        factor = layer.scale * weight
        root = math.sqrt(abs(factor))
        downs.append(layer.down * root)
        ups.append(layer.up * math.copysign(root, factor))
    return torch.cat(downs), torch.cat(ups, dim=1)


def _summed(name: str, weighted: Sequence[tuple[AdapterFile, float]]) -> dict[str, Tensor]:
    """Differences of whole weights, biases and normalizations add up as they are."""
    total: dict[str, Tensor] = {}
    kind = kind_of(weighted[0][0].layers[name])
    for file, weight in weighted:
        if kind_of(file.layers[name]) != kind:
            raise AdapterError(f"{file.path}: layer {name} is of another kind than in {weighted[0][0].path}")
        for role, tensor in file.layers[name].items():
            change = tensor.float() * weight
            if role in total and total[role].shape != change.shape:
                raise AdapterError(f"{file.path}: {role} of layer {name} has another shape than in the others")
            total[role] = total[role] + change if role in total else change
    return total


def _widest(files: Sequence[AdapterFile]) -> torch.dtype:
    found = {file_precision(file) for file in files}
    return found.pop() if len(found) == 1 else torch.float32


def _metadata(loras: Sequence[LoraWeight], files: Sequence[AdapterFile], facts: Mapping[str, str]) -> dict[str, str]:
    """What the first says of its model, the recipe, and no claim about a training that was not this file's."""
    kept = {
        key: files[0].metadata[key]
        for key in ("ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.sai_model_spec")
        if key in files[0].metadata
    }
    triggers = dict.fromkeys(_triggers(files))
    recipe = [
        {
            "file": file_name(lora.path),
            "sha256": sha256_of(lora.path),
            "unet": lora.unet,
            "text_encoder": lora.text_encoder,
            **({"blocks": lora.blocks.text} if lora.blocks is not None else {}),
        }
        for lora in loras
    ]
    told = ", ".join(file_name(lora.path) for lora in loras)
    return {
        **kept,
        **facts,
        **({"modelspec.trigger_phrase": ", ".join(triggers)} if triggers else {}),
        "modelspec.merged_from": told,
        COMBINED_KEY: json.dumps(recipe),
    }


def _triggers(files: Sequence[AdapterFile]) -> Iterator[str]:
    for file in files:
        if phrase := file.metadata.get("modelspec.trigger_phrase", "").strip():
            yield phrase
