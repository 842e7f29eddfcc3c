"""The errors of a run whose numbers are no longer finite: what happened, what helps, and what is left to go on from."""

from __future__ import annotations

from collections.abc import Callable

from loraloom.actions import Sentence
from loraloom.errors import NotFiniteError
from loraloom.training.parts import RunParts
from loraloom.training.progress import Progress
from loraloom.training.state_keeper import StateKeeper

__all__ = ["Failures"]


class Failures:
    """Makes the errors; the caller raises them."""

    def __init__(self, parts: RunParts, progress: Progress, states: StateKeeper) -> None:
        self._parts = parts
        self._progress = progress
        self._states = states

    def not_finite(self, problem: str, keep_last_good: Callable[[], str]) -> NotFiniteError:
        """A loss or a gradient is not finite. The weights are those before the bad step.

        ``keep_last_good`` saves them, in the leading process, and says where they are.
        """
        self._parts.optimizer.zero_grad(set_to_none=True)

        # Where the weights themselves are lost, there is nothing good to be kept.
        if reason := self._states.exploded():
            return self.explosion(reason, f"; {problem}")

        kept = self._parts.team.from_leader(keep_last_good)
        return NotFiniteError(
            f"{problem}: NaN or infinity would destroy the LoRA, so the run stopped",
            Sentence(f"{self._remedies()}; {kept}", self._states.last_sound()),
        )

    def beyond_saving(self) -> NotFiniteError:
        """The type of the files cannot hold the weights as they are now."""
        return self.explosion(self._states.exploded())

    def explosion(self, reason: str, more: str = "") -> NotFiniteError:
        """The weights themselves are lost, so nothing of them is kept."""
        return NotFiniteError(
            f"the training has exploded: after step {self._progress.step} {reason}{more}",
            Sentence(self._remedies(), self._states.last_sound() or "; no state was kept before that, so start again"),
        )

    def _remedies(self) -> str:
        optimizer = self._parts.settings.optimizer
        causes = [f"lower optimizer.lr (it is {optimizer.learning_rate:g})"]
        if not optimizer.max_grad_norm:
            causes.append("set optimizer.max_grad_norm=1")
        if self._parts.precision.name == "fp16":
            causes.append("set mixed_precision=bf16 or no")
        return " or ".join(causes)
