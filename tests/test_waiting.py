"""No test asserts a time: a bound is counted, or is a ratio within one run (``work.py``)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
_PLAIN = ("time", "monotonic", "perf_counter", "process_time", "thread_time")
CLOCKS = {*_PLAIN, *(f"{name}_ns" for name in _PLAIN)}
MAY_READ_A_CLOCK = {
    "work.py": "ratios within one run",
    "training/kill_test.py": "says how long it took",
    "formats/fuzz_tensors.py": "says how long it took",
    "formats/test_unfinished.py": "makes a file old",
    "weights/fuzz_adapters.py": "says how long it took",
    "tensor_mutations.py": "says how long it took",
    "cli/test_cli_train.py": "gives up on a process that hangs",
    "cli/test_cli_runs.py": "gives up on a process that hangs",
    "waiting.py": "gives up on a process that hangs",
    "web/test_security.py": "sets the clock forward",
    "studio/jobs/test_dispatcher.py": "gives a job the hour at which it began",
    "studio/jobs/kill_test.py": "kills after some seconds",
    "studio/runs/test_runs.py": "makes a file old",
}


def clocks_read(path: Path) -> Iterator[int]:
    """The lines that ask a clock."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
            owner = ast.unparse(node.func.value)
            if owner in ("time", "loop"):
                yield node.lineno


def test_nobody_reads_a_clock_who_could_assert_it() -> None:
    found = {}
    for path in sorted(TESTS.rglob("*.py")):
        if lines := list(clocks_read(path)):
            found[path.relative_to(TESTS).as_posix()] = lines
    assert {name: lines for name, lines in found.items() if name not in MAY_READ_A_CLOCK} == {}
    assert set(MAY_READ_A_CLOCK) <= set(found), "takes no exception any more: remove it from the list"


@pytest.mark.parametrize("name", sorted(MAY_READ_A_CLOCK))
def test_what_a_clock_said_is_in_no_assert(name: str) -> None:
    """In these files a clock's value may stand in a loop's condition or a message, never in an ``assert``."""
    if name == "work.py":
        return
    tree = ast.parse((TESTS / name).read_text(encoding="utf-8"))
    timed = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "time." in ast.unparse(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            names = {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
            assert not names & timed, f"{name}, line {node.lineno}"
            assert "time." not in ast.unparse(node.test), f"{name}, line {node.lineno}"
