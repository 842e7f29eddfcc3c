"""LoRAs added up into one LoRA: exactly, by putting their factors side by side, or cut to a rank."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from loraloom.actions import Action, Sentence
from loraloom.control import Control, each_of, keep_going
from loraloom.errors import AdapterError, OutputError
from loraloom.events import Listener, ignore
from loraloom.formats.adapter_file import AdapterFile, AdapterTarget, read_adapter_file
from loraloom.formats.adapter_kinds import kind_of, layout_of, title_of
from loraloom.formats.adapter_writer import WrittenLora, check_output, write_lora
from loraloom.formats.lora_factors import LoraFactors, product_norm
from loraloom.models.family import Family
from loraloom.weights.lora_layers import (
    NamedLayers,
    file_precision,
    layer_of,
    named_layers,
    network_facts,
    output_dialect,
    related_metadata,
)
from loraloom.weights.low_rank import Residual, factors_of_product
from loraloom.weights.merge import PRECISIONS, LoraWeight, file_name, is_same_or_inside

__all__ = ["COMBINED_KEY", "CombineReport", "combine_loras"]

COMBINED_KEY = "loraloom.combined"
"""Metadata of a LoRA made of others: a JSON list with file name, SHA-256 and weights of each."""


@dataclass(frozen=True)
class CombineReport:
    """``ranks`` by layer; ``residuals``: relative Frobenius norm of what was cut, by layer; ``residual`` of all.

    ``words``: those of textual inversion that the result brings; ``limit``: the rank that was asked for.
    """

    written: WrittenLora
    ranks: Mapping[str, int]
    residuals: Mapping[str, float]
    residual: float
    words: tuple[str, ...]
    limit: int | None = None

    @property
    def path(self) -> Path:
        """The file that was written."""
        return self.written.path


@dataclass(frozen=True)
class _Part:
    """One of the LoRAs: its file, its layers under kohya's names, and how strongly it counts."""

    lora: LoraWeight
    file: AdapterFile
    named: NamedLayers

    def where(self, layer: str) -> str:
        return f"{self.lora.path}: layer {layer}"


def combine_loras(
    loras: Sequence[LoraWeight],
    output: Path,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    precision: str | None = None,
    to: str | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> CombineReport:
    """Write one LoRA whose change is the weighted sum of the others'.

    Without ``rank`` the ranks add up and the sum is exact (up to the precision of the file); with it every layer is the
    best approximation of that rank (``conv_rank`` for kernels larger than 1x1, else ``rank``), found by QR and an SVD
    no larger than the sum of the ranks. The files may be of different dialects; ``to`` says whose names the result
    has (None: diffusers' where all files are, else kohya's). Differences of whole weights and normalizations are added,
    and words of textual inversion go along; other kinds than LoRA and LoCon are an AdapterError, as are two families
    and one word with two meanings. ``control`` is heeded between two layers, of which ``listener`` hears.
    Raises OutputError for an output that is one of the files.
    """
    parts = _opened(loras, output, rank, conv_rank)
    files = [part.file for part in parts]
    limits = (rank, conv_rank if conv_rank is not None else rank)
    names = dict.fromkeys(name for part in parts for name in part.named.layers)
    found = {name: _combined_layer(name, parts, limits) for name in each_of("layers", names, listener, control)}
    layers = {name: layer for name, layer in found.items() if layer is not None}
    if not layers:
        raise AdapterError("nothing would be left: no layer has a weight other than 0", "check the weights")

    # sd-scripts writes the ranks of 1x1 and of larger kernels apart.
    plain, convolutions = (
        {name: layer.rank for name, layer in layers.items() if layer.rank and layer.is_convolution == wanted}
        for wanted in (False, True)
    )
    targets: dict[str, AdapterTarget] = {}
    for part in parts:
        targets |= part.named.targets
    words = _words(files)
    written = write_lora(
        output,
        {name: layer.roles for name, layer in layers.items()},
        metadata=_metadata(parts, network_facts(plain, convolutions)),
        dtype=PRECISIONS[precision] if precision else _widest(files),
        dialect=output_dialect(files, to),
        targets=targets,
        words=words,
        source="the sum",
        control=control,
    )

    residuals = {name: layer.residual for name, layer in layers.items() if layer.residual is not None}
    cut = Residual.of((layers[name].norm, residual) for name, residual in residuals.items())
    return CombineReport(written, plain | convolutions, residuals, cut.relative, tuple(words), rank)


def _opened(loras: Sequence[LoraWeight], output: Path, rank: int | None, conv_rank: int | None) -> list[_Part]:
    """The LoRAs, weighed by the blocks of their family. AdapterError or OutputError for what makes no sum.

    Nothing is computed before.
    """
    if len(loras) < 1:
        raise AdapterError("no LoRA to combine", "name at least two")
    check_output(output)
    for value, option in ((rank, "rank"), (conv_rank, "conv rank")):
        if value is not None and value < 1:
            raise AdapterError(f"{option} {value} is below 1")

    files = [read_adapter_file(lora.path) for lora in loras]
    # The other parts of a LoRA of several files are read with it, so they are inputs as well.
    inputs = [path for lora, file in zip(loras, files, strict=True) for path in (lora.path, *file.beside)]
    if any(is_same_or_inside(output, path) for path in inputs):
        raise OutputError(f"{output} is one of the inputs", "give the result a name of its own")

    parts = [_Part(lora, file, named_layers(file)) for lora, file in zip(loras, files, strict=True)]
    family = _check_one_family(parts)
    return [replace(part, lora=part.lora.for_family(family)) for part in parts]


@dataclass(frozen=True)
class _Layer:
    """A layer of the sum: its tensors by role, and, where it has factors, what became of them."""

    roles: Mapping[str, Tensor]
    rank: int = 0
    is_convolution: bool = False
    norm: float = 0.0
    """Frobenius norm of the whole sum; found only where there is a limit."""
    residual: float | None = None
    """Relative Frobenius norm of what was cut away; None where there is no limit."""


def _combined_layer(name: str, parts: Sequence[_Part], limits: tuple[int | None, int | None]) -> _Layer | None:
    """A layer of the sum, cut to the limit of layers or of convolutions; None where nothing has a weight there."""
    holders = [(part, part.lora.strength.of(name)) for part in parts if name in part.named.layers]
    weighted = [(part, weight) for part, weight in holders if weight]
    if not weighted:
        return None

    layout = layout_of(weighted[0][0].named.layers[name])
    if layout is not None and layout.adds_up:  # whole weights, biases, normalizations
        return _Layer(_summed(name, weighted))

    layers = [(layer_of(part.named.layers[name], part.where(name), "combining"), weight) for part, weight in weighted]
    _check_shapes(name, layers, [part.file for part, _ in weighted])
    first = layers[0][0]
    limit = limits[first.is_convolution]
    down, up = _side_by_side(layers)
    if limit is None:
        return _Layer(first.roles(down, up), len(down), first.is_convolution)
    if limit >= len(down):
        return _Layer(first.roles(down, up), len(down), first.is_convolution, product_norm(up, down), 0.0)

    factors = factors_of_product(up, down)
    down, up = factors.pair(limit)
    residual = factors.residual(limit)
    return _Layer(first.roles(down, up), len(down), first.is_convolution, factors.norm, residual)


def _words(files: Sequence[AdapterFile]) -> dict[str, Mapping[str, Tensor]]:
    """The words of all files. AdapterError for one that two of them bring with different vectors."""
    words: dict[str, Mapping[str, Tensor]] = {}
    origin: dict[str, Path] = {}
    for file in files:
        for word, places in file.embeddings.items():
            if word in words and not _are_equal(words[word], places):
                raise AdapterError(
                    f"{origin[word]} and {file.path} both contain the embedding {word!r}, with different vectors",
                    "one file can hold it only once: leave one of the two out",
                )
            words[word], origin[word] = places, file.path
    return words


def _are_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[place], second[place]) for place in first)


def _check_one_family(parts: Sequence[_Part]) -> Family | None:
    """The family of the LoRAs, None where it is unknown; AdapterError for LoRAs of two."""
    families = {str(part.lora.path): part.named.family for part in parts}
    known = {path: family for path, family in families.items() if family is not None}

    # Adding up layers of two models by name would make a file that fits neither.
    if len({family.name for family in known.values()}) > 1:
        told = ", ".join(f"{path} is for {family.title}" for path, family in known.items())
        raise AdapterError(f"the LoRAs are for different models: {told}", "only LoRAs of one family can be added up")
    if known and len(known) < len(families):
        unknown = next(path for path in families if path not in known)
        raise AdapterError(
            f"the LoRAs are for different models: the layers of {unknown} belong to no known family",
            "only LoRAs of one family can be added up",
        )

    return next(iter(known.values()), None)


def _check_shapes(name: str, layers: Sequence[tuple[LoraFactors, float]], files: Sequence[AdapterFile]) -> None:
    first = layers[0][0]
    for (layer, _), file in zip(layers, files, strict=True):
        if (len(layer.up), layer.down.shape[1]) != (len(first.up), first.down.shape[1]):
            raise AdapterError(
                f"layer {name} is {len(layer.up)} x {layer.down.shape[1]} in {file.path} but "
                f"{len(first.up)} x {first.down.shape[1]} in {files[0].path}",
                "the LoRAs were made for different models",
            )


def _side_by_side(layers: Sequence[tuple[LoraFactors, float]]) -> tuple[Tensor, Tensor]:
    """Factors whose product is the weighted sum; the scale and the weight are shared evenly between the two."""
    downs, ups = [], []
    for layer, weight in layers:
        factor = layer.scale * weight
        root = math.sqrt(abs(factor))
        downs.append(layer.down * root)
        ups.append(layer.up * math.copysign(root, factor))
    return torch.cat(downs), torch.cat(ups, dim=1)


def _summed(name: str, weighted: Sequence[tuple[_Part, float]]) -> dict[str, Tensor]:
    """Differences of whole weights, biases and normalizations add up as they are."""
    total: dict[str, Tensor] = {}
    first = weighted[0][0]
    kind = kind_of(first.named.layers[name])
    for part, weight in weighted:
        roles = part.named.layers[name]
        if kind_of(roles) != kind:
            raise AdapterError(
                f"{part.where(name)} is {title_of(roles)}, but {title_of(first.named.layers[name])} in "
                f"{first.lora.path}",
                Sentence(
                    "only layers of one kind can be added up: merge both into a checkpoint, then ",
                    Action.EXTRACT_LORA,
                    " a LoRA from that",
                ),
            )
        for role, tensor in roles.items():
            change = tensor.float() * weight
            if role in total and total[role].shape != change.shape:
                raise AdapterError(f"{part.where(name)}: {role} has another shape than in the others")
            total[role] = total[role] + change if role in total else change
    return total


def _widest(files: Sequence[AdapterFile]) -> torch.dtype:
    found = {file_precision(file) for file in files}
    return found.pop() if len(found) == 1 else torch.float32


def _metadata(parts: Sequence[_Part], facts: Mapping[str, str]) -> dict[str, str]:
    """What the first says of its model, the recipe, and no claim about a training that was not this file's."""
    loras, files = [part.lora for part in parts], [part.file for part in parts]
    told_by_first = related_metadata(files[0], parts[0].named.family)
    kept: dict[str, str] = {
        key: told_by_first[key]
        for key in ("ss_base_model_version", "ss_v2", "modelspec.architecture", "modelspec.sai_model_spec")
        if key in told_by_first
    }
    triggers = dict.fromkeys(_triggers(files))
    recipe = [lora.as_record() for lora in loras]
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
