"""What is asked of a run while it goes on, heard alike by all of its processes. No torch here."""

from __future__ import annotations

import signal
from collections.abc import Callable

from loraloom.control import Control, Request, number_of
from loraloom.events import Listener, RunPaused, RunResumed
from loraloom.training.team import Team

__all__ = ["Leaving", "Wishes"]


class Wishes:
    """A control that all processes of a run ask together: the leading one asks ``control``, and all get its answer.

    ``listener`` hears of a pause when it begins and when it ends; ``before_pause`` is called before that. Every process
    must ask equally often, also while a pause lasts: then none waits for a message that comes after hours.
    """

    def __init__(
        self,
        control: Control,
        team: Team,
        listener: Listener,
        *,
        step: int = 0,
        before_pause: Callable[[], None] = lambda: None,
    ) -> None:
        self._control = control
        self._team = team
        self._listener = listener
        self._before_pause = before_pause
        self._is_paused = False
        self.step = step
        """Finished so far."""
        self.number = int(signal.SIGINT)
        """The signal that asked, where it was one."""

    def __call__(self) -> Request:
        request, self.number = self._team.from_leader(self._asked)
        if request is Request.PAUSE and not self._is_paused:
            self._before_pause()
            self._listener(RunPaused(self.step))
        if request is Request.GO and self._is_paused:
            self._listener(RunResumed(self.step))
        self._is_paused = request is Request.PAUSE
        return request

    def _asked(self) -> tuple[Request, int]:
        request = self._control()
        return request, number_of(self._control)


class Leaving:
    """The control of work that can be done anew: whatever is asked, it is left at once, to be asked for elsewhere."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.heard = False
        """Whether the work was left for that reason."""

    def __call__(self) -> Request:
        self.heard = self._control() is not Request.GO
        return Request.LEAVE if self.heard else Request.GO
