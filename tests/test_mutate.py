"""The mutation tool: what it changes, what it leaves alone, and that a fork of it tells killed from survived."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "mutate.py"

SOURCE = '''
"""A module: 1 < 2."""

from __future__ import annotations

from typing import Literal

__all__ = ["half", "Mode"]
Mode = Literal["a", "b"]


def half(low: int, high: int, names: list[str] | None = None) -> int:
    """Between -1 and 1."""
    if low > high:
        raise ValueError(f"{low + 1} is above {high}")
    total = low + high
    total -= 1
    return max(total // 2, abs(total))
'''

CHANGES = {
    "low > high -> (low >= high)",
    "low > high -> True",
    "low > high -> False",
    "low -> high",
    "high -> low",
    'raise ValueError(f"{low + 1} is above {high}") -> pass',
    "low + high -> (low - high)",
    "total -= 1 -> pass",
    "total -= 1 -> total += 1",
    "1 -> 2",
    "max -> min",
    "total // 2 -> (total / 2)",
    "2 -> 3",
    "2 -> 1",
    "abs(total) -> (total)",
}
UNNOTICED = {
    "src/halves.py:14: low > high -> (low >= high)",
    "src/halves.py:18: total // 2 -> (total / 2)",
    "src/halves.py:18: abs(total) -> (total)",
    "src/halves.py:18: 2 -> 1",
    "src/halves.py:18: 2 -> 3",
}
"""Those that the test of the tree below cannot see."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository with the tool, one module and its test."""
    for folder in ("src", "tests", "tools"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tools" / "mutate.py").write_text(TOOL.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "src" / "halves.py").write_text(SOURCE, encoding="utf-8")
    test = """
        import pytest
        from halves import half

        def test_half():
            assert half(3, 8) == 10
            with pytest.raises(ValueError):
                half(9, 2)
    """
    (tmp_path / "tests" / "test_halves.py").write_text(textwrap.dedent(test), encoding="utf-8")
    plan = '[halves]\nsources = ["src/halves.py"]\nstages = [["tests/test_halves.py"]]\n'
    (tmp_path / "tools" / "mutation_plan.toml").write_text(plan, encoding="utf-8")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def run(tree: Path, *arguments: str) -> str:
    command = [sys.executable, "tools/mutate.py", "--results", "results.jsonl", *arguments]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_changed_and_what_is_left_alone(tree: Path) -> None:
    """Neither docstrings, types, ``__all__`` nor messages; and nothing that does not compile."""
    lines = run(tree, "--list", "--count", "99").splitlines()
    assert {line.split(": ", 1)[1] for line in lines} == CHANGES
    assert "src/halves.py:17: total -= 1 -> pass" in lines
    few = run(tree, "--list", "--count", "5", "--seed", "3")
    assert few == run(tree, "--list", "--count", "5", "--seed", "3") != run(tree, "--list", "--count", "5")
    assert len({line.split(":")[1] for line in few.splitlines()}) == 5, "one of each line before a second of any"


def test_a_pass_goes_on_where_it_stopped(tree: Path) -> None:
    source = (tree / "src" / "halves.py").read_bytes()
    run(tree, "--count", "5", "--seed", "4")
    report = run(tree, "--report")
    survivors = set(report.split("\n\n", 1)[1].strip().splitlines())
    drawn = run(tree, "--list", "--count", "5", "--seed", "4").splitlines()
    assert survivors == {name for name in drawn if name in UNNOTICED}
    assert 0 < len(survivors) < 5
    assert (tree / "src" / "halves.py").read_bytes() == source
    results = tree / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 5
    results.write_text("".join(json.dumps(row) + "\n" for row in rows[:-2]), encoding="utf-8")
    run(tree, "--count", "5", "--seed", "4")
    assert run(tree, "--report") == report
