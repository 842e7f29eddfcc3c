"""Signals: a wish that a run hears, or the end of other work; never words from inside a handler."""

from __future__ import annotations

import signal
import sys
import threading

import pytest

from loraloom.control import Interrupted, Request
from loraloom.events import Event, ignore
from loraloom.studio.stopping import StopRequest, interrupt_on_signals, stop_on_signals

HANG_UP = getattr(signal, "SIGHUP", signal.SIGTERM)
ENDING = sorted({signal.SIGINT, signal.SIGTERM, HANG_UP})


def test_the_first_signal_asks_and_a_second_ctrl_c_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    stop, heard = StopRequest(), list[Event]()
    with stop_on_signals(stop, heard.append):
        signal.raise_signal(signal.SIGTERM)
        assert stop() is Request.STOP and stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert len(heard) == 1
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.skipif(sys.platform == "win32", reason="needs a hang-up")
def test_a_closing_terminal_hangs_up_more_than_once() -> None:
    stop = StopRequest()
    with stop_on_signals(stop, ignore):
        for number in (HANG_UP, HANG_UP, signal.SIGTERM, HANG_UP):
            signal.raise_signal(number)  # none of them interrupts the save
    assert stop() is Request.STOP and stop.number == HANG_UP


def test_the_words_do_not_come_from_the_handler() -> None:
    """In the middle of a write to the terminal a handler that writes too ends in a RuntimeError."""
    stop, threads = StopRequest(), list[threading.Thread]()
    with stop_on_signals(stop, lambda event: threads.append(threading.current_thread())):
        signal.raise_signal(signal.SIGINT)
    assert len(threads) == 1 and threads[0] is not threading.current_thread()


@pytest.mark.parametrize("number", ENDING)
def test_other_work_is_left_with_the_signal_s_number(number: int) -> None:
    before = signal.getsignal(number)
    with interrupt_on_signals(), pytest.raises(Interrupted) as caught:
        signal.raise_signal(number)
    assert caught.value.number == number
    assert signal.getsignal(number) is before


def test_what_is_cleaned_up_is_not_cut_short() -> None:
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with interrupt_on_signals(), pytest.raises(Interrupted):
        work()
    assert cleaned


@pytest.mark.skipif(sys.platform == "win32", reason="needs a hang-up")
def test_nohup_is_obeyed() -> None:
    before = signal.signal(HANG_UP, signal.SIG_IGN)
    try:
        with interrupt_on_signals():
            signal.raise_signal(HANG_UP)
        stop = StopRequest()
        with stop_on_signals(stop, ignore):
            signal.raise_signal(HANG_UP)
        assert stop() is Request.GO
        assert signal.getsignal(HANG_UP) is signal.SIG_IGN
    finally:
        signal.signal(HANG_UP, before)


def test_another_thread_hears_no_signals_and_works_all_the_same() -> None:
    done = []

    def work() -> None:
        with interrupt_on_signals(), stop_on_signals(StopRequest(), ignore):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done


def test_work_that_leaves_before_there_is_anything_to_save_ends_by_the_signal() -> None:
    """Encoding knows of the wish only that it was made."""
    stop = StopRequest()
    stop.set(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught, stop_on_signals(stop, ignore):
        raise KeyboardInterrupt
    assert caught.value.number == signal.SIGTERM
    with pytest.raises(KeyboardInterrupt) as other, stop_on_signals(StopRequest(), ignore):
        raise KeyboardInterrupt
    assert not isinstance(other.value, Interrupted)
