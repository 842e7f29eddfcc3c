"""How work is asked to end: Ctrl-C, the end of a session, a closed terminal. One place turns signals into a request.

Work that ends well by itself (a training run finishes its step and saves) asks a :class:`StopRequest`, a control, with
:func:`stop_on_signals` around it. All other work is left by :class:`Interrupted`, raised between two lines of Python:
files are written whole or not at all, so what is finished stays and nothing is half-written.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from loraloom.control import Interrupted, Request
from loraloom.events import Listener, Notice
from loraloom.training.team import launched_together

__all__ = ["StopRequest", "interrupt_on_signals", "stop_on_signals"]

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Ctrl-C, a polite kill, a closed terminal, Ctrl-Break; those that the system knows."""
_HURRIED = ("SIGINT", "SIGBREAK")
"""Asked again by these, work is left at once. A terminal that is closed sends the others more than once by itself."""


class StopRequest:
    """The control of a flag that any thread or signal may raise; a run ends after the step in progress.

    No lock is taken, so a signal that comes while the flag is being asked for cannot wait for itself.
    """

    def __init__(self) -> None:
        self.is_set = False
        self.number = int(signal.SIGINT)
        """The signal that asked, where it was one."""

    def __call__(self) -> Request:
        return Request.STOP if self.is_set else Request.GO

    def set(self, number: int = signal.SIGINT) -> None:
        """Ask the run to stop."""
        self.number = number
        self.is_set = True


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Inside, the first signal raises :class:`Interrupted` in the main thread.

    Later ones raise it again only if a person hurries: what is cleaned up must not be cut short.
    """
    came = False

    def handle(number: int) -> None:
        nonlocal came
        if not came or number in _numbers(_HURRIED):
            came = True
            raise Interrupted(number)

    with _signals_to(handle):
        yield


@contextmanager
def stop_on_signals(stop: StopRequest, listener: Listener) -> Iterator[None]:
    """Inside: the first signal asks for a clean stop, which ``listener`` hears of; a second Ctrl-C interrupts at once.

    Work that is left because of the request, before there is anything to save, ends as :class:`Interrupted` by that
    signal. Under torchrun a second one is not heard: torchrun passes on the Ctrl-C that the terminal has already sent.
    """
    alone = launched_together() == 1
    hint = "Ctrl-C again to stop at once" if alone else "torchrun kills what is not done in 30 seconds"
    # A signal comes between any two instructions, also in the middle of a write to the terminal, where nothing more can
    # be written. So the words come from a thread.
    wishes: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def announce() -> None:
        if wishes.get():
            listener(Notice(f"stopping after this step, then saving; {hint}", "warning"))

    def handle(number: int) -> None:
        if not stop.is_set:
            stop.set(number)
            wishes.put(True)
        elif alone and number in _numbers(_HURRIED):
            raise Interrupted(number)

    announcer = threading.Thread(target=announce, name="second request to stop", daemon=True)
    announcer.start()
    try:
        with _signals_to(handle):
            yield
    except KeyboardInterrupt as left:
        if isinstance(left, Interrupted) or not stop.is_set:
            raise
        raise Interrupted(stop.number) from left
    finally:
        wishes.put(False)
        announcer.join()


@contextmanager
def _signals_to(handle: Callable[[int], None]) -> Iterator[None]:
    """Inside, ``handle`` gets the number of every signal that asks this process to end.

    A hang-up that was to be ignored from the start (nohup) stays ignored. Only the main thread can hear signals; in
    another one nothing changes.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        handle(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in _numbers(_SIGNALS)}
    ignored = {number for number in _numbers(("SIGHUP",)) if previous[number] is signal.SIG_IGN}
    heard = [number for number in previous if number not in ignored]
    for number in heard:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heard:
            before = previous[number]
            signal.signal(number, signal.SIG_DFL if before is None else before)


def _numbers(names: tuple[str, ...]) -> list[int]:
    return [int(getattr(signal, name)) for name in names if hasattr(signal, name)]
