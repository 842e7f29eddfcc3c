"""Between two steps of a run: requests to pause or end it, and work that is interrupted by them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from loraloom.control import POLL_S, Control, Interrupted, Order, Request, keep_going
from loraloom.events import Notice
from loraloom.training.parts import RunParts
from loraloom.training.progress import Progress
from loraloom.training.wishes import Leaving, Wishes

__all__ = ["Interludes"]

T = TypeVar("T")


class Interludes:
    """Asks the control of a run, in all its processes alike.

    ``before_pause`` is called before a pause begins, ``carry_out`` with every order that comes; it may :meth:`do` work.
    """

    def __init__(
        self,
        parts: RunParts,
        progress: Progress,
        before_pause: Callable[[], None],
        carry_out: Callable[[Order], None],
    ) -> None:
        self._parts = parts
        self._progress = progress
        self._before_pause = before_pause
        self._carry_out = carry_out
        self.heard = Request.GO
        """What was asked last: how the run is to end, or to go on; to wait only while orders are carried out."""
        self.obey(keep_going)

    def obey(self, control: Control) -> None:
        """Ask this control from now on."""
        parts = self._parts
        self._control = control
        self._wishes = Wishes(
            control,
            parts.team,
            parts.listener,
            step=self._progress.step,
            before_pause=self._before_pause,
            takes_orders=True,
        )

    @property
    def number(self) -> int:
        """The signal that asked, where it was one."""
        return self._wishes.number

    def ask(self) -> Request:
        """What to do after this step, once nobody asks to wait any more; all processes do the same.

        Orders are carried out at once, also while the run waits, and before it ends.
        """
        self._wishes.step = self._progress.step
        while True:
            self.heard = self._wishes()
            for order in self._wishes.orders:
                self._carry_out(order)  # which may hear of the end
            if self.heard is not Request.PAUSE:
                return self.heard
            time.sleep(POLL_S)

    def do(self, what: str, work: Callable[[Control], T]) -> T | None:
        """What ``work`` of the leading process between two steps comes to, in every process.

        It is left as soon as anything is asked that was not asked before: after a pause it is done anew, and where the
        run is to end it is given up with a notice that names ``what``. None then.
        """
        while self.heard in (Request.GO, Request.PAUSE):
            is_done, result = self._parts.team.from_leader(lambda: self._attempt(work))
            if is_done:
                return result
            self.ask()

        text = f"{what} of step {self._progress.step} was skipped: the run was asked to end"
        self._parts.listener(Notice(text, "warning"))
        return None

    def _attempt(self, work: Callable[[Control], T]) -> tuple[bool, T | None]:
        """Whether the work came to its end, and what it came to."""
        control = Leaving(self._control, known=self.heard)
        try:
            return True, work(control)
        except Interrupted:
            if not control.heard:  # an interruption at once, not a request
                raise
            return False, None
