"""A budget of memory that threads share: counted in promised bytes, so nothing here depends on speed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from loraloom.formats.memory_budget import MemoryBudget

WAIT = 30


def test_the_sum_of_all_threads_stays_within_it() -> None:
    budget = MemoryBudget(1000)
    needs = [130, 470, 290, 610, 70] * 40

    def work(nbytes: int) -> int:
        with budget.share() as share:
            share.take(nbytes // 3)
            share.take(nbytes - nbytes // 3)
            return share.nbytes

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, needs)) == needs
    assert 610 <= budget.peak <= 1000 + 2 * 610 // 3


def test_small_ones_work_at_the_same_time() -> None:
    budget, together = MemoryBudget(1000), Barrier(3)

    def work(nbytes: int) -> None:
        with budget.share() as share:
            share.take(nbytes)
            together.wait(WAIT)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, [300, 310, 320]))
    assert budget.peak == 930


def test_one_larger_than_the_budget_has_it_alone_and_in_its_turn() -> None:
    """A huge one waits for those before it, and small ones that come later wait behind it."""
    budget, done = MemoryBudget(1000), []

    def work(nbytes: int) -> None:
        with budget.share() as share:
            share.take(nbytes)
            done.append(nbytes)

    with budget.share() as first, ThreadPoolExecutor(2) as pool:
        first.take(400)
        huge = pool.submit(work, 5000)
        while not budget.waiting:
            pass
        small = pool.submit(work, 7)
        while budget.waiting < 2:
            pass
        assert done == []
        first.give_back()
        huge.result(WAIT)
        small.result(WAIT)
    assert done == [5000, 7]
    assert budget.peak == 5000


def test_two_that_both_need_more_do_not_wait_for_one_another() -> None:
    budget, both = MemoryBudget(100), Barrier(2)

    def work(_: int) -> None:
        with budget.share() as share:
            share.take(45)
            both.wait(WAIT)
            share.take(90)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2)))
    assert 135 <= budget.peak <= 180


def test_all_of_it_comes_back_after_an_error() -> None:
    budget = MemoryBudget(100)

    def fail(nbytes: int) -> None:
        with budget.share() as share:
            share.take(nbytes)
            raise KeyError(nbytes)

    for nbytes in (90, 80):  # the second would wait for ever for what the first had kept
        with pytest.raises(KeyError):
            fail(nbytes)
    assert budget.peak == 90
