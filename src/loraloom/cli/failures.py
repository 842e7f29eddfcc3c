"""How failures are shown: a problem and a hint, never a traceback; and what happens to unexpected ones."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence

from loraloom.cli.output import visible, visible_line
from loraloom.errors import LoraloomError

__all__ = ["UNFORESEEN", "report_threads", "show_failure", "show_interruption", "show_unforeseen"]

UNFORESEEN = 70
"""Exit code of a fault in the program (EX_SOFTWARE of sysexits.h)."""

_GOES_ON = {
    "train": "what was saved before stays in the run folder; `loraloom train --resume RUN` goes on from there",
    "resume": "what was saved before stays in the run folder; `loraloom resume RUN` goes on from there",
    "studio": "what runs goes on; `loraloom studio` shows it again",
    "sweep": "finished runs are kept; the same command again goes on",
    "generate": "images that are finished stay",
    "grid": "images that are finished stay; the same command again goes on",
    "class-images": "pictures that are finished stay; the same command again goes on",
    "scan": "what was read so far is in the index; the same command again goes on",
    "work": "jobs that run go on in processes of their own; `loraloom work` goes on with the queue",
    "demo": "what is finished stays in its folder; give the next demo another one",
}
_NOTHING = "nothing was written; the same command again starts from the beginning"
_CHANGES_NOTHING = frozenset(
    {"check", "captions", "plan", "inspect", "settings", "tokens", "runs", "jobs", "search", "show"}
)


def show_failure(error: LoraloomError) -> None:
    """Print an error's problem and hint to stderr, a line each, and then what failed while it was being handled.

    Text that comes from a file cannot steer the terminal.
    """
    from rich.console import Console

    problem, hint = visible(error.problem), visible(error.hint)
    console = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    console.print("error:", style="bold red", end=" ")
    console.print(problem, markup=False)
    if hint:
        console.print("hint:", style="cyan", end="  ")
        console.print(hint, markup=False)
    for note in getattr(error, "__notes__", ()):
        console.print("then:", style="bold red", end="  ")
        console.print(visible_line(note), markup=False)


def show_interruption(command: str) -> None:
    """Say what is left after a command was interrupted, and how to go on."""
    from rich.console import Console
    from rich.text import Text

    left = _GOES_ON.get(command, "" if command in _CHANGES_NOTHING else _NOTHING)
    text = f"stopped: {left}" if left else "stopped"
    Console(stderr=True, highlight=False, emoji=False).print(Text(text, "yellow"), soft_wrap=True)


def show_unforeseen(error: BaseException, arguments: Sequence[str], *, where: str = "") -> None:
    """Say in a sentence that the program has a fault, write the traceback to a file and ask for it."""
    from loraloom.studio.crash_report import report_text, without_secrets, write_report

    path = write_report(error, arguments)
    said = " ".join(without_secrets(str(error)).split())[:300]
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    if isinstance(error, RecursionError):
        what = f"something is nested too deeply ({type(error).__name__})"
    problem = f"a fault in Loraloom itself{where}: {what}"
    if path is None:
        show_failure(LoraloomError(problem, "please report it with the text below, which no folder could take"))
        print(report_text(error, arguments), file=sys.stderr)  # noqa: T201 (a door)
        return
    show_failure(
        LoraloomError(problem, f"the traceback is in {path}; please send that file with a report of the fault")
    )


@contextlib.contextmanager
def report_threads(arguments: Sequence[str]) -> Iterator[None]:
    """Inside, a fault in a thread is shown as any other instead of a traceback; the work goes on without the thread."""

    def hook(fault: threading.ExceptHookArgs) -> None:
        if fault.exc_value is None or isinstance(fault.exc_value, SystemExit | KeyboardInterrupt):
            return
        name = fault.thread.name if fault.thread is not None else "a thread"
        show_unforeseen(fault.exc_value, arguments, where=f" (in the thread {name}; the work goes on without it)")

    before = threading.excepthook
    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
