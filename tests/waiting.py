"""Wait for what another process does; give up on one that hangs."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from work import HANGS_AFTER_S

__all__ = ["until"]


def until(condition: Callable[[], bool], state: Callable[[], object] = lambda: "") -> None:
    """Return once something is so; the test fails with ``state`` where it never is."""
    deadline = time.monotonic() + HANGS_AFTER_S
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {HANGS_AFTER_S:.0f} s: {state()}")
        time.sleep(0.02)
