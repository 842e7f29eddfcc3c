"""How work that takes long is asked to wait or to end: one noun for all of it, no matter who asks and from where.

A :class:`Request` says how to go on or to end, and a :data:`Control` is what the work calls to get it. A signal, a file
in a run's folder, a button are controls; :func:`first_of` makes one of several. Work that can simply be left between
two pieces calls :func:`heed` there. A training run asks the control itself, because it has something to save first. A
request holds until another takes its place; an :class:`Order` is carried out once, and the work goes on. No torch here.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from typing import TypeVar

from loraloom.events import Listener, PieceFinished

__all__ = [
    "Control",
    "Interrupted",
    "Order",
    "Request",
    "each_of",
    "first_of",
    "heed",
    "keep_going",
    "number_of",
    "orders_of",
    "wait_out",
]

Piece = TypeVar("Piece")

POLL_S = 0.2
"""How often work that waits looks whether it may go on."""


class Request(Enum):
    """How work that takes long is asked to go on or to end."""

    GO = "go"
    PAUSE = "pause"
    """Wait in memory until asked otherwise."""
    LEAVE = "leave"
    """Keep what is needed to go on later and end the process, which frees everything; a run writes no LoRA file."""
    STOP = "stop"
    """Save what there is, then end."""
    DISCARD = "discard"
    """End at once and write nothing more."""


class Order(Enum):
    """Something that a run is to do once, between two steps; it goes on then as if nothing had been asked."""

    SAVE = "save"
    """Write the LoRA and the state of this step."""
    PREVIEW = "preview"
    """Paint the previews of this step."""


Control = Callable[[], Request]
"""Asked between two pieces of work, so it must cost next to nothing."""


class Interrupted(KeyboardInterrupt):
    """Work was left because it was asked to end; ``number`` is the signal that asked, where it was one."""

    def __init__(self, number: int = signal.SIGINT, request: Request = Request.STOP) -> None:
        super().__init__(number)
        self.number = number
        self.request = request


def keep_going() -> Request:
    """The control of work that nobody controls."""
    return Request.GO


def number_of(control: Control) -> int:
    """The signal by which a control asks, SIGINT for one that is no signal's."""
    return int(getattr(control, "number", signal.SIGINT))


def orders_of(control: Control) -> tuple[Order, ...]:
    """The orders that came since this was asked last: what the ``take_orders()`` of a control gives, if it has one."""
    take: Callable[[], tuple[Order, ...]] | None = getattr(control, "take_orders", None)
    return take() if take is not None else ()


class _FirstOf:
    def __init__(self, controls: tuple[Control, ...]) -> None:
        self._controls = controls
        self.number = int(signal.SIGINT)

    def __call__(self) -> Request:
        for control in self._controls:
            request = control()
            if request is not Request.GO:
                self.number = number_of(control)
                return request
        return Request.GO

    def take_orders(self) -> tuple[Order, ...]:
        """The orders of all, each once."""
        return tuple(dict.fromkeys(order for control in self._controls for order in orders_of(control)))


def first_of(*controls: Control) -> Control:
    """One control of several: it gives the first request that is not to go on, and the signal by which it came.

    Orders are passed on from all of them.
    """
    return _FirstOf(controls)


def wait_out(control: Control, *, sleep: Callable[[float], None] = time.sleep) -> Request:
    """What is asked once nobody asks to wait any more."""
    while (request := control()) is Request.PAUSE:
        sleep(POLL_S)
    return request


def heed(control: Control, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Stand between two pieces of work that can be left here: wait out a pause, go on, or raise Interrupted.

    What is finished stays; the caller undoes or keeps the piece in progress as with any other error.
    """
    request = wait_out(control, sleep=sleep)
    if request is not Request.GO:
        raise Interrupted(number_of(control), request)


def each_of(what: str, pieces: Collection[Piece], listener: Listener, control: Control) -> Iterator[Piece]:
    """The pieces of long work one after another: ``control`` is heeded before each, ``listener`` hears of each done.

    ``what`` the pieces are, in the plural. Raises Interrupted as :func:`heed`.
    """
    for number, piece in enumerate(pieces, start=1):
        heed(control)
        yield piece
        listener(PieceFinished(what, number, len(pieces)))
