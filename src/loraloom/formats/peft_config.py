"""What PEFT keeps beside the tensors: alphas and ranks by layer, in a configuration that travels with the file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from loraloom.errors import AdapterError, FileError
from loraloom.formats.dialects import kind_of, rank_of
from loraloom.formats.entries import show
from loraloom.reading import read_text

__all__ = ["add_peft_scales", "peft_configs"]

_MOST_PATTERNS = 4000
_MOST_REPEATS = 3
"""Repetitions in one pattern: with more of them a hostile pattern takes hours."""


def add_peft_scales(path: Path, layers: Mapping[str, dict[str, torch.Tensor]], metadata: Mapping[str, str]) -> None:
    """Give layers with PEFT's names the alpha, and lengths of DoRA the axis, that PEFT means; in place.

    Without a configuration alpha equals the rank. Raises AdapterError for patterns that cannot be used.
    """
    configs = peft_configs(path, metadata)
    for name, roles in layers.items():
        if not _is_peft(name):
            continue
        if "dora_scale" in roles:  # always of rows: (out,), or (1, out, 1, 1) of a convolution
            lengths = roles["dora_scale"]
            roles["dora_scale"] = lengths.reshape(-1, 1, *(1 for _ in lengths.shape[2:]))
        config = configs.get(name.partition(".")[0], configs.get(""))
        if config is not None and "alpha" not in roles:
            _add_scale(path, name, roles, config)


def _is_peft(name: str) -> bool:
    """Whether a layer's name is one of diffusers' and PEFT's, which have dots."""
    return "." in name and not name.startswith(("diffusion_model.", "text_encoders."))


def _add_scale(path: Path, name: str, roles: dict[str, torch.Tensor], config: Mapping[str, Any]) -> None:
    alpha = _by_pattern(path, config, "alpha_pattern", name, config.get("lora_alpha", config.get("alpha")))
    if not _is_number(alpha):
        return
    rank = rank_of(roles)
    if rank is not None:
        stabilized = bool(config.get("use_rslora")) and kind_of(roles) in ("lora", "dora")
        roles["alpha"] = torch.tensor(float(alpha) * (math.sqrt(rank) if stabilized else 1.0))
        return
    # Both sides of a Kronecker product are whole: nothing in the file has the rank, and PEFT divides by it even so.
    rank = _by_pattern(path, config, "rank_pattern", name, config.get("r"))
    if "lokr_w1" in roles and _is_number(rank) and rank > 0:
        roles["lokr_w1"] = roles["lokr_w1"].float() * (float(alpha) / float(rank))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _by_pattern(path: Path, config: Mapping[str, Any], key: str, name: str, default: Any) -> Any:
    """What the first pattern says that fits the layer's name, as PEFT reads it: a regular expression at its end."""
    patterns = config.get(key)
    if not isinstance(patterns, dict):
        return default
    if len(patterns) > _MOST_PATTERNS:
        raise AdapterError(f"{path}: {key} holds {len(patterns)} patterns", "the configuration is damaged")
    inside = re.sub(r"^(unet\.|text_encoder\.|text_encoder_2\.|base_model\.model\.)+", "", name)
    return next((value for pattern, value in patterns.items() if _ends_with(path, key, pattern, inside)), default)


def _ends_with(path: Path, key: str, pattern: str, name: str) -> bool:
    if re.fullmatch(r"[\w.\-]*", pattern):  # a dot stands for any character, itself among them
        end = name[-len(pattern) :] if pattern else ""
        before = name[: len(name) - len(end)]
        same = all(one in (".", other) for one, other in zip(pattern, end, strict=False)) and len(end) == len(pattern)
        return same and (not before or before.endswith("."))
    if len(pattern) > 300 or len(re.findall(r"[*+{]", pattern)) > _MOST_REPEATS or re.search(r"\)[*+{]", pattern):
        raise AdapterError(
            f"{path}: the expression {show(pattern)} in its {key} could take for ever",
            "name the layers in full in the configuration",
        )
    try:
        return re.match(rf"(.*\.)?({pattern})$", name) is not None
    except re.error as error:
        raise AdapterError(f"{path}: {show(pattern)} in its {key} is no regular expression: {error}") from error


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
