"""A configuration of OneTrainer while it is read: its numbers and words, and what several rows of its table ask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.plain_data import finite, shown
from loraloom.recipes.onetrainer_names import DEFAULTS, PARTS, RENAMED, SCHEDULES
from loraloom.recipes.recipe import Item, Recipe, is_nothing
from loraloom.recipes.rows import Reading
from loraloom.recipes.sd_scripts import take_arguments

__all__ = ["OneTrainerFile", "open_file"]


@dataclass
class OneTrainerFile(Reading):
    """``said`` keeps every entry (OneTrainer's default where a preset has none); ``left`` loses those that are
    taken."""

    said: Mapping[str, Any] = field(default_factory=dict)

    # -- taking an entry ---------------------------------------------------------------------------------------

    def taken(self, key: str, otherwise: Any = None) -> Any:
        """Take the value of a key. The caller accounts for it, unless it is empty."""
        item = self.take(key)
        if item is None:
            return otherwise
        if is_nothing(item.value):
            self.recipe.rest(key)
        return item.value

    def number(self, key: str, otherwise: float = 0.0) -> float:
        """Take a number; one that is none is a problem, and counts as ``otherwise``."""
        value = self.taken(key)
        if is_nothing(value):
            return otherwise
        number = _number(value)
        if number is None:
            self.recipe.problem("", f"{key} = {shown(value)} is not a number")
            return otherwise
        return number

    def word(self, key: str) -> str:
        """Take one of OneTrainer's words; a value that is not text is a problem, and counts as none."""
        value = self.taken(key)
        if value is not None and not isinstance(value, (str, bool)):
            self.recipe.problem("", f"{key} = {shown(value)} is not a word")
        return _word(value)

    def peek(self, key: str) -> float:
        """A number that another row takes; 0 where there is none."""
        return _number(self.said.get(key)) or 0.0

    def rate(self, key: str) -> float | None:
        """Take a learning rate, scaled as the file wants it; None where there is none."""
        value = self.number(key, math.nan)
        return None if math.isnan(value) else self._scaled(value)

    # -- setting what was taken --------------------------------------------------------------------------------

    def as_sd_scripts(self, **items: Item) -> None:
        """Hand on what is read as sd-scripts' arguments are."""
        take_arguments(items, self.recipe, defaults=False)

    def count(self, key: str, path: str, number: float) -> None:
        """Set a whole number, at least 1; a fraction is rounded, with a remark."""
        whole = max(1, round(number))
        note = "" if whole == number else f"{number:g} became {whole}"
        self.recipe.set(path, whole, key, note=note)

    # -- what several rows ask ---------------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Whether the whole model is trained."""
        return bool(self.recipe.get("method") == "full")

    @property
    def has_two_text_encoders(self) -> bool:
        """Whether the second one counts: its section is in every export."""
        return _word(self.said.get("model_type")).startswith("STABLE_DIFFUSION_XL")

    @property
    def kind(self) -> str:
        """The adapter's kind, DoRA left aside."""
        return {"LOHA": "loha", "LOKR": "lokr"}.get(_word(self.said.get("peft_type")), "lora")

    @property
    def is_lokr(self) -> bool:
        return self.kind == "lokr" and not self.full

    @property
    def is_dora(self) -> bool:
        return bool(self.said.get("lora_decompose")) and self.kind == "lora" and not self.full

    def trains(self, part: str) -> bool:
        """Whether a part of the model is trained, which it is unless the file says otherwise."""
        flag = self.said.get(f"{part}.train")
        return flag is None or bool(flag)

    @property
    def schedule(self) -> str | None:
        """The lr schedule by its name here."""
        return SCHEDULES.get(_word(self.said.get("learning_rate_scheduler")))

    @property
    def rate_factor(self) -> int:
        """By the root of what every rate is multiplied."""
        scaler = _word(self.said.get("learning_rate_scaler")).removeprefix("GLOBAL_")
        batch, steps = self.whole("batch_size", 1), self.whole("gradient_accumulation_steps", 1)
        return {"BATCH": batch, "GRADIENT_ACCUMULATION": steps, "BOTH": batch * steps}.get(scaler, 1)

    @property
    def general_rate(self) -> float | None:
        """The rate of every part that has none of its own."""
        number = _number(self.said.get("learning_rate"))
        return None if number is None else self._scaled(number)

    def whole(self, key: str, otherwise: int) -> int:
        """A whole number to reckon with; whether the setting takes it is found out elsewhere."""
        value = self.said.get(key)
        usable = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31
        return value if usable and isinstance(value, int) else otherwise

    def _scaled(self, rate: float) -> float:
        return float(f"{rate * max(self.rate_factor, 1) ** 0.5:.6g}")


def open_file(data: Mapping[str, Any], recipe: Recipe) -> OneTrainerFile:
    """The entries of a configuration by their newest names; those of a section with its name before them."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = RENAMED.get(str(key), str(key))
        if name in (*PARTS, "optimizer") and isinstance(value, Mapping):
            flat |= {f"{name}.{part}": inner for part, inner in value.items()}
        else:
            flat[name] = value
    return OneTrainerFile(recipe, {key: Item(key, value) for key, value in flat.items()}, {**DEFAULTS, **flat})


def _number(value: Any) -> float | None:
    return None if isinstance(value, bool) or is_nothing(value) else finite(value)


def _word(value: Any) -> str:
    return str(value or "").strip().upper() if value is None or isinstance(value, (str, bool)) else ""
