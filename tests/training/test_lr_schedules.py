"""Against the closed forms that torch, transformers and diffusers compute."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.optimization import get_piecewise_constant_schedule
from transformers import get_scheduler, get_wsd_schedule
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup, get_inverse_sqrt_schedule

from loraloom.errors import SettingsError, UnknownNameError
from loraloom.idle import told
from loraloom.training.idle_choices import OPTIMIZER_ROWS
from loraloom.training.lr_schedule_names import LR_SCHEDULES, find_schedule
from loraloom.training.lr_schedules import ScheduleShape, create_lr_schedule, lr_factor
from loraloom.training.settings import LrScheduleSettings, TrainSettings

TOTAL = 40


def optimizer_of_one() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def rates(schedule: torch.optim.lr_scheduler.LRScheduler) -> list[float]:
    optimizer = schedule.optimizer
    found = []
    for _ in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def ours(**settings: object) -> list[float]:
    schedule = create_lr_schedule(LrScheduleSettings.parse(settings), TOTAL)
    return [schedule(step) for step in range(TOTAL)]


BY_TRANSFORMERS = {
    "constant": {},
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0, "lr_end": 0.0},
}


@pytest.mark.parametrize("name", BY_TRANSFORMERS)
@pytest.mark.parametrize("warmup", [0, 8])
def test_agrees_with_transformers_after_warmup(name: str, warmup: int) -> None:
    expected = rates(
        get_scheduler(
            name,
            optimizer_of_one(),
            num_warmup_steps=warmup,
            num_training_steps=TOTAL,
            scheduler_specific_kwargs=BY_TRANSFORMERS[name],
        )
    )
    found = ours(name=name, warmup_steps=warmup, cycles=3, power=2.0)
    assert found[warmup:] == pytest.approx(expected[warmup:], abs=1e-9)


@pytest.mark.parametrize("timescale", [None, 5])
def test_inverse_sqrt_agrees_with_transformers(timescale: int | None) -> None:
    expected = rates(get_inverse_sqrt_schedule(optimizer_of_one(), num_warmup_steps=8, timescale=timescale))
    assert ours(name="inverse_sqrt", warmup_steps=8, timescale=timescale)[8:] == pytest.approx(expected[8:], abs=1e-9)


def test_inverse_sqrt_without_warmup_has_a_timescale_of_ten_thousand() -> None:
    expected = rates(get_inverse_sqrt_schedule(optimizer_of_one(), num_warmup_steps=0))
    assert ours(name="inverse_sqrt") == pytest.approx(expected, abs=1e-9)


def test_cosine_with_min_lr_agrees_with_transformers() -> None:
    reference = get_cosine_with_min_lr_schedule_with_warmup(optimizer_of_one(), 8, TOTAL, min_lr_rate=0.1)
    found = ours(name="cosine_with_min_lr", warmup_steps=8, min_lr_ratio=0.1)
    assert found[8:] == pytest.approx(rates(reference)[8:], abs=1e-9)


def test_polynomial_to_a_ratio_agrees_with_transformers() -> None:
    reference = get_scheduler(
        "polynomial",
        optimizer_of_one(),
        num_warmup_steps=8,
        num_training_steps=TOTAL,
        scheduler_specific_kwargs={"power": 2.0, "lr_end": 0.1},
    )
    found = ours(name="polynomial", warmup_steps=8, power=2.0, min_lr_ratio=0.1)
    assert found[8:] == pytest.approx(rates(reference)[8:], abs=1e-9)


@pytest.mark.parametrize("ratio", [0.0, 0.25])
def test_warmup_stable_decay_agrees_with_transformers(ratio: float) -> None:
    reference = get_wsd_schedule(optimizer_of_one(), 8, 12, num_training_steps=TOTAL, min_lr_ratio=ratio)
    found = ours(name="warmup_stable_decay", warmup_steps=8, decay_steps=12, min_lr_ratio=ratio)
    assert found[8:] == pytest.approx(rates(reference)[8:], abs=1e-9)


def test_warmup_stable_decay_falls_over_a_fifth_where_nothing_is_said() -> None:
    found = ours(name="warmup_stable_decay")
    assert found[:33] == [1.0] * 33 and found[33] < 1.0


def test_piecewise_constant_agrees_with_diffusers() -> None:
    rules = "1:10,0.1:20,0.01:30,0.005"
    reference = get_piecewise_constant_schedule(optimizer_of_one(), rules)
    assert ours(name="piecewise_constant", rules=rules) == pytest.approx(rates(reference), abs=1e-12)


def test_rex_is_the_curve_of_the_paper() -> None:
    expected = [(1 - step / TOTAL) / (0.5 + 0.5 * (1 - step / TOTAL)) for step in range(TOTAL)]
    assert ours(name="rex") == pytest.approx(expected)
    assert lr_factor("rex", 20, TOTAL) == pytest.approx(2 / 3)


BY_TORCH = {
    "StepLR": {"step_size": 7, "gamma": 0.5},
    "ExponentialLR": {"gamma": 0.9},
    "MultiStepLR": {"milestones": (5.0, 9.0), "gamma": 0.1},
    "CosineAnnealingWarmRestarts": {"T_0": 10, "T_mult": 2, "eta_min": 0.1},
    "OneCycleLR": {"max_lr": 2.0, "total_steps": 41},
}


@pytest.mark.parametrize("name", BY_TORCH)
def test_a_class_of_torch_is_followed_step_by_step(name: str) -> None:
    cls = getattr(torch.optim.lr_scheduler, name)
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    path = f"torch.optim.lr_scheduler.{name}"
    expected = rates(cls(optimizer, **BY_TORCH[name]))
    assert ours(name=path, args=BY_TORCH[name]) == pytest.approx(expected, abs=1e-12)
    schedule = create_lr_schedule(LrScheduleSettings.parse({"name": path, "args": BY_TORCH[name]}), TOTAL)
    assert [schedule(step) for step in (30, 3, 30)] == pytest.approx([expected[30], expected[3], expected[30]])


def test_a_class_begins_after_the_warmup() -> None:
    found = ours(name="torch.optim.lr_scheduler.ExponentialLR", args={"gamma": 0.5}, warmup_steps=3)
    assert found[:6] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5, 0.25])


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("torch.optim.lr_scheduler.StepLR", {}, "step_size"),
        ("torch.optim.lr_scheduler.StepLR", {"step_size": 3, "gama": 0.1}, "gama"),
        ("torch.optim.lr_scheduler.ReduceLROnPlateau", {}, "metrics"),
        ("no_such_package.Schedule", {}, "no_such_package"),
    ],
)
def test_a_class_that_does_not_suit_is_an_error(name: str, args: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        ours(name=name, args=args)


def test_a_class_that_does_not_exist_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError) as caught:
        ours(name="torch.optim.lr_scheduler.StepLr")
    assert "'StepLR'" in caught.value.hint


def test_warmup_rises_and_never_wastes_a_step_at_zero() -> None:
    factors = [lr_factor("cosine", step, TOTAL, ScheduleShape(warmup=4)) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_warmup_and_decay_may_be_shares_of_the_run() -> None:
    assert ours(name="linear", warmup_steps=0.2) == ours(name="linear", warmup_steps=8)
    shares = ours(name="warmup_stable_decay", warmup_steps=0.1, decay_steps=0.5)
    assert shares == ours(name="warmup_stable_decay", warmup_steps=4, decay_steps=20)


def test_warmup_and_decay_must_fit_into_the_run() -> None:
    with pytest.raises(SettingsError, match="30 steps of warm-up and 11 of decay"):
        ours(name="warmup_stable_decay", warmup_steps=30, decay_steps=11)


@pytest.mark.parametrize(
    ("other", "own"),
    [
        ("linear_with_warmup", "linear"),
        ("cosine_annealing_with_restarts", "cosine_with_restarts"),
        ("COSINE_WITH_HARD_RESTARTS", "cosine_with_restarts"),
        ("Constant", "constant"),
        ("WSD", "warmup_stable_decay"),
    ],
)
def test_other_programs_names_are_understood(other: str, own: str) -> None:
    settings = {"warmup_steps": 4, "cycles": 2}
    assert ours(name=other, **settings) == ours(name=own, **settings)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="cosine"):
        find_schedule("cosin")


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_every_schedule_is_a_pure_function_that_starts_at_most_at_one(name: str) -> None:
    needed = {"piecewise_constant": {"rules": "1:10,0.1"}, "cosine_with_min_lr": {"min_lr_ratio": 0.1}}.get(name, {})
    settings = LrScheduleSettings.parse({"name": name, **needed})
    forwards, backwards = create_lr_schedule(settings, TOTAL), create_lr_schedule(settings, TOTAL)
    assert [forwards(s) for s in range(TOTAL)] == [backwards(s) for s in reversed(range(TOTAL))][::-1]
    assert all(0.0 <= forwards(step) <= 1.0 and math.isfinite(forwards(step)) for step in range(TOTAL))
    assert forwards(0) == 1.0
    assert lr_factor(name, 0, 1, ScheduleShape(decay=1, rules="1:1,0")) in (0.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "piecewise_constant"}, "needs lr_schedule.rules"),
        ({"name": "piecewise_constant", "rules": "1:10,0.1:5,0.01"}, "is not like"),
        ({"name": "piecewise_constant", "rules": "1:10,0.1:20"}, "is not like"),
        ({"name": "piecewise_constant", "rules": "fast"}, "is not like"),
        ({"name": "cosine_with_min_lr"}, "min_lr_ratio"),
        ({"warmup_steps": 2.5}, "whole"),
    ],
)
def test_contradictions_are_errors(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        LrScheduleSettings.parse(settings)


def remarks(**schedule: object) -> list[str]:
    settings = TrainSettings.parse({"checkpoint": "a", "dataset": {"folder": "b"}, "lr_schedule": schedule})
    return told(OPTIMIZER_ROWS, settings, settings)


def test_settings_without_effect_are_remarked() -> None:
    assert remarks(name="constant", warmup_steps=5, cycles=2) == [
        "lr_schedule.warmup_steps has no effect with constant; constant_with_warmup uses it",
        "lr_schedule.cycles has no effect with constant; used by cosine_with_restarts",
    ]
    assert remarks(name="linear_with_warmup", warmup_steps=5, min_lr_ratio=0.1) == []
    assert len(remarks(name="inverse_sqrt", min_lr_ratio=0.1)) == 1
