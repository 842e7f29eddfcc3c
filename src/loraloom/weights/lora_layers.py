"""The layers of a LoRA file as matrices, without a checkpoint: what combining and resizing LoRAs works on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraloom.actions import Action, Sentence
from loraloom.adapters.attach import match_layers
from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import AdapterFile, AdapterTarget
from loraloom.formats.adapter_kinds import is_pair, kind_of, title_of
from loraloom.formats.adapter_writer import OUTPUT_DIALECTS, Layers
from loraloom.formats.dialects import KOHYA, PEFT, Dialect
from loraloom.formats.lora_factors import LoraFactors, factors_of
from loraloom.formats.lora_family import family_name
from loraloom.models.family import FAMILIES, Family

__all__ = [
    "NamedLayers",
    "file_precision",
    "layer_of",
    "named_layers",
    "network_facts",
    "output_dialect",
    "related_metadata",
]

_EXPLODED = "the training of this LoRA exploded, or the file is damaged"


@dataclass(frozen=True)
class NamedLayers:
    """The layers of a file under kohya's names, whatever its dialect calls them.

    ``targets``, by the same names, and ``family`` say what they are; empty and None for a file in kohya's names whose
    layers belong to no known family.
    """

    layers: Layers
    targets: Mapping[str, AdapterTarget]
    family: Family | None


def named_layers(file: AdapterFile) -> NamedLayers:
    """The file's layers under kohya's names. Raises AdapterError for one in other names, of no known family."""
    told = family_name(file.layers, file.metadata)
    first_error: AdapterError | None = None
    for name in [told] if told else list(FAMILIES):
        family: Family = FAMILIES.load(name)()
        try:
            matched = match_layers(file, family.all_targets())
        except AdapterError as error:
            first_error = first_error or error
            continue
        layers = {target.name: file.layers[there] for target, there in matched.items()}
        return NamedLayers(layers, {target.name: target for target in matched}, family)
    if all(name.startswith(KOHYA.prefixes) for name in file.layers):
        return NamedLayers(file.layers, {}, None)
    assert first_error is not None
    raise first_error


def output_dialect(files: Sequence[AdapterFile], to: str | None) -> Dialect:
    """The dialect to write: what was asked for, else that of the files where all of them are diffusers', else kohya's.

    A LoRA that diffusers or PEFT wrote stays one; every other program reads kohya's names.
    """
    if to is not None:
        return OUTPUT_DIALECTS[to]
    return PEFT if all(file.dialect is PEFT for file in files) else KOHYA


def layer_of(roles: Mapping[str, Tensor], where: str, doing: str) -> LoraFactors:
    """A layer as two factors. Raises AdapterError for another kind than LoRA, or damaged tensors."""
    if not is_pair(roles):
        kind = title_of(roles) if kind_of(roles) else f"made of {', '.join(sorted(roles))}"
        raise AdapterError(
            f"{where} is {kind}; {doing} is exact for LoRA and LoCon only",
            Sentence("merge it into a checkpoint, then ", Action.EXTRACT_LORA, " a LoRA from that"),
        )
    factors = factors_of(roles, where)
    if factors.is_beyond_range():
        raise AdapterError(f"{where} has factors too large for {doing}: their product is beyond float32", _EXPLODED)
    return factors


def file_precision(file: AdapterFile) -> torch.dtype:
    """The widest type of the file's factors."""
    dtypes = {
        tensor.dtype
        for roles in file.layers.values()
        for role, tensor in roles.items()
        if role != "alpha" and tensor.is_floating_point()
    }
    return next((dtype for dtype in (torch.float32, torch.float16, torch.bfloat16) if dtype in dtypes), torch.float32)


def network_facts(ranks: Mapping[str, int], convolution_ranks: Mapping[str, int]) -> dict[str, str]:
    """``ss_network_*`` of a file with these ranks by layer and alpha equal to the rank, as sd-scripts says it."""
    plain, convolutions = set(ranks.values()), set(convolution_ranks.values())
    rank = str(plain.pop()) if len(plain) == 1 else "Dynamic"
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": rank, "ss_network_alpha": rank}
    if convolutions:
        told = str(convolutions.pop()) if len(convolutions) == 1 else "Dynamic"
        facts["ss_network_args"] = json.dumps({"conv_dim": told, "conv_alpha": told})
    return facts


_NOT_KEPT = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "ss_network_args")
_KEPT = ("ss_", "modelspec.", "loraloom.")


def related_metadata(file: AdapterFile, family: Family | None) -> dict[str, str]:
    """What a file says that stays true of one with other factors or other keys, and the family where it says none.

    Numbers of tensors (cloneofsimo's) and PEFT's configurations (alphas) are left out: both say how to read the file
    that they came from.
    """
    kept = {key: text for key, text in file.metadata.items() if key.startswith(_KEPT) and key not in _NOT_KEPT}
    if family is not None and "ss_base_model_version" not in kept:
        kept["ss_base_model_version"] = family.base_model_version
    return kept
