"""How far a run is: all that changes from step to step besides its tensors. No torch here."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

__all__ = ["Progress"]


@dataclass
class Progress:
    """The counters of a run; ``step`` counts finished optimizer steps."""

    step: int = 0
    losses: deque[float] = field(default_factory=deque)
    """Of the last epoch's worth of steps."""
    skipped: int = 0
    """Updates in a row that were not applied because fp16 overflowed."""
    seconds: float = 0.0
    """Trained so far, in all processes, without pauses."""
    is_sound: bool = True
    """Whether tensors and counters belong together: not while an update is being made."""

    @property
    def average_loss(self) -> float:
        """Mean of the last losses, 0 where there is none."""
        return sum(self.losses) / max(len(self.losses), 1)
