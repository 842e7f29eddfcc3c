"""The state of an optimizer by the names of its parameters, as a state file keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from loraloom.training.state import placed

__all__ = ["load_optimizer", "optimizer_options", "optimizer_values"]


def optimizer_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The options of each parameter group, without its parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _keeps_own_state(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the class changed what is saved; then it must read that itself."""
    cls, plain = type(optimizer), torch.optim.Optimizer
    return cls.state_dict is not plain.state_dict or cls.load_state_dict is not plain.load_state_dict


def optimizer_values(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], initial: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The state of the optimizer. ``names``: of parameters by id(); ``initial``: its options when it was new."""
    values = {"class": type(optimizer).__qualname__, "initial": [dict(group) for group in initial]}
    if _keeps_own_state(optimizer):
        return values | {"own": optimizer.state_dict()}
    state = {names[id(key)]: value for key, value in optimizer.state.items() if isinstance(key, Tensor)}
    other = {key: value for key, value in optimizer.state.items() if not isinstance(key, Tensor)}
    return values | {"groups": optimizer_options(optimizer), "state": state, "other": other}


def load_optimizer(
    optimizer: torch.optim.Optimizer, values: Mapping[str, Any], names: Mapping[int, str], device: torch.device
) -> bool:
    """Give a new optimizer what :func:`optimizer_values` kept; False (and nothing done) for one of another class.

    An option whose first value differs was changed in the settings since: its new value stays. Moments are set as
    they were, in their own type, which ``Optimizer.load_state_dict`` would convert to that of the parameter.
    """
    if values["class"] != type(optimizer).__qualname__:
        return False
    values = placed(dict(values), device)
    if "own" in values:
        changed = _changed_options(optimizer, values["initial"])
        optimizer.load_state_dict(values["own"])
        for group, options in zip(optimizer.param_groups, changed, strict=True):
            group.update(options)
        return True
    changed = _changed_options(optimizer, values["initial"])

    # Groups are found by name: a part that has become trainable, or is frozen now, moves the numbers of all others.
    saved_groups = _by_name(values["groups"])
    for index, group in enumerate(optimizer.param_groups):
        saved = saved_groups.get(_group_name(group, index))
        if saved is not None:
            group.update({key: value for key, value in saved.items() if key not in changed[index]})

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = values["state"].get(names[id(parameter)])
            if state is not None:
                optimizer.state[parameter] = state

    for key, value in values["other"].items():
        optimizer.state[key] = value
    return True


def _group_name(group: Mapping[str, Any], index: int) -> str:
    return str(group.get("name", index))


def _by_name(groups: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {_group_name(group, index): group for index, group in enumerate(groups)}


def _changed_options(optimizer: torch.optim.Optimizer, initial: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each group the options that begin otherwise than they did when the state's run began."""
    before = _by_name(initial)
    changed = []
    for index, options in enumerate(optimizer_options(optimizer)):
        old = before.get(_group_name(options, index), {})
        changed.append(
            {
                key: value
                for key, value in options.items()
                if key in old and not _same(placed(old[key], torch.device("cpu")), value)
            }
        )
    return changed


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one.cpu(), other.cpu())
    return bool(one == other)
