"""Several processes that train one run: what each of them sees, and that together they learn what one alone learns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
import torch

from loraloom.data.batches import Draw
from loraloom.errors import SettingsError
from loraloom.formats.tensors import open_tensors
from loraloom.training.team import ALONE, Team, is_leader, joined_team, launched_together

Run = Callable[..., Path]


def numbered(count: int) -> list[Draw]:
    return [Draw(None, number, False) for number in range(count)]  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("lengths", [[4], [1, 1, 1, 1], [3, 2], [1], [5, 1, 2]])
def test_every_picture_of_a_step_is_seen_once(lengths: list[int], size: int) -> None:
    draws = numbered(sum(lengths))
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    batches = [draws[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    shares = [Team(rank, size).share(batches) for rank in range(size)]
    seen = sorted(draw.occurrence for share in shares for draw in chain.from_iterable(share))
    assert seen == list(range(sum(lengths)))
    for share in shares:
        for mine in share:
            assert any(set(mine) <= set(batch) for batch in batches), "pictures of two buckets cannot share a batch"
    counts = [sum(map(len, share)) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_alone_nothing_travels() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    ALONE.sum_gradients([parameter])
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert ALONE.from_leader(lambda: 5) == 5
    assert ALONE.exchange("own") == ["own"]
    with joined_team("cpu") as team:
        assert team is ALONE


def test_torchrun_is_told_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched_together() == 1
    assert is_leader()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched_together() == 1, "other programs set it too"
    monkeypatch.setenv("RANK", "1")
    assert launched_together() == 2
    assert not is_leader()
    with pytest.raises(SettingsError, match="under torchrun"), joined_team("cuda:1"):
        pass


@pytest.fixture
def run(tmp_path: Path, pictures: Path, checkpoints: Callable[[str], Path]) -> Run:
    """Train for 20 steps in one or several processes, as a person would; returns the LoRA."""
    base = [
        f"checkpoint={checkpoints('sd1')}",
        f"dataset.folder={pictures}",
        f"output={tmp_path / 'runs'}",
        "dataset.resolution=64",
        "adapter.rank=2",
        "steps=20",
        "batch_size=4",
        "device=cpu",
        "optimizer.lr=1e-4",
        "optimizer.eps=1e-5",  # else adamw gives a gradient that is nothing but rounding the step of a real one
        "lr_schedule.name=constant",
        "saving.precision=float",
        "saving.every_epochs=0",
    ]

    def start(name: str, *arguments: str, processes: int = 1) -> Path:
        command = [sys.executable, "-m"]
        if processes > 1:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
        words = list(arguments) if "--resume" in arguments else [*base, f"name={name}", *arguments]
        ended = subprocess.run(
            [*command, "loraloom", "train", *words],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=240,
        )
        assert ended.returncode == 0, ended.stderr
        return tmp_path / "runs" / name / "weights" / f"{name}.safetensors"

    return start


def furthest(first: Path, second: Path) -> float:
    one, two = open_tensors(first), open_tensors(second)
    assert set(one) == set(two)
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


def test_two_processes_learn_what_one_learns(run: Run, tmp_path: Path, pictures: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 96), "#207020").save(pictures / "1_blue" / "tall.png")  # a bucket of its own, and odd batches
    extra = ("gradient_accumulation=2", "ema.enabled=true", "dataset.flip=true")
    alone = run("alone", *extra)
    together = run("together", *extra, processes=2)
    assert furthest(alone, together) < 1e-5
    written = sorted(path.name for path in (tmp_path / "runs" / "together").rglob("*") if path.is_file())
    assert written == sorted(
        path.name.replace("alone", "together") for path in (tmp_path / "runs" / "alone").rglob("*") if path.is_file()
    ), "one process writes, once"


def test_a_run_of_two_processes_goes_on_alone_and_the_other_way_round(run: Run, tmp_path: Path) -> None:
    straight = run("straight")
    run("two", "steps=10", processes=2)
    two = run("two", "--resume", str(tmp_path / "runs" / "two"), "steps=20")
    assert furthest(straight, two) < 1e-5
    run("one", "steps=10")
    one = run("one", "--resume", str(tmp_path / "runs" / "one"), "steps=20", processes=2)
    assert furthest(straight, one) < 1e-5
