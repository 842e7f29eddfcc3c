"""Against the closed forms that transformers computes."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from loraloom.training.lr_schedules import LR_SCHEDULES, lr_factor

TOTAL = 40


def reference(name: str, warmup: int, cycles: int, power: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    extra = {"num_cycles": cycles} if name == "cosine_with_restarts" else {}
    if name == "polynomial":
        extra = {"power": power, "lr_end": 0.0}
    schedule = get_scheduler(
        name, optimizer, num_warmup_steps=warmup, num_training_steps=TOTAL, scheduler_specific_kwargs=extra
    )
    rates = []
    for _ in range(TOTAL):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize("name", sorted(LR_SCHEDULES))
@pytest.mark.parametrize("warmup", [0, 8])
def test_agrees_with_transformers_after_warmup(name: str, warmup: int) -> None:
    expected = reference(name, warmup, cycles=3, power=2.0)
    ours = [lr_factor(name, step, TOTAL, warmup=warmup, cycles=3, power=2.0) for step in range(TOTAL)]
    assert ours[warmup:] == pytest.approx(expected[warmup:], abs=1e-9)


def test_warmup_rises_and_never_wastes_a_step_at_zero() -> None:
    factors = [lr_factor("cosine", step, TOTAL, warmup=4, cycles=1, power=1.0) for step in range(5)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
