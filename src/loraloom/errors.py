"""Every error a user can meet.

::

    LoraloomError                problem + hint; doors print both, never a traceback
    ├── SettingsError            one or more settings are wrong; all of them are listed
    ├── UnknownNameError         a name that no registry entry carries (nearest names suggested)
    ├── PluginError              what another package adds cannot be used
    ├── FileError                a file or folder cannot be used
    │   ├── MissingFileError     it does not exist
    │   ├── FileFormatError      it is damaged, truncated or not what it should be
    │   │   └── UnsafeFileError  reading it further would mean running its code, or memory without bound
    │   └── OutputError          it cannot be written (no space, no permission, exists already)
    ├── CheckpointError          a readable file that is not a usable checkpoint
    ├── AdapterError             a readable file that is not a usable LoRA, or not one for this checkpoint
    ├── DatasetError             nothing to train on, or a folder layout that cannot be understood
    ├── PromptError              a prompt that names something that is not there
    ├── TrainingError            a run that cannot go on
    │   ├── NotFiniteError       the loss or a gradient became NaN or infinite
    │   └── ResumeError          a run that cannot go on as it was, or is being trained already
    └── HardwareError            the device, precision or memory asked for is not available
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

from loraloom.actions import Sentence
from loraloom.plain_text import one_line

__all__ = [
    "AdapterError",
    "CheckpointError",
    "DatasetError",
    "FileError",
    "FileFormatError",
    "HardwareError",
    "LoraloomError",
    "MissingFileError",
    "NotFiniteError",
    "OutputError",
    "PluginError",
    "PromptError",
    "ResumeError",
    "SettingsError",
    "TrainingError",
    "UnknownNameError",
    "UnsafeFileError",
    "nearest",
    "while_handling",
]


def nearest(name: str, known: Iterable[str], *, count: int = 1) -> list[str]:
    """The ``count`` names in ``known`` that look most like ``name`` (none when nothing is close)."""
    return get_close_matches(name, list(known), n=count, cutoff=0.55)


class LoraloomError(Exception):
    """What went wrong (``problem``, one line that names the thing) and what to do about it (``hint``).

    Both may quote the content of a file: control characters and line ends in them become escapes. A hint that proposes
    something to do is a :class:`~loraloom.actions.Sentence`: neutral words here, its own at each door.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        self.problem = _clean(problem)
        self.hint = _clean(hint)
        super().__init__(self.problem)

    def __str__(self) -> str:
        # A sentence, so that what is made of the text can still propose something.
        return Sentence(self.problem, " (", self.hint, ")") if self.hint else self.problem


def _clean(text: str) -> str:
    return text.each(one_line) if isinstance(text, Sentence) else one_line(text)


@contextmanager
def while_handling(first: BaseException | None, what: str) -> Iterator[None]:
    """Inside, something is rescued or tidied after the failure ``first``, which must stay the one that is shown.

    What fails here is noted on ``first`` ("``what``: ..."), and doors print the notes behind it. Without a ``first``
    nothing is caught; an interruption always passes.
    """
    try:
        yield
    except Exception as second:
        if first is None or second is first:
            raise
        is_ours = isinstance(second, LoraloomError)
        text = str(second) if is_ours else f"{type(second).__name__}: {second}"
        first.add_note(Sentence(f"{what}: ", text))


class SettingsError(LoraloomError):
    """One or more settings are wrong. ``problems`` lists each on a line of its own."""

    def __init__(self, problems: Sequence[str], hint: str = "") -> None:
        super().__init__("", hint)
        self.problems = tuple(map(_clean, problems))
        lines = [part for problem in self.problems for part in ("\n", problem)]
        self.problem = Sentence(*lines[1:])
        self.args = (self.problem,)


class UnknownNameError(LoraloomError):
    """A name that is not among the known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = nearest(name, known)
        suggestion = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"unknown {kind} {name!r}", f"{suggestion}known: {', '.join(known)}")


class PluginError(LoraloomError):
    """What another package adds to a table cannot be imported: its error is the cause."""

    def __init__(self, kind: str, name: str, target: str) -> None:
        super().__init__(
            f"the {kind} {name!r}, which another package adds ({target}), cannot be imported",
            "install a version of that package that fits this one, or uninstall it",
        )


class FileError(LoraloomError):
    """A file or folder cannot be used."""


class MissingFileError(FileError):
    """A file or folder does not exist."""


class FileFormatError(FileError):
    """A file is damaged, truncated or not what it should be."""


class UnsafeFileError(FileFormatError):
    """Reading the file further would mean running its code, or memory without bound."""


class OutputError(FileError):
    """A file cannot be written."""


class CheckpointError(LoraloomError):
    """A readable file that is not a usable checkpoint."""


class AdapterError(LoraloomError):
    """A readable file that is not a usable LoRA, or not one for this checkpoint."""


class DatasetError(LoraloomError):
    """Nothing to train on, or a folder layout that cannot be understood."""


class PromptError(LoraloomError):
    """A prompt that names something that is not there."""


class TrainingError(LoraloomError):
    """A run that cannot go on."""


class NotFiniteError(TrainingError):
    """The loss or a gradient became NaN or infinite."""


class ResumeError(TrainingError):
    """A run that cannot go on as it was, or that another process is training."""


class HardwareError(LoraloomError):
    """The device, precision or memory asked for is not available."""
