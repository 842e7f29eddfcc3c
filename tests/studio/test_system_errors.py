"""What the system refuses is said in words that every door can show; a fault of the program is not."""

from __future__ import annotations

import errno

import pytest

from loraloom.cli.words import worded
from loraloom.errors import MissingFileError
from loraloom.studio.system_errors import explained


@pytest.mark.parametrize(
    ("error", "problem", "hint"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a.png"),
            "a.png: No space left on device",
            "free some space",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "Read-only file system", "mounted read-only"),
        (MemoryError(), "there is not enough memory for this", "a smaller batch_size"),
        (OSError(errno.ENOTTY, "Not a typewriter"), "Not a typewriter", "the traceback shows where this happened"),
        (OSError("odd"), "odd", "the traceback shows"),
        (ConnectionError(), "ConnectionError", "the traceback shows"),
    ],
    ids=repr,
)
def test_in_words(error: BaseException, problem: str, hint: str) -> None:
    error.add_note("closing b.png: it is gone")
    found = explained(error)
    assert found is not None
    assert found.problem == problem
    assert hint in found.hint
    assert found.__notes__ == ["closing b.png: it is gone"]


def test_the_terminal_has_an_option_for_the_traceback() -> None:
    found = explained(OSError(errno.ENOTTY, "Not a typewriter"))
    assert found is not None
    assert worded(found.hint) == "--debug shows where this happened"


def test_our_own_errors_stay_and_faults_are_none() -> None:
    error = MissingFileError("a.png is missing", "look")
    assert explained(error) is error
    assert explained(ZeroDivisionError("x")) is None
    assert explained(KeyboardInterrupt()) is None
