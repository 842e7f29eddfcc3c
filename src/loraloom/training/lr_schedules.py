"""Learning-rate schedules: each a pure function of the step, so that resuming one needs no state. No torch here.

Every function returns the factor on the base learning rate for optimizer step ``step`` (0-based) of ``total``. Where a
library has the same schedule, the factors after the warm-up are its own (tests compare them).
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from loraloom.errors import SettingsError, UnknownNameError
from loraloom.training.lr_schedule_names import (
    LR_SCHEDULES,
    find_schedule,
    read_rules,
    registered_name,
    steps_of,
)

if TYPE_CHECKING:
    from loraloom.training.settings import LrScheduleSettings

__all__ = ["LrSchedule", "ScheduleShape", "create_lr_schedule", "lr_factor"]

LrSchedule = Callable[[int], float]
"""Factor on the base rate by step."""


@dataclass(frozen=True)
class ScheduleShape:
    """The numbers that schedules are made of; ``warmup`` and ``decay`` are steps."""

    warmup: int = 0
    decay: int = 0
    cycles: int = 1
    power: float = 1.0
    timescale: int | None = None
    min_ratio: float = 0.0
    rules: str = ""
    path: str = ""
    args: Mapping[str, Any] = field(default_factory=dict)


def _rising(step: int, shape: ScheduleShape) -> float | None:
    """The factor during warm-up, None after it. The first step is already above zero: it is not wasted."""
    return (step + 1) / (shape.warmup + 1) if step < shape.warmup else None


def _progress(step: int, total: int, shape: ScheduleShape) -> float:
    """How much of the run after warm-up is over, from 0 at its first step towards 1."""
    return (step - shape.warmup) / max(1, total - shape.warmup)


def _above(factor: float, shape: ScheduleShape) -> float:
    """A factor that falls from 1 to 0, made to fall to ``min_ratio``."""
    return shape.min_ratio + (1.0 - shape.min_ratio) * factor


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant(step: int, total: int, shape: ScheduleShape) -> float:
    """The base rate throughout; warm-up is not used."""
    return 1.0


def constant_with_warmup(step: int, total: int, shape: ScheduleShape) -> float:
    """Rises linearly, then stays."""
    rising = _rising(step, shape)
    return 1.0 if rising is None else rising


def linear(step: int, total: int, shape: ScheduleShape) -> float:
    """Falls linearly to zero."""
    rising = _rising(step, shape)
    return _above(1.0 - _progress(step, total, shape), shape) if rising is None else rising


def cosine(step: int, total: int, shape: ScheduleShape) -> float:
    """Falls along half a cosine (Loshchilov and Hutter, arXiv:1608.03983)."""
    rising = _rising(step, shape)
    return _above(_half_cosine(_progress(step, total, shape)), shape) if rising is None else rising


def cosine_with_restarts(step: int, total: int, shape: ScheduleShape) -> float:
    """Half a cosine, started again ``cycles`` times (arXiv:1608.03983)."""
    rising = _rising(step, shape)
    if rising is not None:
        return rising
    return _above(_half_cosine((shape.cycles * _progress(step, total, shape)) % 1.0), shape)


def polynomial(step: int, total: int, shape: ScheduleShape) -> float:
    """Falls to zero along a power of what remains."""
    rising = _rising(step, shape)
    if rising is not None:
        return rising
    return _above(float((1.0 - _progress(step, total, shape)) ** shape.power), shape)


def inverse_sqrt(step: int, total: int, shape: ScheduleShape) -> float:
    """Falls with the inverse square root of the steps since the warm-up, counted in ``timescale``."""
    rising = _rising(step, shape)
    timescale = shape.timescale or shape.warmup or 10_000
    return 1.0 / math.sqrt(1.0 + (step - shape.warmup) / timescale) if rising is None else rising


def warmup_stable_decay(step: int, total: int, shape: ScheduleShape) -> float:
    """Rises, stays, and falls along half a cosine over the last ``decay`` steps (Hu et al., arXiv:2404.06395)."""
    rising = _rising(step, shape)
    if rising is not None:
        return rising
    begin = total - shape.decay
    return 1.0 if step < begin else _above(_half_cosine((step - begin) / shape.decay), shape)


def rex(step: int, total: int, shape: ScheduleShape) -> float:
    """Stays high for long and falls fast at the end (Chen, Wolfe and Kyrillidis, arXiv:2107.04197)."""
    rising = _rising(step, shape)
    if rising is not None:
        return rising
    remaining = 1.0 - _progress(step, total, shape)
    return _above(remaining / (0.5 + 0.5 * remaining), shape)


def piecewise_constant(step: int, total: int, shape: ScheduleShape) -> float:
    """Factors by step as ``rules`` say, on top of the warm-up."""
    boundaries, factors = read_rules(shape.rules)
    factor = factors[bisect_right(boundaries, step)]
    rising = _rising(step, shape)
    return factor if rising is None else factor * rising


def create_lr_schedule(settings: LrScheduleSettings, total: int) -> LrSchedule:
    """The factor by step of a run of ``total`` steps. SettingsError where the steps do not fit into each other."""
    name = find_schedule(settings.name)
    warmup = steps_of(settings.warmup_steps, total)
    decay = steps_of(0.2 if settings.decay_steps is None else settings.decay_steps, total)
    if name in LR_SCHEDULES and registered_name(name) == "warmup_stable_decay" and warmup + decay > total:
        raise SettingsError(
            [f"lr_schedule: {warmup} steps of warm-up and {decay} of decay do not fit into a run of {total}"],
            "lower lr_schedule.warmup_steps or lr_schedule.decay_steps",
        )
    shape = ScheduleShape(
        warmup=warmup,
        decay=max(decay, 1),
        cycles=settings.cycles,
        power=settings.power,
        timescale=settings.timescale,
        min_ratio=settings.min_lr_ratio,
        rules=settings.rules,
    )
    if "." in name:
        return _of_class(name, settings.args, total, shape)
    function = LR_SCHEDULES.load(name)
    return lambda step: float(function(step, total, shape))


def lr_factor(name: str, step: int, total: int, shape: ScheduleShape | None = None) -> float:
    """The factor of the named schedule at one step."""
    return float(LR_SCHEDULES.load(find_schedule(name))(step, total, shape or ScheduleShape()))


def _of_class(path: str, arguments: Mapping[str, Any], total: int, shape: ScheduleShape) -> LrSchedule:
    """The factors of a class of lr schedules, written down once by stepping it over an optimizer of rate 1.

    The class's steps begin after the warm-up. Raises SettingsError.
    """
    import torch

    cls = _schedule_class(path)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    try:
        inspect.signature(cls).bind(optimizer, **arguments)
        schedule = cls(optimizer, **arguments)
        table = []
        for _ in range(max(total - shape.warmup, 1)):
            table.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            schedule.step()
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        known = [name for name in inspect.signature(cls).parameters if name != "optimizer"]
        raise SettingsError(
            [f"lr_schedule.args do not suit {path}: {error}"], f"it takes {', '.join(known)}; rates are factors"
        ) from error

    def factor(step: int) -> float:
        rising = _rising(step, shape)
        if rising is not None:
            return table[0] * rising
        return table[min(step - shape.warmup, len(table) - 1)]

    return factor


def _schedule_class(path: str) -> Any:
    module_path, _, name = path.rpartition(".")
    try:
        module = import_module(module_path)
    except ModuleNotFoundError as error:
        raise SettingsError(
            [f"lr_schedule.name: {path}: no module named {error.name}"], "for example torch.optim.lr_scheduler.StepLR"
        ) from error
    from torch.optim.lr_scheduler import LRScheduler

    classes = {
        key: value for key, value in vars(module).items() if inspect.isclass(value) and issubclass(value, LRScheduler)
    }
    if name not in classes:
        raise UnknownNameError(f"lr schedule in {module_path}", name, classes)
    return classes[name]
