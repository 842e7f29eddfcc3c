"""What is asked of a run: told once, heard alike, and left work that can be done anew."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from loraloom.control import Interrupted, Order, Request, first_of, heed, orders_of
from loraloom.events import Event, RunPaused, RunResumed
from loraloom.training.team import ALONE
from loraloom.training.wishes import Leaving, Wishes

GO, PAUSE, STOP = Request.GO, Request.PAUSE, Request.STOP


class Asked:
    """A control that gives these answers, the last one for ever, by this signal."""

    def __init__(self, *answers: Request, number: int = signal.SIGTERM) -> None:
        self._answers: Iterator[Request] = iter(answers)
        self._last = answers[-1]
        self.number = number

    def __call__(self) -> Request:
        return next(self._answers, self._last)


def test_a_pause_is_told_when_it_begins_and_when_it_ends() -> None:
    told: list[Event | str] = []
    wishes = Wishes(
        Asked(GO, PAUSE, PAUSE, PAUSE, GO, GO, PAUSE, STOP),
        ALONE,
        told.append,
        step=7,
        before_pause=lambda: told.append("saved"),
    )
    answers = []
    for number in range(8):
        wishes.step = 7 + number
        answers.append(wishes())
    assert answers == [GO, PAUSE, PAUSE, PAUSE, GO, GO, PAUSE, STOP]
    assert told == ["saved", RunPaused(8), RunResumed(11), "saved", RunPaused(13)], "an end is no resume"


def test_the_signal_arrives_where_the_wish_is_heeded() -> None:
    with pytest.raises(Interrupted) as caught:
        heed(Wishes(Asked(STOP, number=1), ALONE, lambda event: None))
    assert (caught.value.number, caught.value.request) == (1, STOP)


class Ordered(Asked):
    """A control that has orders too, to be taken once."""

    def __init__(self, *orders: Order) -> None:
        super().__init__(GO)
        self.orders = orders

    def take_orders(self) -> tuple[Order, ...]:
        orders, self.orders = self.orders, ()
        return orders


def test_orders_are_taken_by_who_can_carry_them_out() -> None:
    control = Ordered(Order.PREVIEW)
    several = first_of(Asked(GO), control, Ordered(Order.SAVE, Order.PREVIEW))
    heed(Wishes(several, ALONE, lambda event: None, step=3))
    wishes = Wishes(several, ALONE, lambda event: None, takes_orders=True)
    wishes()
    assert wishes.orders == (), "not before the first step"
    wishes.step = 1
    assert (wishes(), wishes.orders) == (GO, (Order.PREVIEW, Order.SAVE))
    assert (wishes(), wishes.orders) == (GO, ())
    assert orders_of(Asked(GO)) == ()


@pytest.mark.parametrize("wish", [PAUSE, STOP, Request.LEAVE, Request.DISCARD])
def test_work_that_can_be_done_anew_is_left_whatever_is_asked(wish: Request) -> None:
    control = Leaving(Asked(GO, wish))
    heed(control)
    assert not control.heard
    with pytest.raises(Interrupted):
        heed(control)
    assert control.heard
