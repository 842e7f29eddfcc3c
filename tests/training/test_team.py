"""Several processes that train one run: what each of them sees, and that together they learn what one alone learns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from loraloom.adapters.adapter import Adapter, Rows
from loraloom.adapters.lora import LoraAdapter
from loraloom.data.batches import Draw
from loraloom.errors import HardwareError, SettingsError
from loraloom.formats.tensors import open_tensors
from loraloom.models.conditioning import Conditioning
from loraloom.training.settings import ObjectiveSettings
from loraloom.training.state import Identity, check_alike
from loraloom.training.step import Batch, Objective, Part
from loraloom.training.team import ALONE, Team, is_leader, joined_team, launched_together, one_voice

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
    seen = sorted(part.batch[row].occurrence for part in chain.from_iterable(shares) for row in part.rows)
    assert seen == list(range(sum(lengths)))
    for part in chain.from_iterable(shares):
        assert part.batch == batches[part.number], "pictures of two buckets cannot share a batch"
    counts = [sum(len(part.rows) for part in share) for share in shares]
    assert max(counts) - min(counts) <= 1


def test_alone_nothing_travels() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), 3.0)
    assert ALONE.sum_gradients([parameter], torch.tensor(2.0)) == 2.0
    assert parameter.grad.tolist() == [3.0, 3.0]
    assert ALONE.from_leader(lambda: 5) == 5
    assert ALONE.exchange("own") == ["own"]
    with joined_team() as team:
        assert team is ALONE
    assert not torch.distributed.is_initialized()


def test_torchrun_is_told_by_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launched_together() == 1
    assert is_leader()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched_together() == 1, "other programs set it too"
    monkeypatch.setenv("RANK", "1")
    assert launched_together() == 2
    assert not is_leader()
    with pytest.raises(SettingsError, match="under torchrun"):
        Team(1, 2).device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit), one_voice():
        raise SettingsError(["the first process of this machine says it"])


def test_processes_without_a_picture_are_refused() -> None:
    Team(0, 4).check(batch_size=2, gradient_accumulation=2)
    with pytest.raises(SettingsError, match=r"4 processes share the 3 picture.* not for each process") as failure:
        Team(0, 4).check(batch_size=3, gradient_accumulation=1)
    assert "batch_size=4" in failure.value.hint


class Noted(Store):
    """What processes tell one another, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.values: dict[str, str] = {}

    def add(self, key: str, value: int) -> int:  # type: ignore[override]
        self.counts[key] += value
        return self.counts[key]

    def set(self, key: str, value: str) -> None:  # type: ignore[override]
        self.values[key] = value


def test_one_process_says_what_went_wrong() -> None:
    store = Noted()
    first, second = Team(1, 2, store=store), Team(0, 2, store=store)
    assert first.fails_first(SettingsError(["no such thing"], "try another"))
    assert not second.fails_first(HardwareError("another process of this run is gone"))
    (told,) = store.values.values()
    assert told.startswith("process 1 on ") and "no such thing" in told and told.endswith("\ntry another")


def two_of_four(adapter: Adapter, shape: tuple[int, ...]) -> Tensor:
    return adapter.draw_rows(shape, torch.Generator().manual_seed(5), torch.device("cpu"))


def test_a_part_of_a_batch_drops_what_it_would_have_dropped_in_the_whole() -> None:
    adapter = LoraAdapter(torch.zeros(2, 3), torch.zeros(3, 2), 1.0)
    whole = two_of_four(adapter, (4, 7))
    adapter.rows = Rows((1, 3), 4)
    assert torch.equal(two_of_four(adapter, (2, 7)), whole[[1, 3]])
    alone = two_of_four(adapter, (3, 7))
    assert torch.equal(alone, torch.rand(3, 7, generator=torch.Generator().manual_seed(5)))


def test_a_part_of_a_batch_has_the_timesteps_of_the_whole() -> None:
    settings = ObjectiveSettings(stratified_timesteps=True)
    objective = Objective(sd_schedule(), "epsilon", 3, settings)
    keys = [(0, f"picture {number}", 0) for number in range(4)]
    none = Conditioning(torch.zeros(4, 1, 1))
    whole = objective.timesteps(Batch(torch.zeros(4, 4, 8, 8), none, torch.ones(4), keys))
    part = Batch(torch.zeros(2, 4, 8, 8), none, torch.ones(2), [keys[1], keys[3]], part=Part(keys, (1, 3)))
    assert objective.timesteps(part).tolist() == whole[[1, 3]].tolist()


def identity(**changes: object) -> Identity:
    settings = {"optimizer.lr": 1e-4, "dataset.folder": "/here", "device": "auto"}
    return replace(Identity("base", "pictures", {"a": "1"}, settings), **changes)  # type: ignore[arg-type]


def test_machines_must_have_the_same() -> None:
    elsewhere = identity(settings={"optimizer.lr": 1e-4, "dataset.folder": "/there", "device": "cuda"})
    check_alike([(identity(), "bf16"), (elsewhere, "bf16")])
    other = identity(
        checkpoint="another", dataset="more", samples={"a": "2", "b": "1"}, settings={"optimizer.lr": 1e-3}
    )
    with pytest.raises(SettingsError) as failure:
        check_alike([(identity(), "bf16"), (identity(), "bf16"), (other, "fp16")])
    problem = failure.value.problem
    assert "process 2" in problem and "process 1" not in problem
    for text in ("checkpoint", "1 changed (a)", "1 new (b)", "optimizer.lr = 0.001 instead of 0.0001", "fp16"):
        assert text in problem


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
