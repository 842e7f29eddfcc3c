"""The states of a run: when they are written, which of them are proven, and how a run goes on from one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.errors import FileError, ResumeError
from loraloom.events import Notice, StateSaved
from loraloom.training.ema import Ema
from loraloom.training.identity import Identity, identity_of
from loraloom.training.optimizer_state import load_optimizer, optimizer_options, optimizer_values
from loraloom.training.parts import RunParts
from loraloom.training.progress import Progress
from loraloom.training.saving import write_or_rescue
from loraloom.training.state import (
    ResumePoint,
    Stateful,
    placed,
    remove_older_states,
    saved_states,
    state_path,
    unsound,
    write_state,
)
from loraloom.training.steps import StepPlan

__all__ = ["StateKeeper"]


class StateKeeper:
    """Writes the states of a run. ``stateful``: whatever else changes from step to step and must come back."""

    def __init__(self, parts: RunParts, plan: StepPlan, progress: Progress, stateful: Mapping[str, Stateful]) -> None:
        self._parts = parts
        self._plan = plan
        self._progress = progress
        self._stateful = stateful
        self._folder = parts.folder / "state"
        self._initial_options = optimizer_options(parts.optimizer)
        self._names = {id(parameter): name for name, parameter in parts.adapters.named_parameters()}
        self._last_step = -1
        self._last_time = time.monotonic()
        self._unproven: int | None = None
        """Step of a state from which no further step was taken yet; until then older ones stay."""

    @property
    def is_overdue(self) -> bool:
        """Whether the last state (or the beginning of the run) is as long ago as the settings allow."""
        age_s = time.monotonic() - self._last_time
        return 0 < self._parts.settings.saving.state_every_minutes * 60 <= age_s

    @cached_property
    def _identity(self) -> Identity:
        """What must be the same for the run to go on."""
        parts = self._parts
        return identity_of(parts.settings, parts.dataset, parts.model.checkpoint)

    def _optimizer_values(self) -> dict[str, Any]:
        return optimizer_values(self._parts.optimizer, self._names, self._initial_options)

    # -- explosions --------------------------------------------------------------------------------------------

    def exploded(self) -> str:
        """Why nobody should go on from the weights as they are now; an empty text where they are sound."""
        return unsound(dict(self._parts.adapters.state_dict()), self._optimizer_values())

    def weights_exploded(self) -> str:
        """The same of the weights alone, whatever the optimizer remembers."""
        return unsound(dict(self._parts.adapters.state_dict()), {})

    def last_sound(self) -> str:
        """Names the newest state that a further step was taken from, in the leading process."""
        known = [(step, path) for step, path in saved_states(self._folder) if step != self._unproven]
        if not known:
            return ""
        step, path = known[-1]
        return Sentence(
            f"; the last sound state is that of step {step}, {path}: ",
            Action.BRANCH_RUN.of(run=f"{self._parts.folder}@{step}"),
            " with a lower rate goes on from it",
        )

    # -- writing -----------------------------------------------------------------------------------------------

    def save(self, *, last: bool = False) -> None:
        """Write all that is needed to go on from here. A state that cannot be written causes a warning, and the run
        goes on.

        The ``last`` one goes elsewhere then. Nobody could go on from exploded weights, so they never take the place of
        an older state.
        """
        parts, step = self._parts, self._progress.step
        if not parts.settings.saving.state or self._last_step == step or not parts.team.leads:
            return
        self._last_step, self._last_time = step, time.monotonic()

        if reason := self.exploded():
            text = f"the state of step {step} was not kept, the training has exploded: {reason}"
            parts.listener(Notice(Sentence(text, self.last_sound()), "warning"))
            return
        values, path = self._values(), state_path(self._folder, step)

        def write(wanted: Path) -> None:
            write_state(wanted.parent, step, values)

        try:
            if last:
                path = write_or_rescue(path, parts.folder, write, parts.listener)
            else:
                write(path)
            self._unproven = step
        except (FileError, ResumeError) as error:
            parts.listener(Notice(f"the state of step {step} was not kept: {error}", "warning"))
            return
        parts.listener(StateSaved(str(path), step))

    def prove(self) -> None:
        """A step was taken from the state that was kept last, or none will be: now it may take the place of older."""
        if self._unproven is not None:
            keep = self._parts.settings.saving.keep_states
            remove_older_states(self._folder, self._unproven, keep=keep)
            self._unproven = None

    def _values(self) -> dict[str, Any]:
        parts, progress = self._parts, self._progress
        return {
            "identity": self._identity.to_values(),
            "name": parts.settings.name,
            "precision": parts.precision.name,
            "total_steps": self._plan.total_steps,
            "started": parts.started,
            "seconds": progress.seconds,
            "losses": list(progress.losses),
            "skipped": progress.skipped,
            "adapters": dict(parts.adapters.state_dict()),
            "optimizer": self._optimizer_values(),
            "scaler": parts.scaler.state_dict(),
            "ema": parts.ema.state_dict() if parts.ema is not None else None,
            "stateful": {name: part.state_dict() for name, part in self._stateful.items()},
        }

    # -- reading -----------------------------------------------------------------------------------------------

    def restore(self, point: ResumePoint) -> None:
        """Become the run that wrote the state. Raises ResumeError when its tensors do not fit this adapter."""
        parts, progress = self._parts, self._progress
        device, values = parts.model.device, point.state.values
        point.load_adapters(parts.adapters, device)
        if not load_optimizer(parts.optimizer, values["optimizer"], self._names, device):
            text = "the optimizer is a different one, so it begins without the state of the old one"
            parts.listener(Notice(text))
        if parts.scaler.is_enabled() and values["scaler"]:
            parts.scaler.load_state_dict(placed(values["scaler"], device))

        # An average that begins only now begins with the weights as they are.
        if parts.ema is not None:
            if values["ema"] is not None:
                parts.ema.load_state_dict(placed(values["ema"], device))
            else:
                parts.ema = Ema(parts.adapters.named_parameters(), parts.settings.ema)
        for name, part in self._stateful.items():
            if name in values["stateful"]:
                part.load_state_dict(placed(values["stateful"][name], device))

        if point.state.step > self._plan.total_steps:
            raise ResumeError(
                f"the state is of step {point.state.step} and the run would have only {self._plan.total_steps}",
                "a larger epochs= or steps= lets it go on",
            )
        progress.step, progress.skipped = point.state.step, values["skipped"]
        progress.losses, progress.seconds = deque(values["losses"]), values["seconds"]
        if not point.branch:
            parts.started = values["started"]
            self._last_step, self._last_time = progress.step, time.monotonic()
