"""What PEFT keeps beside the tensors: alphas and ranks by layer, in a configuration that travels with the file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraloom.errors import AdapterError, FileError
from loraloom.formats.adapter_kinds import Shaped, inner_roles, is_pair, layout_of, layouts, rank_of
from loraloom.formats.entries import show
from loraloom.plain_data import is_slow_expression
from loraloom.reading import read_text

__all__ = ["PeftScale", "add_peft_scales", "peft_configs", "peft_scales"]

_DAMAGED = "the configuration is damaged"
_LARGEST = 3.4e38
"""float32 holds it."""
_MOST_PATTERNS = 4000


@dataclass(frozen=True)
class PeftScale:
    """What a configuration says about one layer: its ``alpha``, or a ``factor`` on all of its change.

    The factor is for Kronecker products whose sides are whole: nothing in the file has their rank, but PEFT divides by
    it all the same.
    """

    alpha: float | None = None
    factor: float | None = None


def peft_scales(
    path: Path, layers: Mapping[str, Mapping[str, Shaped]], metadata: Mapping[str, str]
) -> dict[str, PeftScale]:
    """What PEFT's configuration says about the layers with PEFT's names; nothing about those that have an alpha or need
    none.

    Only names and shapes are looked at. Raises AdapterError, without the name of the file, for patterns that cannot be
    used and for alphas and ranks that are not numbers.
    """
    configs = peft_configs(path, metadata)
    found = {}
    for name, roles in layers.items():
        config = configs.get(name.partition(".")[0], configs.get(""))
        if config is not None and _is_peft(name) and "alpha" not in roles:
            scale = _scale(name, roles, config)
            if scale is not None:
                found[name] = scale
    return found


def add_peft_scales(path: Path, layers: Mapping[str, dict[str, torch.Tensor]], metadata: Mapping[str, str]) -> None:
    """Give layers with PEFT's names the alpha, and magnitudes of DoRA the axis, that PEFT means; in place.

    Without a configuration alpha equals the rank. Raises AdapterError as :func:`peft_scales` does.
    """
    scales = peft_scales(path, layers, metadata)
    of_rows = [layout.peft_rows for layout in layouts().values() if layout.peft_rows]
    for name, roles in layers.items():
        for role in of_rows if _is_peft(name) else ():
            if role in roles:  # (out,), or (1, out, 1, 1) of a convolution
                roles[role] = roles[role].reshape(-1, 1, *(1 for _ in roles[role].shape[2:]))
        scale = scales.get(name, PeftScale())
        if scale.alpha is not None:
            roles["alpha"] = torch.tensor(scale.alpha)
        if scale.factor is not None:
            scaled = _scaled_role(roles)
            roles[scaled] = roles[scaled].float() * scale.factor


def _is_peft(name: str) -> bool:
    """Whether a layer's name is one of diffusers' and PEFT's, which have dots."""
    return "." in name and not name.startswith(("diffusion_model.", "text_encoders."))


def _scale(name: str, roles: Mapping[str, Shaped], config: Mapping[str, Any]) -> PeftScale | None:
    _check_start(config)
    told = _by_pattern(config, "alpha_pattern", name, config.get("lora_alpha", config.get("alpha")))
    if told is None:
        return None
    alpha = _number(told, f"the alpha of layer {name}")
    rank = rank_of(roles)
    if rank is not None:
        stabilized = bool(config.get("use_rslora")) and is_pair(inner_roles(roles))
        alpha *= math.sqrt(rank) if stabilized else 1.0
        return PeftScale(alpha=_number(alpha, f"the alpha of layer {name}"))
    told = _by_pattern(config, "rank_pattern", name, config.get("r"))
    if _scaled_role(roles) not in roles or told is None:
        return None
    divisor = _number(told, f"the rank of layer {name}")
    return PeftScale(factor=_number(alpha / divisor, f"the scale of layer {name}")) if divisor > 0 else None


def _scaled_role(roles: Mapping[str, Shaped]) -> str:
    """The tensor that PEFT's scale belongs to in a layer without a rank; empty for a kind that has none."""
    layout = layout_of(inner_roles(roles))
    return "" if layout is None else layout.peft_scaled


_CHANGE_THE_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Ways to begin (with what may follow the name) for which PEFT changes the weights of the model as well."""


def _check_start(config: Mapping[str, Any]) -> None:
    """AdapterError for factors that mean nothing beside the weights that a checkpoint has."""
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGE_THE_BASE):
        raise AdapterError(
            f"PEFT's configuration says init_lora_weights={show(start)}: its training changed the model's own weights "
            "too, and without those the factors mean something else",
            "have PEFT convert it: save_pretrained(..., path_initial_model_for_weight_conversion=...) writes a LoRA "
            "for the unchanged model",
        )


def _number(value: object, what: str) -> float:
    """The value as a number that float32 holds; AdapterError where it is none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        # Compared before it is converted: a whole number of 400 digits has no float.
        if -_LARGEST <= value <= _LARGEST:
            return float(value)
        raise AdapterError(f"{what} is beyond the range of float32 in PEFT's configuration", _DAMAGED)
    raise AdapterError(f"{what} is {show(value)} in PEFT's configuration, which is not a number", _DAMAGED)


def _by_pattern(config: Mapping[str, Any], key: str, name: str, default: Any) -> Any:
    """What the first pattern says that fits the layer's name, as PEFT reads it: a regular expression at its end."""
    patterns = config.get(key)
    if not isinstance(patterns, dict):
        return default
    if len(patterns) > _MOST_PATTERNS:
        raise AdapterError(f"{key} holds {len(patterns)} patterns", _DAMAGED)
    inside = re.sub(r"^(unet\.|text_encoder\.|text_encoder_2\.|base_model\.model\.)+", "", name)
    return next((value for pattern, value in patterns.items() if _ends_with(key, pattern, inside)), default)


def _ends_with(key: str, pattern: str, name: str) -> bool:
    if re.fullmatch(r"[\w.\-]*", pattern):  # a dot stands for any character, itself among them
        end = name[-len(pattern) :] if pattern else ""
        before = name[: len(name) - len(end)]
        same = all(one in (".", other) for one, other in zip(pattern, end, strict=False)) and len(end) == len(pattern)
        return same and (not before or before.endswith("."))
    if is_slow_expression(pattern):
        raise AdapterError(
            f"the expression {show(pattern)} in its {key} could take for ever",
            "name the layers in full in the configuration",
        )
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except re.error as error:
        raise AdapterError(f"{show(pattern)} in its {key} is not a regular expression: {error}", _DAMAGED) from error


def peft_configs(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's configuration of each part: from the header of a diffusers file, or adapter_config.json beside the file.

    The part is ``""`` for a configuration of the only part. PEFT keeps alpha there, not among the tensors.
    """
    parts: dict[str, dict[str, Any]] = {}
    for part, name, value in _stored(metadata.get("lora_adapter_metadata", "{}")):
        parts.setdefault(part, {})[name] = value
    if parts:
        return parts
    if path.stem == "adapter_model":
        with suppress(FileError, ValueError, RecursionError):
            stored = json.loads(read_text(path.with_name("adapter_config.json")))
            return {"": stored} if isinstance(stored, dict) else {}
    return {}


def _stored(text: str) -> Iterator[tuple[str, str, Any]]:
    with suppress(ValueError, RecursionError):
        stored = json.loads(text)
        for key, value in stored.items() if isinstance(stored, dict) else ():
            part, dot, name = key.partition(".")
            if dot:
                yield part, name, value
