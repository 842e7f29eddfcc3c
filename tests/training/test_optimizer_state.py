"""What a state file keeps of an optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loraloom.training.optimizer_state import load_optimizer, optimizer_options, optimizer_values

CPU = torch.device("cpu")


class Plain(torch.optim.Optimizer):
    """Its options and its state are whatever a test puts there."""

    def __init__(self, count: int = 1, **options: Any) -> None:
        groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "name": f"group {index}"} for index in range(count)]
        super().__init__(groups, options)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return [group["params"][0] for group in self.param_groups]

    @property
    def names(self) -> dict[int, str]:
        return {id(parameter): f"p{index}" for index, parameter in enumerate(self.parameters)}


def test_what_belongs_to_no_parameter_is_kept_beside_the_moments() -> None:
    old = Plain(3, lr=0.3)
    for number, parameter in enumerate(old.parameters[:2], 1):
        old.state[parameter] = {"step": number}
    old.state["shared"] = {"d": 0.7}  # type: ignore[index]
    values = optimizer_values(old, old.names, optimizer_options(old))
    assert values["state"] == {"p0": {"step": 1}, "p1": {"step": 2}}
    assert values["other"] == {"shared": {"d": 0.7}}
    new = Plain(3, lr=0.3)
    assert load_optimizer(new, values, new.names, CPU)
    assert [dict(new.state).get(key) for key in (*new.parameters, "shared")] == [
        {"step": 1}, {"step": 2}, None, {"d": 0.7},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        (torch.tensor([0.3, 0.1]), torch.tensor([0.3, 0.1]), False),
        (torch.tensor([0.3, 0.1]), torch.tensor([0.3, 0.2]), True),
        (torch.tensor(0.25), torch.tensor(0.25), False),
        (torch.tensor(0.25), torch.tensor(0.75), True),
        (torch.tensor(0.25), 0.25, True),
        (0.25, torch.tensor(0.25), True),
        ((0.9, 0.7), (0.9, 0.7), False),
        ((0.9, 0.7), (0.9, 0.6), True),
    ],
)
def test_an_option_that_begins_otherwise_was_changed_in_the_settings(before: Any, now: Any, changed: bool) -> None:
    """Some optimizers have tensors for options; a number in place of one counts as another value."""
    old, new = Plain(option=before), Plain(option=now)
    initial = optimizer_options(old)
    learned = object()
    old.param_groups[0]["option"] = learned
    assert load_optimizer(new, optimizer_values(old, old.names, initial), new.names, CPU)
    assert new.param_groups[0]["option"] is (now if changed else learned)
