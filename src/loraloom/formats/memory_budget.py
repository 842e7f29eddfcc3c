"""Memory that several threads share: one that needs more than is left waits until others give theirs back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

__all__ = ["MemoryBudget", "MemoryShare"]


class MemoryBudget:
    """At most ``limit`` bytes at once, in the order in which they were asked for.

    A request for more than the limit gets all of it alone: nobody else has any meanwhile. Bytes are those that were
    promised, not measured ones. ``peak``: the most that was ever given out at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.peak = 0
        self._given = 0
        self._changed = Condition()
        self._waiting: deque[MemoryShare] = deque()
        self._holders = 0

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    @contextmanager
    def share(self) -> Iterator[MemoryShare]:
        """A share for the length of the block, empty at first; all of it goes back at the end."""
        share = MemoryShare(self)
        try:
            yield share
        finally:
            share.give_back()

    def _take(self, share: MemoryShare, nbytes: int) -> None:
        with self._changed:
            self._waiting.append(share)
            # Somebody who waits is not at work, so that two who wait can never wait for one another.
            self._holders -= bool(share.nbytes)
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._waiting[0] is share and self._fits(nbytes))
                self._holders += 1
            except BaseException:
                self._holders += bool(share.nbytes)
                raise
            finally:
                self._waiting.remove(share)
                self._changed.notify_all()
            self._given += nbytes
            share.nbytes += nbytes
            self.peak = max(self.peak, self._given)

    def _fits(self, nbytes: int) -> bool:
        return self._holders == 0 or self._given + nbytes <= self.limit

    def _return(self, share: MemoryShare) -> None:
        with self._changed:
            self._holders -= bool(share.nbytes)
            self._given -= share.nbytes
            share.nbytes = 0
            self._changed.notify_all()


class MemoryShare:
    """What one user of a :class:`MemoryBudget` has of it."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.nbytes = 0

    def take(self, nbytes: int) -> None:
        """Have ``nbytes`` more, waiting for them if need be."""
        self._budget._take(self, max(nbytes, 1))

    def give_back(self) -> None:
        """Have nothing any more."""
        self._budget._return(self)
