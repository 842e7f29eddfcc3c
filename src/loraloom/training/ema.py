"""A running average of the trained tensors (Polyak and Juditsky, 1992), kept in fp32 beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loraloom.errors import ResumeError
from loraloom.training.settings import EmaSettings

__all__ = ["Ema"]


class Ema:
    """``average = decay * average + (1 - decay) * parameter`` after every ``every``-th step.

    The average begins as the parameters are, so no correction of a start at zero is needed.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], settings: EmaSettings) -> None:
        self._settings = settings
        self._parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        self._averages = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._updates = 0

    def decay(self) -> float:
        """The decay of the next update: with warm-up at most (1 + n) / (10 + n), to the power of ``every``."""
        decay, n = self._settings.decay, self._updates
        if self._settings.warmup:
            decay = min(decay, (1 + n) / (10 + n))
        return float(decay**self._settings.every)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after ``step`` steps (counted from 1)."""
        if step % self._settings.every:
            return
        decay = self.decay()
        self._updates += 1
        averages = list(self._averages.values())
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in self._parameters.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the average; behind it they are what they were, bit for bit."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._copy(self._averages)
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """For a saved state."""
        return {"updates": self._updates, "averages": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; ResumeError when the tensors are not those of this adapter."""
        averages = values["averages"]
        if set(averages) != set(self._averages):
            raise ResumeError("the saved average is of an adapter with other layers", "set ema.enabled=false")
        for name, average in self._averages.items():
            average.copy_(averages[name])
        self._updates = values["updates"]
