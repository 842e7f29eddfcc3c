from __future__ import annotations

import csv
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from loraloom.cli.main import app
from loraloom.cli.words import worded
from loraloom.control import Interrupted, Request
from loraloom.errors import HardwareError, SettingsError
from loraloom.events import Event, Notice, StepFinished
from loraloom.formats.tensors import write_tensors
from loraloom.generation.sheets import lay_out_sheet
from loraloom.studio.runs.training import run_training
from loraloom.studio.sweeps import Combination, SweepResult, plan_sweep, run_sweep, split_axes
from toys import toy_tensors

Plan = Callable[..., list[Combination]]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    write_tensors(tmp_path / "toy.safetensors", toy_tensors("sd1"))
    (tmp_path / "pictures").mkdir()
    for index, colour in enumerate(["#d02020", "#2030c0", "#20c030"]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / "pictures" / f"{index}.png")
    fixed = [
        f"checkpoint='{tmp_path / 'toy.safetensors'}'",
        f"output='{tmp_path / 'runs'}'",
        f"dataset.folder='{tmp_path / 'pictures'}'",
        "dataset.resolution=64",
        "adapter.rank=2",
        "epochs=2",
        "device=cpu",
        "name=toy",
    ]
    return lambda *overrides: plan_sweep(None, [*fixed, "saving.read_back=false", *overrides])


def test_settings_with_several_values_are_axes() -> None:
    fixed, axes = split_axes(["a=1", "b=1,2", "c=[1,2]", "d='x,y'", "e='x, y',z", "f-g=1e-4, 1e-5"])
    assert fixed == ["a=1", "c=[1,2]", "d='x,y'"]
    assert [(axis.key, axis.values) for axis in axes] == [
        ("b", ("1", "2")),
        ("e", ("'x, y'", "z")),
        ("f_g", ("1e-4", "1e-5")),
    ]


def test_every_combination_is_planned_with_its_own_name(plan: Plan) -> None:
    found = plan("optimizer.lr=1e-5,1e-3", "adapter.rank=2,4")
    assert [c.label for c in found] == ["lr 1e-5, rank 2", "lr 1e-5, rank 4", "lr 1e-3, rank 2", "lr 1e-3, rank 4"]
    assert found[0].name == "toy-lr1e-5_rank2"
    assert [(c.settings.optimizer.lr, c.settings.adapter.rank) for c in found][3] == (1e-3, 4)


@pytest.mark.parametrize(
    "overrides",
    [["optimizer.lr=1e-5"], ["optimizer.nonsense=1,2"], ["adapter.rank=2,2"], ["name=a,b"], ["preview.steps=1,2"]],
)
def test_what_cannot_be_swept_is_refused(plan: Plan, overrides: list[str]) -> None:
    with pytest.raises(SettingsError):
        plan(*overrides)


def test_a_sweep_trains_compares_and_goes_on_where_it_was_interrupted(plan: Plan, tmp_path: Path) -> None:
    combinations = plan(
        "optimizer.lr=1e-4,1e-2", "validation.share=0.3", "preview.prompts=['a', 'b']", "preview.steps=1"
    )

    def interrupt(event: Event) -> None:
        if isinstance(event, Notice) and event.text.startswith("training with lr 1e-2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(combinations, listener=interrupt)
    steps: list[Event] = []
    result = run_sweep(combinations, listener=lambda e: steps.append(e) if isinstance(e, StepFinished) else None)
    assert len(steps) == 4  # of the second run alone: 2 pictures x 2 epochs
    assert [o.combination.label for o in result.outcomes] == ["lr 1e-4", "lr 1e-2"] and not result.failures
    assert result.outcomes[1].validation_loss is not None
    assert all(outcome.best_epoch for outcome in result.outcomes), (
        "what was measured before the first step is no result"
    )
    with result.table.open(encoding="utf-8") as file:
        assert [row["combination"] for row in csv.DictReader(file)] == ["lr 1e-4", "lr 1e-2"]
    assert result.sheet is not None and Image.open(result.sheet).width > 3 * 64
    assert not any(isinstance(event, StepFinished) for event in _again(combinations))
    alone = run_training(combinations[1].settings.model_copy(update={"output": tmp_path / "alone"}))
    assert alone.lora is not None
    ours, theirs = load_file(result.outcomes[1].lora), load_file(alone.lora)
    assert all((ours[key] == theirs[key]).all() for key in theirs)


def test_a_sweep_is_left_between_two_runs_and_within_one(plan: Plan) -> None:
    combinations = plan("optimizer.lr=1e-4,1e-3,1e-2", "preview.prompts=['a']", "preview.steps=1")
    folder = combinations[0].settings.output
    heard: list[Event] = []

    def after_the_first_run() -> Request:
        done = any(isinstance(event, Notice) and event.text == "lr 1e-4: finished" for event in heard)
        return Request.STOP if done else Request.GO

    with pytest.raises(Interrupted):
        run_sweep(combinations, listener=heard.append, control=after_the_first_run)
    assert (folder / combinations[0].name).is_dir() and not (folder / combinations[1].name).exists()
    first = len([event for event in heard if isinstance(event, StepFinished)])

    def in_the_second_run() -> Request:
        steps = len([event for event in heard if isinstance(event, StepFinished)])
        return Request.STOP if steps > first + 1 else Request.GO

    with pytest.raises(Interrupted):
        run_sweep(combinations, listener=heard.append, control=in_the_second_run)
    steps = len([event for event in heard if isinstance(event, StepFinished)])
    assert steps == first + 2 < 2 * first  # the run was left before its end
    assert not (folder / combinations[2].name).exists()
    assert not (folder / "table.csv").exists()  # nothing is compared before all are there

    result = run_sweep(combinations, listener=heard.append)
    assert [outcome.combination.label for outcome in result.outcomes] == ["lr 1e-4", "lr 1e-3", "lr 1e-2"]
    assert not result.failures and result.sheet is not None
    # No step was taken twice: the second run went on from where it was left.
    assert len([event for event in heard if isinstance(event, StepFinished)]) == 3 * first


def _again(combinations: list[Combination]) -> list[Event]:
    events: list[Event] = []
    run_sweep(combinations, listener=events.append)
    return events


def test_a_run_that_fails_does_not_keep_the_others(plan: Plan) -> None:
    result = run_sweep(plan("optimizer.lr=1e-3,1e30", "optimizer.max_grad_norm=0"))
    assert [o.combination.label for o in result.outcomes] == ["lr 1e-3"]
    assert [c.label for c, _ in result.failures] == ["lr 1e30"] and "exploded" in result.failures[0][1]
    with result.table.open(encoding="utf-8") as file:
        rows = {row["combination"]: row for row in csv.DictReader(file)}
    assert rows["lr 1e-3"]["problem"] == "" and rows["lr 1e-3"]["file"]
    assert "exploded" in rows["lr 1e30"]["problem"] and rows["lr 1e30"]["file"] == ""
    failure = result.failure()
    assert failure is not None and "finished runs are kept" in failure.hint
    assert failure.problem.startswith("1 of 2 runs of the sweep failed; lr 1e30: the training has exploded")


def test_the_last_words_of_a_sweep_give_the_reasons(plan: Plan, tmp_path: Path) -> None:
    combinations = plan("optimizer.lr=1,2,3,4,5")
    failures = tuple((combination, f"reason {index}") for index, combination in enumerate(combinations))
    result = SweepResult(tmp_path, (), failures, tmp_path / "table.csv", None)
    failure = result.failure()
    assert failure is not None
    assert failure.problem.split("; ") == [
        "5 of 5 runs of the sweep failed",
        "lr 1: reason 0",
        "lr 2: reason 1",
        "lr 3: reason 2",
        f"and 2 more: {tmp_path / 'table.csv'}, column problem",
    ]
    assert replace(result, failures=()).failure() is None


def test_changed_settings_make_new_runs(plan: Plan) -> None:
    first = run_sweep(plan("optimizer.lr=1e-4,1e-3", "epochs=1"))
    second = run_sweep(plan("optimizer.lr=1e-4,1e-3", "epochs=2"))
    assert {o.folder for o in first.outcomes}.isdisjoint(o.folder for o in second.outcomes)


def test_each_lora_is_painted_on_its_own_checkpoint(plan: Plan, tmp_path: Path) -> None:
    other = {key: tensor * 1.5 if tensor.ndim > 1 else tensor for key, tensor in toy_tensors("sd1").items()}
    write_tensors(tmp_path / "other.safetensors", other)
    checkpoints = f"checkpoint='{tmp_path / 'toy.safetensors'}','{tmp_path / 'other.safetensors'}'"
    result = run_sweep(plan(checkpoints, "epochs=1", "optimizer.lr=0", "preview.prompts=['a --s 1 --w 64 --h 64']"))
    assert result.sheet is not None
    sheet = Image.open(result.sheet).convert("RGB")
    layout = lay_out_sheet(
        [[Image.new("RGB", (64, 64))] * 4],
        rows=["a"],
        columns=["toy, without", "checkpoint toy", "other, without", "checkpoint other"],
        title="toy-sweep",
    )
    assert sheet.size == layout.size
    alone, with_lora, other_alone, other_with = (sheet.crop(box).tobytes() for box in layout.cells[0])
    assert alone == with_lora and other_alone == other_with and alone != other_alone


def test_workers_of_ray_train_and_one_that_dies_takes_no_other_run_with_it(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is asked of a cluster, of one: it takes longer to start than to train."""
    pytest.importorskip("ray")
    # The run that ends its worker is tried in a second one, then given up.
    monkeypatch.setenv("RAY_TASK_MAX_RETRIES", "1")
    combinations = plan("optimizer.lr=1e-5,1e-4,1e-3,1e-2,1e-1", "epochs=1")
    first, second, doomed, faulty, elsewhere = (combination.name for combination in combinations)

    def train(combination: Combination) -> str:
        from loraloom.studio.sweeps import _train_in_worker  # in the worker nothing is patched

        if combination.name == doomed:
            os._exit(1)
        if combination.name == faulty:
            raise OSError("the disk is full")
        return "" if combination.name == elsewhere else _train_in_worker(combination)

    monkeypatch.setattr("loraloom.studio.sweeps._train_in_worker", train)
    result = run_sweep(combinations, workers=2)
    assert [outcome.combination.name for outcome in result.outcomes] == [first, second]
    problems = {combination.name: problem for combination, problem in result.failures}
    assert problems.keys() == {doomed, faulty, elsewhere}
    assert "all machines must share" in problems[elsewhere]
    assert "OSError: the disk is full" in problems[faulty]
    assert "did not answer" in problems[doomed]


def test_a_cluster_that_is_not_there_is_an_error_with_a_hint(plan: Plan) -> None:
    pytest.importorskip("ray")
    with pytest.raises(HardwareError, match="no Ray cluster answers at auto") as failure:
        run_sweep(plan("optimizer.lr=1e-4,1e-3"), address="auto")
    assert "ray start --head" in worded(failure.value.hint)


def test_the_command(plan: Plan, tmp_path: Path) -> None:
    settings = plan("optimizer.lr=1,2")[0].settings.model_copy(update={"name": "toy", "output": tmp_path / "runs"})
    (tmp_path / "run.toml").write_text(settings.to_toml(comments=False), encoding="utf-8")
    result = CliRunner().invoke(app, ["sweep", str(tmp_path / "run.toml"), "optimizer.lr=1e-4,1e-3", "epochs=1"])
    assert result.exit_code == 0, result.output
    assert "lr 1e-4" in result.output and (tmp_path / "runs" / "toy-sweep" / "table.csv").exists()


def test_a_run_of_a_sweep_whose_name_is_too_long() -> None:
    given = ["checkpoint=a.ckpt", "dataset.folder=x", f"name={'x' * 197}", "optimizer.lr=1e-4,3e-4"]
    with pytest.raises(SettingsError, match="at most 200 bytes"):
        plan_sweep(None, given)
