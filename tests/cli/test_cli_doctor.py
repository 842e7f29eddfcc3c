"""``loraloom doctor`` in a terminal: what it prints, wide, narrow and as JSON, and how it ends."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraloom.formats.unfinished import unfinished_file


@pytest.fixture(autouse=True)
def quick_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that cannot be loaded is told of at once: the real one is asked in tests/studio/test_doctor.py."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch\\x1b[31m.so is not there')", encoding="utf-8")
    root = Path(str(sys.modules["loraloom"].__file__)).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(root)]))
    (tmp_path / "folder").mkdir()


def test_problems_and_what_to_do(tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = command("doctor", tmp_path / "folder")
    rows = {line.split()[1]: line for line in outcome.out.splitlines() if line.startswith(("good ", "problem "))}
    assert outcome.code == 1 and not outcome.err
    assert rows["Python"].startswith("good")
    assert rows["torch"].startswith("problem") and rows["torch"].rstrip().endswith(r"libtorch\x1b[31m.so is not there")
    assert "-> remove it and install it again" in outcome.out
    assert outcome.out.splitlines()[-1].startswith("1 problem")
    monkeypatch.setenv("COLUMNS", "44")
    narrow = command("doctor", tmp_path / "folder")
    assert narrow.code == 1 and max(map(len, narrow.out.splitlines())) <= 44
    assert "problem  torch" in narrow.out.splitlines()


def test_json_and_tidy(tmp_path: Path, command: Callable[..., Any]) -> None:
    with unfinished_file(tmp_path / "folder") as left:
        pass
    left.write_bytes(bytes(1234))
    os.utime(left, (10**9, 10**9))
    outcome = command("doctor", "--json", tmp_path / "folder")
    told = json.loads(outcome.out)
    found = {finding["name"]: finding for finding in told["findings"]}
    assert (outcome.code, told["state"], told["freed_bytes"]) == (1, "problem", 0)
    assert found["torch"]["state"] == "problem" and found["Python"]["advice"] == ""
    assert found["unfinished files"]["state"] == "note" and left.exists()
    tidied = json.loads(command("doctor", "--json", "--tidy", tmp_path / "folder").out)
    assert tidied["freed_bytes"] == 1234 and not left.exists()
    assert {finding["name"]: finding for finding in tidied["findings"]}["unfinished files"]["state"] == "good"


def test_a_folder_that_is_not_there(tmp_path: Path, command: Callable[..., Any]) -> None:
    outcome = command("doctor", tmp_path / "nowhere")
    assert outcome.code == 1 and outcome.error_lines[0].endswith("nowhere: there is no such folder")
