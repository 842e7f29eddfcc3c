"""What is asked of a run while it goes on, heard alike by all of its processes. No torch here."""

from __future__ import annotations

import signal
from collections.abc import Callable

from loraloom.control import Control, Order, Request, keep_going, number_of, orders_of
from loraloom.events import Listener, RunPaused, RunResumed
from loraloom.training.team import Team

__all__ = ["Leaving", "Wishes"]


class Wishes:
    """A control that all processes of a run ask together: the leading one asks ``control``, and all get its answer.

    ``listener`` hears of a pause when it begins and when it ends; ``before_pause`` is called before that. Every process
    must ask equally often, also while a pause lasts: then none waits for a message that comes after hours.
    ``takes_orders``: who asks carries orders out. Until the first step is done they are left with the control.
    """

    def __init__(
        self,
        control: Control,
        team: Team,
        listener: Listener,
        *,
        step: int = 0,
        before_pause: Callable[[], None] = lambda: None,
        takes_orders: bool = False,
    ) -> None:
        self._control = control
        self._team = team
        self._listener = listener
        self._before_pause = before_pause
        self._takes_orders = takes_orders
        self._is_paused = False
        self.step = step
        """Finished so far."""
        self.number = int(signal.SIGINT)
        """The signal that asked, where it was one."""
        self.orders: tuple[Order, ...] = ()
        """What came with the last answer, to be carried out by whoever asked."""

    def __call__(self) -> Request:
        request, self.number, self.orders = self._team.from_leader(self._asked)
        if request is Request.PAUSE and not self._is_paused:
            self._before_pause()
            self._listener(RunPaused(self.step))
        if request is Request.GO and self._is_paused:
            self._listener(RunResumed(self.step))
        self._is_paused = request is Request.PAUSE
        return request

    @property
    def of_one(self) -> Control:
        """For work of which the processes do not know yet that it is the same in all: several cannot ask then."""
        return self if self._team.size == 1 else keep_going

    @property
    def seldom(self) -> Control:
        """For many small pieces, the same in all processes: a message for each could take longer than the work."""
        return self if self._team.size == 1 else _Seldom(self)

    def _asked(self) -> tuple[Request, int, tuple[Order, ...]]:
        request = self._control()
        orders = orders_of(self._control) if self._takes_orders and self.step else ()
        return request, number_of(self._control), orders


class _Seldom:
    """A control that is really asked at every ``every``-th piece, and in a pause each time.

    Processes that ask equally often send equally many messages.
    """

    def __init__(self, control: Control, every: int = 25) -> None:
        self._control = control
        self._every = every
        self._asked = 0
        self._is_waiting = False

    def __call__(self) -> Request:
        self._asked += 1
        if not self._is_waiting and self._asked % self._every:
            return Request.GO
        request = self._control()
        self._is_waiting = request is Request.PAUSE
        return request


class Leaving:
    """The control of work that can be done anew: whatever is asked, it is left at once, to be asked for elsewhere.

    ``known``: what was asked already when the work began, in spite of which it is done.
    """

    def __init__(self, control: Control, known: Request = Request.GO) -> None:
        self._control = control
        self._known = known
        self.heard = False
        """Whether the work was left for that reason."""

    def __call__(self) -> Request:
        self.heard = self._control() not in (Request.GO, self._known)
        return Request.LEAVE if self.heard else Request.GO
