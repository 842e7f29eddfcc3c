"""A run before it is trained; and whose folder a new one may take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from loraloom.control import Interrupted, Request
from loraloom.errors import FileError, LoraloomError, MissingFileError, OutputError, ResumeError
from loraloom.events import Event, LatentsCached, Notice, RunCreated, RunFailed, RunPaused, RunStarted, StepFinished
from loraloom.formats.tensors import write_tensors
from loraloom.studio.runs.control import RunLock, ask
from loraloom.studio.runs.creation import create_branch, create_run
from loraloom.studio.runs.log import EventLog, RunLog
from loraloom.studio.runs.status import list_runs, read_status
from loraloom.studio.runs.training import run_training, train_run
from loraloom.training.settings import TrainSettings
from toys import toy_tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "sd1.safetensors"
    write_tensors(path, toy_tensors("sd1"))
    return path


@pytest.fixture
def words(tmp_path: Path, checkpoint: Path) -> Callable[..., TrainSettings]:
    (tmp_path / "pictures").mkdir()
    for index, shade in enumerate(("#d02020", "#e05050", "#2030c0")):
        Image.new("RGB", (64, 64), shade).save(tmp_path / "pictures" / f"{index}.png")

    def settings(*more: str) -> TrainSettings:
        given = [
            f"checkpoint='{checkpoint}'",
            f"dataset.folder='{tmp_path / 'pictures'}'",
            f"output='{tmp_path / 'runs'}'",
            "name=cat",
            "dataset.resolution=64",
            "adapter.rank=2",
            "device=cpu",
            "steps=3",
            "saving.read_back=false",
            "saving.precision=float",
        ]
        return TrainSettings.load(None, [*given, *more])

    return settings


def test_a_run_is_created_without_looking_at_anything(words: Callable[..., TrainSettings], tmp_path: Path) -> None:
    run = create_run(words("checkpoint=nowhere.safetensors"))
    assert run.path == tmp_path / "runs" / "cat"
    assert RunLog(run.path).events() == [RunCreated(str(run.path))]
    (status,) = list_runs(tmp_path / "runs")
    assert (status.state, status.step, status.problem) == ("queued", 0, "")
    with RunLock(run.path):
        assert read_status(run.path).state == "preparing"
    assert create_run(words()).path.name == "cat-2", "a run that is queued is somebody's"


def test_a_name_mistyped_five_times_is_one_folder(words: Callable[..., TrainSettings], tmp_path: Path) -> None:
    for number in range(5):
        with pytest.raises(FileError):
            run_training(words(f"checkpoint='{tmp_path / f'no-{number}.ckpt'}'"))
        (status,) = list_runs(tmp_path / "runs")
        assert (status.name, status.state, status.step) == ("cat", "failed", 0)
        assert f"no-{number}.ckpt" in status.problem
    result = run_training(words())
    assert result.folder.name == "cat" and result.lora is not None
    recorded, current = RunLog(result.folder).recorded(), RunLog(result.folder).events()
    assert sum(isinstance(event, RunFailed) for event in recorded) == 5
    assert not [event for event in current if isinstance(event, RunFailed)]
    assert read_status(result.folder).state == "finished"
    with pytest.raises(MissingFileError):
        run_training(words("checkpoint=nowhere.ckpt"))
    assert [run.name for run in list_runs(tmp_path / "runs")] == ["cat", "cat-2"], "what is finished stays"


@pytest.mark.parametrize("held", ["weights/a.safetensors", "previews/a.png", "state/step-00000001.safetensors"])
def test_what_a_failed_run_holds_is_not_taken_over(
    held: str, words: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    run = create_run(words())
    with EventLog(run.path) as log:
        log(RunFailed(0, "no memory", ""))
    (run.path / held).parent.mkdir(exist_ok=True)
    (run.path / held).write_bytes(b"x")
    assert create_run(words()).path.name == "cat-2"
    (run.path / held).unlink()
    with RunLock(run.path):
        assert create_run(words()).path.name == "cat-3", "it is trained once more"
    assert create_run(words("seed=7")).path.name == "cat"
    assert TrainSettings.load(run.settings_path).seed == 7


def test_a_failed_run_is_trained_once_more(words: Callable[..., TrainSettings], tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    run = create_run(words())
    pictures.rename(tmp_path / "elsewhere")
    with pytest.raises(LoraloomError):
        train_run(run.path)
    assert read_status(run.path).state == "failed"
    (tmp_path / "elsewhere").rename(pictures)
    heard: list[Event] = []
    result = train_run(run.path, listener=heard.append)
    assert result.folder == run.path and result.lora is not None
    assert not [event for event in heard if isinstance(event, Notice) and "it starts from the beginning" in event.text]
    assert read_status(run.path).state == "finished"
    with pytest.raises(ResumeError, match="is finished after 3 steps"):
        train_run(run.path)


def asked_in_encoding(run: Path, request: Request) -> tuple[list[Event], BaseException | None]:
    """Train, and ask through the folder once the first picture is encoded."""
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, LatentsCached) and event.done == 1:
            ask(run, request)

    try:
        train_run(run, listener=listen)
    except Interrupted as error:
        return events, error
    return events, None


@pytest.mark.parametrize("request_", [Request.STOP, Request.LEAVE, Request.DISCARD])
def test_the_folder_s_wish_is_heard_while_pictures_are_encoded(
    request_: Request, words: Callable[..., TrainSettings]
) -> None:
    run = create_run(words()).path
    events, error = asked_in_encoding(run, request_)
    assert [event.done for event in events if isinstance(event, LatentsCached)] == [1]
    assert not [event for event in events if isinstance(event, RunStarted)]
    last = RunLog(run).events()[-1]
    if request_ is Request.LEAVE:
        assert error is None and last == RunPaused(0, freed=True)
        assert read_status(run).state == "paused"
    else:
        assert error is not None and isinstance(last, RunFailed) and last.interrupted
        assert read_status(run).state == "interrupted"
    assert train_run(run).lora is not None, "and it can be trained all the same"


def test_a_run_that_was_killed_in_a_pause_is_prepared_when_it_is_started_again(
    words: Callable[..., TrainSettings],
) -> None:
    run = create_run(words()).path
    with EventLog(run) as log:
        for event in (RunStarted(str(run), 3, 3, 1, 3, 100), StepFinished(1, 1, 0.5, 0.5, {}, 0.1), RunPaused(1)):
            log(event)
    assert read_status(run).state == "interrupted"
    states: dict[str, str] = {}

    def look(event: Event) -> None:
        states.setdefault(type(event).__name__, read_status(run).state)

    train_run(run, listener=look)
    begun = list(states).index("RunStarted")
    assert set(list(states.values())[:begun]) == {"preparing"}, states
    assert (states["RunStarted"], states["RunFinished"]) == ("running", "finished")


def test_a_branch_that_failed_goes_on_from_the_same_state(words: Callable[..., TrainSettings], tmp_path: Path) -> None:
    first = run_training(words("saving.state_every_steps=2", "lr_schedule.name=constant")).folder
    whole = create_branch(first, 2, ["name=whole", "steps=5"])
    assert read_status(whole.path).state == "queued"
    expected = train_run(whole.path).lora
    branch = create_branch(first, 2, ["name=branch", "steps=5"])
    created = RunLog(branch.path).events()[0]
    assert created == RunCreated(str(branch.path), str(first), 2)
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    with pytest.raises(LoraloomError):
        train_run(branch.path)
    (tmp_path / "elsewhere").rename(tmp_path / "pictures")
    found = train_run(branch.path).lora
    assert expected is not None and found is not None
    one, other = load_file(expected), load_file(found)
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(ResumeError, match="is finished after 5 steps"):
        train_run(branch.path)


def test_a_folder_that_takes_no_run_is_left_as_it_was(words: Callable[..., TrainSettings], tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError):
        create_run(words())
    assert (tmp_path / "runs").read_text(encoding="utf-8") == "a file"


@pytest.mark.parametrize("module", ["creation", "log", "status", "control", "training", "process"])
def test_nothing_about_runs_needs_torch_before_one_is_trained(module: str) -> None:
    code = f"import sys, loraloom.studio.runs.{module}; print([n for n in ('torch', 'numpy') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
