"""The last net: whatever happens, a sentence, what to do, and an exit code of its own."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from loraloom.cli.failures import report_threads
from loraloom.control import Interrupted
from loraloom.errors import LoraloomError, OutputError, while_handling

Command = Callable[..., Any]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[BaseException], None]:
    """Makes ``loraloom inspect`` raise something; reports of faults go to ``reports`` in ``tmp_path``."""
    monkeypatch.setattr("loraloom.studio.crash_report.data_folder", lambda: tmp_path / "reports")

    def set_error(error: BaseException) -> None:
        def fail(*arguments: object, **options: object) -> None:
            raise error

        monkeypatch.setattr("loraloom.studio.weights.inspect_file", fail)

    return set_error


def nested(depth: int) -> int:
    return nested(depth + 1) + 1


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError("a secret token=abc9"), KeyError("name"), AssertionError(), EOFError("cut"), StopIteration()],
    ids=repr,
)
def test_a_fault_that_nobody_foresaw(
    error: Exception, raising: Callable[[BaseException], None], command: Command, tmp_path: Path
) -> None:
    raising(error)
    outcome = command("inspect", "x", "--metadata")
    assert outcome.code == 70
    assert "Traceback" not in outcome.err and "abc9" not in outcome.err
    problem, hint = outcome.error_lines
    assert problem.startswith(f"error: a fault in Loraloom itself: {type(error).__name__}")
    path = re.search(r"the traceback is in (\S+);", hint)
    assert path is not None and "please send that file" in hint
    text = Path(path[1]).read_text(encoding="utf-8")
    assert "Traceback" in text and "command: loraloom inspect x --metadata" in text and "abc9" not in text


def test_endless_recursion(raising: Callable[[BaseException], None], command: Command) -> None:
    try:
        nested(0)
    except RecursionError as error:
        raising(error)
    outcome = command("inspect", "x")
    assert outcome.code == 70
    assert "nested too deeply" in outcome.error_lines[0]


def test_without_any_folder_the_traceback_is_printed(
    raising: Callable[[BaseException], None], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.studio.crash_report._folders", lambda: iter(()))
    raising(ZeroDivisionError("x"))
    outcome = command("inspect", "x")
    assert outcome.code == 70
    assert "report it with the text below" in outcome.err
    assert outcome.err.rstrip().endswith("ZeroDivisionError: x")


@pytest.mark.parametrize(
    ("error", "problem", "hint"),
    [
        (MemoryError(), "not enough memory", "batch_size"),
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), "a.bin: No space left", "free some space"),
        (OSError(errno.EROFS, "Read-only file system", "b.bin"), "b.bin: Read-only", "another folder"),
        (OSError(errno.ENOENT, "No such file", "c.png"), "c.png: No such file", "removed while the command ran"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe", "--debug"),
        (TimeoutError(), "TimeoutError", "--debug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_the_system_refuses_is_no_fault(
    error: Exception, problem: str, hint: str, raising: Callable[[BaseException], None], command: Command
) -> None:
    raising(error)
    outcome = command("inspect", "x")
    assert outcome.code == 1
    assert problem in outcome.error_lines[0] and hint in outcome.error_lines[1]


@pytest.mark.parametrize("place", ["typer.main.get_command", "typer.core.TyperGroup.make_context"])
def test_an_interruption_before_the_command_begins(
    place: str, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """The commands are put together and the words are read in the first tenths of a second."""

    def stopped(*arguments: object, **options: object) -> NoReturn:
        raise Interrupted(15)

    monkeypatch.setattr(place, stopped)
    outcome = command("inspect", "x")
    assert (outcome.code, outcome.err.strip()) == (143, "stopped")


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143), (1, 129)])
def test_an_interruption_ends_with_its_signal(
    number: int, code: int, raising: Callable[[BaseException], None], command: Command
) -> None:
    raising(Interrupted(number))
    outcome = command("inspect", "x")
    assert (outcome.code, outcome.error_lines) == (code, [])
    assert outcome.err.strip() == "stopped"


def test_the_first_failure_is_printed_first(raising: Callable[[BaseException], None], command: Command) -> None:
    first = OutputError("the first", "do this")
    with while_handling(first, "the state"):
        raise LoraloomError("the second", "or that")
    with while_handling(first, "the curves"):
        raise ZeroDivisionError("the third")
    raising(first)
    outcome = command("inspect", "x")
    assert [" ".join(line.split()) for line in outcome.err.splitlines()] == [
        "error: the first",
        "hint: do this",
        "then: the state: the second (or that)",
        "then: the curves: ZeroDivisionError: the third",
    ]


def test_while_handling_lets_interruptions_and_a_first_failure_pass() -> None:
    with pytest.raises(ZeroDivisionError), while_handling(None, "nothing failed before"):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), while_handling(ValueError(), "x"):
        raise KeyboardInterrupt


def test_a_fault_in_a_thread(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("loraloom.studio.crash_report.data_folder", lambda: tmp_path)

    def fail() -> None:
        raise ZeroDivisionError("in a thread")

    before = threading.excepthook
    with report_threads(["train"]):
        thread = threading.Thread(target=fail, name="webhook")
        thread.start()
        thread.join()
    assert threading.excepthook is before
    said = capsys.readouterr().err
    assert "in the thread webhook; the work goes on without it" in said.replace("\n", " ")
    assert "Traceback" not in said
    (report,) = (tmp_path / "crash-reports").iterdir()
    assert "in a thread" in report.read_text(encoding="utf-8")


def test_no_part_of_a_message_becomes_an_emoji(raising: Callable[[BaseException], None], command: Command) -> None:
    """``:a:`` is in prompts and LoRA tags, and is shown as it was written."""
    raising(LoraloomError("<lora:a:nan>: no weight", "write <lora:cat:0.8>, not :smiley:"))
    err = command("inspect", "x").err
    assert "<lora:a:nan>" in err
    assert "<lora:cat:0.8>, not :smiley:" in err
