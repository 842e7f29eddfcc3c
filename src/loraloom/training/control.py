"""What a run can be asked between two steps, by whoever started it or by another process. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

__all__ = ["Control", "Request", "keep_going"]


class Request(Enum):
    """A wish of the person at the run."""

    GO = "go"
    PAUSE = "pause"
    """Wait in memory until asked otherwise."""
    LEAVE = "leave"
    """Keep the state and end the process, which frees everything; no LoRA file is written."""
    STOP = "stop"
    """Save the LoRA and the state, then end."""
    DISCARD = "discard"
    """End at once and write nothing more."""


Control = Callable[[], Request]


def keep_going() -> Request:
    """The control of a run that nobody controls."""
    return Request.GO
