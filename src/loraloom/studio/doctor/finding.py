"""What a check gives, and what it looks at."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import loraloom
from loraloom.actions import Action, Proposal, Sentence
from loraloom.folders import cache_folder, data_folder
from loraloom.studio.doctor.torch_process import TorchProcess
from loraloom.studio.library import index_path

__all__ = ["Check", "Finding", "Machine", "State", "good", "note", "problem"]

State = Literal["good", "note", "problem"]
"""good: nothing to do; note: it works, and could be better; problem: something will fail."""


@dataclass(frozen=True)
class Finding:
    """What a check found. ``advice``, empty where all is well, keeps the actions that it proposes."""

    name: str
    state: State
    found: str
    advice: str = ""


def good(name: str, found: str) -> Finding:
    """Nothing is to be done."""
    return Finding(name, "good", found)


def note(name: str, found: str, *advice: str | Action | Proposal) -> Finding:
    """It works, and could be better."""
    return Finding(name, "note", found, Sentence(*advice))


def problem(name: str, found: str, *advice: str | Action | Proposal) -> Finding:
    """Something that a person wants will fail."""
    return Finding(name, "problem", found, Sentence(*advice))


@dataclass
class Machine:
    """What is looked at: the folder somebody works in, Loraloom's own folders, and what torch says of the devices.

    A context manager: at its end the process that asks torch is not waited for any more.
    """

    folder: Path
    cache: Path = field(default_factory=cache_folder)
    data: Path = field(default_factory=data_folder)
    index: Path = field(default_factory=index_path)
    package: Path = field(default_factory=lambda: Path(loraloom.__file__))
    torch: TorchProcess = field(default_factory=TorchProcess)

    @cached_property
    def temporary(self) -> Path:
        """Where the system wants temporary files. Raises OSError where it has no place for them."""
        return Path(tempfile.gettempdir())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.torch.close()


Check = Callable[[Machine], Iterable[Finding]]
"""A check gives one finding, several of a kind (one for each disk), or none where it does not concern this system."""
