"""A LoRA made smaller: every layer cut to a rank, or to the rank that its singular values ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from loraloom.errors import AdapterError, OutputError
from loraloom.formats.adapter_file import layer_keys, read_adapter_file, write_adapter_file
from loraloom.weights.lora_layers import file_precision, layer_of, network_facts
from loraloom.weights.low_rank import Criterion, chosen_rank, factors_of_product
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
    """What a resize did; ``residual``: relative Frobenius norm of all that was cut away."""

    path: Path
    layers: tuple[ResizedLayer, ...]
    residual: float


def resize_lora(
    lora: Path,
    output: Path,
    *,
    rank: int,
    conv_rank: int | None = None,
    criterion: Criterion | None = None,
    precision: str | None = None,
) -> ResizeReport:
    """Write ``lora`` with at most ``rank`` in every layer (``conv_rank`` for kernels larger than 1x1, else ``rank``).

    Each layer is the best approximation of its rank in the Frobenius norm. ``criterion`` chooses ranks below the limit
    layer by layer. The change of the weights stays what it was (the scale goes into the factors, alpha equals the
    rank); a rank is never raised. Raises AdapterError for kinds other than LoRA and LoCon, and damaged tensors.
    """
    if rank < 1 or (conv_rank is not None and conv_rank < 1):
        raise AdapterError("a rank is at least 1")
    if output.suffix.lower() != ".safetensors":
        raise OutputError(f"{output} does not end in .safetensors", "LoRAs are written as .safetensors")
    if is_same_or_inside(output, lora):
        raise OutputError(f"{output} is the input", "give the result a name of its own")
    file = read_adapter_file(lora)
    tensors: dict[str, Tensor] = {}
    told = []
    ranks: tuple[dict[str, int], dict[str, int]] = ({}, {})
    whole = lost = 0.0
    for name in file.layers:
        layer = layer_of(file, name, "resizing")
        limit = conv_rank if layer.is_convolution and conv_rank is not None else rank
        factors = factors_of_product(layer.up * layer.scale, layer.down)
        chosen = chosen_rank(factors.values, limit, criterion)
        residual = factors.residual(chosen)
        down, up = factors.pair(chosen)
        tensors |= layer_keys(name, layer.roles(down, up), file.dialect)
        ranks[layer.is_convolution][name] = chosen
        told.append(ResizedLayer(name, layer.rank, chosen, 1 - residual**2))
        whole, lost = whole + factors.norm**2, lost + (residual * factors.norm) ** 2
    metadata = {**_kept(file.metadata), **network_facts(*ranks), "loraloom.resized_from": file_name(lora)}
    dtype = PRECISIONS[precision] if precision else file_precision(file)
    write_adapter_file(output, tensors, metadata=metadata, dtype=dtype)
    return ResizeReport(output, tuple(told), math.sqrt(lost / whole) if whole else 0.0)


def _kept(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file whose factors are others: without hashes and PEFT's record of alphas."""
    gone = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "lora_adapter_metadata", "ss_network_args")
    return {key: value for key, value in metadata.items() if key not in gone}
