"""Wishes to work that takes long: one noun, whoever asks."""

from __future__ import annotations

import itertools
import signal

import pytest

from loraloom.control import Control, Interrupted, Request, first_of, heed, keep_going, wait_out


def test_work_that_nobody_controls_goes_on() -> None:
    heed(keep_going)


def test_a_pause_is_waited_out_and_the_wish_behind_it_is_heard() -> None:
    wishes, slept = iter([Request.PAUSE] * 3 + [Request.GO]), list[float]()
    heed(lambda: next(wishes), sleep=slept.append)
    assert len(slept) == 3
    stopped = itertools.chain([Request.PAUSE], itertools.repeat(Request.DISCARD))
    with pytest.raises(Interrupted):
        heed(lambda: next(stopped), sleep=slept.append)


@pytest.mark.parametrize("request_", [Request.LEAVE, Request.STOP, Request.DISCARD])
def test_every_wish_to_end_leaves_the_work(request_: Request) -> None:
    with pytest.raises(Interrupted) as caught:
        heed(lambda: request_)
    assert (caught.value.number, caught.value.request) == (signal.SIGINT, request_)


class Signalled:
    number = 15

    def __call__(self) -> Request:
        return Request.STOP


@pytest.mark.parametrize("control", [Signalled(), first_of(keep_going, Signalled(), lambda: Request.LEAVE)])
def test_the_signal_of_a_control_that_has_one_is_passed_on(control: Control) -> None:
    with pytest.raises(Interrupted) as caught:
        heed(control)
    assert caught.value.number == 15


def test_what_is_asked_behind_a_pause_is_given() -> None:
    wishes, slept = iter([Request.PAUSE, Request.PAUSE, Request.LEAVE]), list[float]()
    assert wait_out(lambda: next(wishes), sleep=slept.append) is Request.LEAVE
    assert len(slept) == 2


def test_the_first_of_several_that_wishes_something_is_obeyed() -> None:
    assert first_of()() is Request.GO
    control = first_of(keep_going, lambda: Request.PAUSE, lambda: Request.STOP)
    assert control() is Request.PAUSE
