"""Learning-rate schedules by name, and what each of them looks at. No torch here.

The settings ask this table what they may be called, so it takes names and values and no settings.
"""

from __future__ import annotations

import math
from itertools import pairwise

from loraloom.registry import Entry, Registry

__all__ = [
    "LR_SCHEDULES",
    "OPTIONS",
    "USES",
    "check_values",
    "find_schedule",
    "read_rules",
    "registered_name",
    "steps_of",
]

# Which settings of LrScheduleSettings each schedule looks at.
_FALLING = ("warmup_steps", "min_lr_ratio")
USES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "constant_with_warmup": ("warmup_steps",),
    "linear": _FALLING,
    "cosine": _FALLING,
    "cosine_with_restarts": (*_FALLING, "cycles"),
    "polynomial": (*_FALLING, "power"),
    "inverse_sqrt": ("warmup_steps", "timescale"),
    "cosine_with_min_lr": _FALLING,
    "warmup_stable_decay": (*_FALLING, "decay_steps"),
    "rex": _FALLING,
    "piecewise_constant": ("warmup_steps", "rules"),
}
OPTIONS = ("warmup_steps", "decay_steps", "cycles", "power", "timescale", "min_lr_ratio", "rules", "args")

LR_SCHEDULES = Registry(
    "lr schedule",
    {
        name: Entry(f"loraloom.training.lr_schedules:{'cosine' if name == 'cosine_with_min_lr' else name}", summary)
        for name, summary in (
            ("constant", "the same rate throughout"),
            ("constant_with_warmup", "rises, then stays"),
            ("linear", "falls in a straight line to zero"),
            ("cosine", "falls slowly, fast, slowly to zero"),
            ("cosine_with_restarts", "cosine, several times"),
            ("polynomial", "falls to zero along a power"),
            ("inverse_sqrt", "falls ever more slowly and never reaches zero"),
            ("cosine_with_min_lr", "cosine to a share of the rate"),
            ("warmup_stable_decay", "rises, stays, falls at the end"),
            ("rex", "stays high, falls fast at the end"),
            ("piecewise_constant", "steps that you write down"),
        )
    },
    aliases={
        "linear_with_warmup": "linear",
        "cosine_with_warmup": "cosine",
        "cosine_annealing": "cosine",
        "cosine_annealing_with_restarts": "cosine_with_restarts",
        "cosine_with_hard_restarts": "cosine_with_restarts",
        "cosine_with_hard_restarts_with_warmup": "cosine_with_restarts",
        "polynomial_with_warmup": "polynomial",
        "wsd": "warmup_stable_decay",
    },
)


def find_schedule(name: str) -> str:
    """``name`` in lower case, or a class path as it is; raises UnknownNameError."""
    if "." in name:
        return name
    for candidate in (name, name.lower()):
        if candidate in LR_SCHEDULES:
            return candidate
    LR_SCHEDULES[name]  # raises
    return name


def check_values(name: str, *, rules: str, min_lr_ratio: float, warmup_steps: float, decay_steps: float | None) -> None:
    """Raise ValueError for a schedule that lacks what it cannot do without. Unknown names are reported elsewhere."""
    name = name.lower()
    if name == "piecewise_constant":
        if not rules:
            raise ValueError("piecewise_constant needs lr_schedule.rules, for example 1:100,0.1:200,0.01")
        read_rules(rules)
    if name == "cosine_with_min_lr" and not min_lr_ratio:
        raise ValueError("cosine_with_min_lr needs lr_schedule.min_lr_ratio, for example 0.1")
    for key, value in (("warmup_steps", warmup_steps), ("decay_steps", decay_steps)):
        if value is not None and value >= 1 and value != int(value):
            raise ValueError(f"{key} = {value}: a share of the run is below 1, a number of steps is whole")


def read_rules(rules: str) -> tuple[list[int], list[float]]:
    """``1:10,0.1:20,0.01`` -> ([10, 20], [1, 0.1, 0.01]); raises ValueError."""
    *pieces, last = (piece.strip() for piece in rules.split(","))
    wrong = ValueError(f"lr_schedule.rules = {rules!r} is not like 1:100,0.1:200,0.01 (factor:step, ..., last factor)")
    try:
        pairs = [piece.split(":") for piece in pieces]
        boundaries = [int(boundary) for _, boundary in pairs]
        factors = [float(factor) for factor, _ in pairs] + [float(last)]
    except ValueError as error:
        raise wrong from error
    if any(later <= earlier for earlier, later in pairwise(boundaries)) or not all(0 <= f < math.inf for f in factors):
        raise wrong
    return boundaries, factors


def steps_of(value: float, total: int) -> int:
    """A number of steps that is given as such, or below 1 as a share of ``total``."""
    return round(value * total) if value < 1 else int(value)


def registered_name(name: str) -> str:
    """The name whose entry ``name`` leads to."""
    entry = LR_SCHEDULES[name]
    return next((own for own in LR_SCHEDULES if LR_SCHEDULES[own] is entry), name)
