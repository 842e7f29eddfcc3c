"""One argument of sd-scripts: what its value says, and which setting it is.

A key that needs no other one is read here, by the mark of a setting, by a row of :data:`EXCEPTIONS`, or by the reason
why it is not a setting (:mod:`~loraloom.recipes.names`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.plain_data import finite, shown
from loraloom.recipes.names import marked, reason_for, unknown
from loraloom.recipes.recipe import Item, Items, Recipe, field_rows, is_nothing, listed
from loraloom.recipes.rows import Reading, Row, by_key

__all__ = [
    "EXCEPTIONS",
    "Arguments",
    "arguments",
    "given",
    "is_default",
    "literal",
    "row_of",
    "says_nothing",
    "take_one",
    "truth",
]

_NOTHING_AT_ZERO = frozenset(
    listed(
        "clip_skip max_timestep max_train_steps max_train_epochs max_token_length loraplus_lr_ratio lr_decay_steps "
        "loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio min_bucket_reso max_bucket_reso multires_noise_discount "
        "lr_scheduler_num_cycles lr_scheduler_timescale conv_alpha huber_c huber_scale lr_scheduler_power "
        "save_last_n_epochs save_last_n_epochs_state validate_every_n_epochs stop_text_encoder_training "
        "token_warmup_min caption_dropout_every_n_epochs"
    )
)
"""Keys at which 0 means: not set."""
_DEFAULTS: Mapping[str, Any] = {
    "multires_noise_discount": 0.3,
    "dataset_repeats": 1,
    "max_data_loader_n_workers": 8,
    "vae_batch_size": 1,
    "zero_stage": 2,
    "dynamo_backend": ("inductor", "no", "NO"),
    "network_multiplier": 1.0,
    "base_weights_multiplier": 1.0,
    "factor": -1,
    "unit": 1,
    "num_processes": 1,
    "num_machines": 1,
    "dynamo_mode": "default",
    "logit_std": 1.0,
    "mode_scale": 1.29,
    "stop_text_encoder_training": 0,
    "log_with": "",
    "LyCORIS_preset": "full",
    "preset": "full",
}
"""Values at which keys that are not settings here do nothing."""


def given(items: Items, name: str) -> Any:
    """The value under a name, None where it says nothing."""
    item = items.get(name)
    return None if item is None or is_nothing(item.value) else item.value


def arguments(value: Any, key: str, recipe: Recipe) -> dict[str, Any]:
    """``["a=1", "b=x"]``, ``"a=1 b=x"`` or a table as a table. A part without an equals sign is a problem."""
    if isinstance(value, Mapping):
        return dict(value)
    parts = value if isinstance(value, (list, tuple)) else re.findall(r'(?:[^\s"\']|"[^"]*"|\'[^\']*\')+', str(value))
    found = {}
    for part in parts:
        name, equals, text = str(part).strip().strip("\"'").partition("=")
        if equals and name.strip():
            found[name.strip()] = text.strip().strip("\"'")
        elif name or equals:
            recipe.problem("", f"{key}: {shown(part)} is not name=value")
    return found


def literal(text: Any) -> Any:
    """A value of ``optimizer_args`` as Python reads it; text that is no value stays text."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def says_nothing(name: str, value: Any) -> bool:
    """Whether a key with this value is as good as left out."""
    if is_nothing(value):
        return True
    return name in _NOTHING_AT_ZERO and str(value).strip() in ("0", "0.0")


def is_default(name: str, value: Any) -> bool:
    """Whether a key that is not a setting here asks for nothing with this value."""
    if value is False or str(value).strip().lower() in ("false", "0", "0.0", "none"):
        return True
    default = _DEFAULTS.get(name)
    choices = default if isinstance(default, tuple) else (default,)
    return any(value == choice or str(value) == str(choice) for choice in choices if choice is not None)


def truth(value: Any) -> bool:
    """Whether a switch is on, however it was written."""
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "yes", "on")
    return bool(value)


def for_setting(path: str, value: Any) -> Any:
    """Whole numbers that a form has made to 4.0, and one-entry lists of the command line."""
    row = field_rows()[path]
    if isinstance(value, (list, tuple)) and len(value) == 1 and "list" not in row.type and path != "dataset.resolution":
        value = value[0]
    if row.type.startswith("whole number") and isinstance(value, str) and re.fullmatch(r"\s*-?\d+\.0*\s*", value):
        return value.strip().partition(".")[0]
    return value


@dataclass
class Arguments(Reading):
    """sd-scripts' arguments while they are read."""

    said: Items = field(default_factory=dict)
    """All that say something, while ``left`` empties."""


# -- what becomes of a key that stands for itself -------------------------------------------------------------------


def _as_marked(row: Row, reading: Reading) -> None:
    """The setting that has the key as its mark."""
    item = reading.left.pop(row.key)
    reading.recipe.set(row.ours, for_setting(row.ours, item.value), item.key)


def _no_setting(row: Row, reading: Reading) -> None:
    if is_default(row.key, reading.left[row.key].value):
        reading.rest(row.key)
    else:
        reading.skip(row.key, row.remark)


def _prediction(row: Row, reading: Reading) -> None:
    item = reading.left.pop(row.key)
    if truth(item.value):
        reading.recipe.set(row.ours, "v", item.key)
    else:
        reading.recipe.rest(item.key)


def _bucket_step(row: Row, reading: Reading) -> None:
    """Sides of pictures are multiples of 8 here; there the VAE cuts what is over."""
    value = reading.left[row.key].value
    if not (finite(value) or 8) % 8:
        _as_marked(row, reading)
        return
    step = max(8, round((finite(value) or 8) / 8) * 8)
    note = f"{value} became {step}: the VAE needs multiples of 8"
    reading.recipe.set(row.ours, step, reading.left.pop(row.key).key, note=note)


def _no_upscale(row: Row, reading: Reading) -> None:
    item = reading.left.pop(row.key)
    reading.recipe.set(row.ours, not truth(item.value), item.key)


def _fp8(row: Row, reading: Reading) -> None:
    item, recipe = reading.left.pop(row.key), reading.recipe
    if not truth(item.value):
        recipe.rest(item.key)
    elif recipe.get("method") == "full":
        recipe.skip(item.key, "weights that are trained themselves cannot be kept in 8 bits")
    else:
        note = "quantize=int8: 8 bits a weight as there, as integers with a scale for each row, which is more exact"
        recipe.set(row.ours, "int8", item.key, note=note)


EXCEPTIONS = (
    Row("v_parameterization", "prediction", _prediction, "prediction = v"),
    Row("bucket_reso_steps", "dataset.bucket_step", _bucket_step),
    Row("bucket_no_upscale", "dataset.upscale", _no_upscale, "dataset.upscale, the other way round"),
    Row("fp8_base", "quantize", _fp8, "quantize = int8"),
    Row("fp8_base_unet", "quantize", _fp8, "quantize = int8"),
)
"""Keys that stand for themselves and are more than the name of a setting."""
_EXCEPTIONS = by_key(EXCEPTIONS)


def row_of(name: str, *, network: bool = False) -> Row | None:
    """What becomes of a key that stands for itself; None for one that is not known."""
    path, reason = marked().get(name), reason_for(name, network=network)
    if name in _EXCEPTIONS:
        return _EXCEPTIONS[name]
    if path is not None:
        return Row(name, path, _as_marked)
    return None if reason is None else Row(name, "", _no_setting, reason)


def take_one(name: str, item: Item, recipe: Recipe, *, network: bool = False) -> None:
    """One key by its row, else it is reported as not known."""
    row = row_of(name, network=network)
    if row is None:
        recipe.skip(item.key, unknown(name))
        recipe.unknown.append(item.key)
    else:
        row.how(row, Reading(recipe, {name: item}))
