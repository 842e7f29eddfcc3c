"""Shared by every test: few threads (oversubscription slows toys a hundredfold), no network, fixed seeds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a person's shell says of colours, widths and languages is no part of a test, in this process and in others.
for variable in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES", "RANK"):
    os.environ.pop(variable, None)
os.environ |= {"NO_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

from loraloom.formats.tensors import write_tensors  # noqa: E402
from toy_runs import write_pictures  # noqa: E402
from toys import toy_tensors  # noqa: E402

torch.set_num_threads(1)

# An example has no time limit, and a machine that is slow at making them is no fault.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_second_reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read back by diffusers, in a process that takes seconds, only where a test is about that."""
    if request.path.name != "test_read_back.py":
        monkeypatch.setattr("loraloom.studio.read_back.reader_installed", lambda: False)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Toy checkpoint file of a family, written once a session."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def path(family: str) -> Path:
        file = folder / f"{family}.safetensors"
        if not file.exists():
            write_tensors(file, toy_tensors(family))
        return file

    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four 64 px pictures in two concept folders, two of them without a caption file."""
    return write_pictures(tmp_path / "pictures")


LONGEST_FIRST = (
    "test_golden.py",
    "test_state.py",
    "test_trainer.py",
    "test_sweeps.py",
    "test_code_style.py",
    "test_dialects.py",
    "test_plan.py",
    "test_team.py",
    "test_output.py",
    "test_agenda.py",
    "test_validation.py",
    "test_demo.py",
)
"""Files that take half a minute and more: started last, one of them would keep a single core busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest files first; within a file nothing changes."""
    order = {name: index for index, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
