"""Several processes that train one run: what each of them sees, and that together they learn what one alone learns."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.distributed import Store
from typer.testing import CliRunner

from loraloom.adapters.adapter import Adapter, Rows
from loraloom.adapters.lora import LoraAdapter
from loraloom.cli.main import app
from loraloom.control import Order, Request
from loraloom.data.batches import Draw
from loraloom.diffusion.schedules import NoiseSchedule
from loraloom.errors import HardwareError, SettingsError
from loraloom.events import (
    Event,
    PreviewSaved,
    RunFinished,
    RunPaused,
    RunResumed,
    StateSaved,
    StepFinished,
    WeightsSaved,
    ignore,
)
from loraloom.formats.tensors import open_tensors
from loraloom.models.conditioning import Conditioning
from loraloom.studio.runs.control import ask
from loraloom.studio.runs.log import RunLog
from loraloom.studio.runs.orders import give_order
from loraloom.studio.runs.training import branch_training, run_training
from loraloom.training.identity import Identity, check_alike
from loraloom.training.settings import ObjectiveSettings, TrainSettings
from loraloom.training.step import Batch, Objective, Part
from loraloom.training.steps import Step
from loraloom.training.team import ALONE, Team, is_leader, joined_team, launched_together, one_voice
from loraloom.training.trainer import TrainingRun
from work import HANGS_AFTER_S


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


@pytest.mark.parametrize("words", [["sweep", "optimizer.lr=1e-4,1e-3"], ["generate", "a cat"]])
def test_other_commands_are_not_for_torchrun(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    failure = CliRunner().invoke(app, words).exception
    assert isinstance(failure, SettingsError) and "under torchrun" in failure.problem


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
    objective = Objective(NoiseSchedule.scaled_linear(), "epsilon", 3, settings)
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
def photographs(tmp_path: Path) -> Path:
    """Seven training pictures of two shapes and three regularization images, of 128 px, with captions."""
    for number in range(10):
        folder = tmp_path / "photographs" / ("1_thing" if number > 6 else "1_sks thing")
        if number > 6:
            folder = tmp_path / "regularization" / "1_thing"
        folder.mkdir(parents=True, exist_ok=True)
        size = (128, 192) if number in (1, 4, 5) else (128, 128)
        shades = torch.rand(4, 4, 3, generator=torch.Generator().manual_seed(number)).mul(255).byte().numpy()
        Image.fromarray(shades).resize(size).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a thing, number {number}", encoding="utf-8")
    return tmp_path / "photographs"


@pytest.fixture
def words(tmp_path: Path, photographs: Path, checkpoints: Callable[[str], Path]) -> list[str]:
    """Settings of a run in which all that is random for a batch as a whole plays a part."""
    return [
        f"checkpoint='{checkpoints('sd1')}'",
        f"dataset.folder='{photographs}'",
        f"dataset.regularization_folder='{tmp_path / 'regularization'}'",
        f"output='{tmp_path / 'runs'}'",
        "dataset.resolution=128",  # smaller, and the innermost level is one pixel, whose gradients are rounding
        "dataset.flip=true",
        "adapter.rank=2",
        "adapter.dropout=0.2",
        "adapter.rank_dropout=0.2",
        "adapter.module_dropout=0.1",
        "optimizer.text_encoder_lr=1e-4",
        "optimizer.lr=1e-4",
        "optimizer.eps=1e-5",  # else adamw gives a gradient that is nothing but rounding the step of a real one
        "objective.stratified_timesteps=true",
        "lr_schedule.name=constant",
        "ema.enabled=true",
        "validation.share=0.2",
        "validation.every_epochs=20",
        "validation.timesteps=1",
        "batch_size=2",
        "gradient_accumulation=2",
        "steps=20",
        "device=cpu",
        "saving.precision=float",
        "saving.every_epochs=0",
        "saving.state_every_steps=15",
    ]


@pytest.mark.parametrize(("kind", "size"), [("lora", 3), ("dora", 2)])
def test_the_gradients_of_the_shares_add_up_to_those_of_the_step(
    words: list[str], tmp_path: Path, kind: str, size: int
) -> None:
    settings = TrainSettings.load(None, [*words, f"adapter.kind={kind}"])
    run = TrainingRun.prepare(settings, tmp_path, ignore)
    random = torch.Generator().manual_seed(0)
    for parameter in run.parts.adapters.parameters():
        if parameter.requires_grad and kind != "dora":
            torch.nn.init.normal_(parameter, std=0.05, generator=random)
    try:
        step = next(
            step for step in run.plan.remaining(0) if len({draws[0].sample.bucket for draws in step.batches}) == 2
        )
        whole, loss = gradients(run, step, ALONE)
        shares = [gradients(run, step, Team(rank, size)) for rank in range(size)]
        assert sum(share for _, share in shares) == pytest.approx(loss, rel=1e-6)
        largest = max(float(gradient.abs().max()) for gradient in whole.values())
        for name, gradient in whole.items():
            summed = sum((share[name] for share, _ in shares if name in share), torch.zeros_like(gradient))
            assert float((summed - gradient).abs().max()) < 2e-5 * largest, name
    finally:
        run.parts.attachment.detach()


def gradients(run: TrainingRun, step: Step, team: Team) -> tuple[dict[str, Tensor], float]:
    run.parts.team = team
    run.parts.optimizer.zero_grad(set_to_none=True)
    run.parts.adapters.train()
    loss = float(run.updates.accumulate(step))
    return {name: p.grad.clone() for name, p in run.parts.adapters.named_parameters() if p.grad is not None}, loss


TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "loraloom"]


def in_two_processes(*arguments: str) -> str:
    """``loraloom train`` as a person would start it; what it printed."""
    ended = subprocess.run(
        [*TOGETHER, "train", *arguments, "saving.read_back=false"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=HANGS_AFTER_S,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout + ended.stderr


def furthest(first: Path, second: Path) -> float:
    """The largest difference between the LoRAs, or states, in two files."""
    one, two = open_tensors(first), open_tensors(second)
    assert set(one) == set(two)
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


def files(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())


def test_two_processes_learn_what_one_learns_and_go_on_from_one_another(
    words: list[str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    runs = tmp_path / "runs"
    words = [*words, "adapter.text_encoder=false"]  # to save time: the shares of its gradients are tested above
    alone = run_training(TrainSettings.load(None, [*words, "name=lora"])).folder
    alone = alone.rename(tmp_path / "alone")
    told = in_two_processes(*words, "name=lora")
    assert "2 processes share the 4 pictures of each step" in told
    together = runs / "lora"
    final, state = Path("weights", "lora.safetensors"), Path("state", "step-00000020.safetensors")
    difference = furthest(alone / final, together / final)
    record_property("largest difference of a weight", difference)
    assert difference < 1e-5
    assert furthest(alone / state, together / state) < 1e-5, "moments of the optimizer and the average too"
    assert files(alone) == files(together), "one process writes, once"

    branch = branch_training(together, 15, ["name=branch"]).lora
    assert branch is not None
    assert furthest(alone / final, branch) < 1e-5, "two processes, then one"

    killed = runs / "killed"
    shutil.copytree(alone, killed, ignore=lambda *_: [state.name, final.name, "events.jsonl"])
    in_two_processes("--resume", str(killed))
    assert furthest(alone / final, killed / final) < 1e-5, "one process, then two"


def test_two_processes_pause_obey_go_on_and_stop_together(words: list[str], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "lora"
    more = ["steps=100000", "name=lora", "preview.prompts=['x']", "preview.steps=1", "preview.every_epochs=0"]
    more += ["preview.at_start=false", "saving.read_back=false", "saving.state_every_steps=0"]
    process = subprocess.Popen(
        [*TOGETHER, "train", *words, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        while not run.is_dir() and process.poll() is None:
            time.sleep(0.05)
        events = steered(run)
        output, _ = process.communicate(timeout=HANGS_AFTER_S)
    finally:
        process.kill()
    assert process.returncode == 0, output
    (paused,) = [event.step for event in events if isinstance(event, RunPaused)]
    between = [type(event) for event in events if getattr(event, "step", 0) == paused and type(event) in TOLD]
    assert between == [StateSaved, RunPaused, WeightsSaved, PreviewSaved, RunResumed], output
    (finished,) = [event for event in events if isinstance(event, RunFinished)]
    assert finished.stopped and finished.step > paused
    assert [event.step for event in events if isinstance(event, StepFinished)] == list(range(1, finished.step + 1))
    assert (run / "weights" / "lora.safetensors").is_file()


TOLD = (StateSaved, RunPaused, WeightsSaved, PreviewSaved, RunResumed)


def steered(run: Path) -> list[Event]:
    """All that a run tells, which is paused, saves and paints, goes on and stops as it is asked."""
    events: list[Event] = []
    resumed = sys.maxsize
    for event in RunLog(run).follow():
        events.append(event)
        match event:
            case StepFinished(step=2):
                ask(run, Request.PAUSE)
            case RunPaused():
                give_order(run, Order.SAVE)
                give_order(run, Order.PREVIEW)
            case PreviewSaved():
                ask(run, Request.GO)
            case RunResumed():
                resumed = event.step
            case StepFinished() if event.step == resumed + 2:
                ask(run, Request.STOP)
    return events
