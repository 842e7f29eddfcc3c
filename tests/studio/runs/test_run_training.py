"""Starting a run and ending it: what is recorded of a failure, a full disk and signals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loraloom.errors import NotFiniteError, OutputError
from loraloom.events import Event, Notice, RunCreated, RunFailed, RunStarted, RunTaken, StepFinished
from loraloom.studio.runs import record
from loraloom.studio.runs.control import is_trained
from loraloom.studio.runs.creation import create_run
from loraloom.studio.runs.log import EventLog, RunLog
from loraloom.studio.runs.status import list_runs
from loraloom.studio.runs.training import run_training, train_run
from loraloom.training.settings import TrainSettings

STARTED = RunStarted("x", 3, 3, 1, 4, 100)
STEP = StepFinished(1, 1, 0.5, 0.5, {"unet": 1e-4}, 0.1)


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    return TrainSettings.load(
        None, ["checkpoint=a.ckpt", "dataset.folder=pictures", f"output='{tmp_path / 'runs'}'", "name=cat"]
    )


def pretend(monkeypatch: pytest.MonkeyPatch, run: Callable[[Callable[[Event], None]], Path]) -> None:
    """A trainer that says what ``run`` says."""
    monkeypatch.setattr("loraloom.training.trainer.train", lambda settings, folder, *, listener, **_: run(listener))


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (NotFiniteError("the loss is nan", "lower it"), "the loss is nan"),
        (KeyboardInterrupt(), "interrupted"),
        (OSError("gone"), "gone"),
    ],
)
def test_a_failed_run_is_recorded(
    error: BaseException, problem: str, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(listener: Callable[[Event], None]) -> Path:
        listener(STARTED)
        listener(STEP)
        raise error

    pretend(monkeypatch, fail)
    heard: list[Event] = []
    with pytest.raises(type(error)):
        run_training(settings, listener=heard.append)
    assert heard == [RunTaken(), STARTED, STEP]
    _, *before, failed = RunLog(settings.output / "cat").events()
    assert before == heard
    assert isinstance(failed, RunFailed)
    assert (failed.step, failed.problem) == (1, problem)


@pytest.mark.parametrize(
    ("error", "state", "problem"),
    [
        (NotFiniteError("x", "y"), "failed", "x"),
        (KeyboardInterrupt(), "interrupted", "interrupted"),
        (ZeroDivisionError("z"), "failed", "ZeroDivisionError: z"),
    ],
)
def test_the_record_of_a_run_that_never_began_stays(
    error: BaseException, state: str, problem: str, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(listener: Callable[[Event], None]) -> Path:
        listener(Notice("reading"))
        raise error

    pretend(monkeypatch, fail)
    with pytest.raises(type(error)):
        run_training(settings)
    folder = settings.output / "cat"
    assert TrainSettings.load(folder / "settings.toml").name == "cat"
    *before, failed = RunLog(folder).events()
    assert before == [RunCreated(str(folder)), RunTaken(), Notice("reading")]
    assert isinstance(failed, RunFailed) and (failed.step, failed.problem) == (0, problem)
    (status,) = list_runs(settings.output)
    assert (status.name, status.state, status.problem) == ("cat", state, problem)
    assert not is_trained(folder)


def test_a_log_that_cannot_be_written_does_not_end_the_run(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: EventLog, event: Event) -> None:
        raise OutputError("events.jsonl cannot be written", "free some space")

    def work(listener: Callable[[Event], None]) -> Path:
        for event in (STARTED, STEP, STEP):
            listener(event)
        return Path("lora.safetensors")

    run = create_run(settings)
    monkeypatch.setattr(record.EventLog, "__call__", full)
    pretend(monkeypatch, work)
    heard: list[Event] = []
    assert train_run(run.path, listener=heard.append).lora == Path("lora.safetensors")
    (warning,) = (event for event in heard if isinstance(event, Notice))
    assert "the run goes on without it" in warning.text
    assert heard.count(STEP) == 2


class _Closing:
    """A listener of the settings that fails as it is closed."""

    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, *reason: object) -> None:
        raise OSError("the listener could not be closed")

    def __call__(self, event: Event) -> None:
        raise OSError("nothing can be written")


@pytest.mark.parametrize("error", [NotFiniteError("the loss is nan"), ZeroDivisionError("a fault")])
def test_what_fails_after_a_failure_is_told_behind_it(
    error: Exception, settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(listener: Callable[[Event], None]) -> Path:
        listener(STARTED)
        raise error

    def no_curves(folder: Path) -> Path:
        raise RuntimeError("the curves have a fault")

    pretend(monkeypatch, fail)
    monkeypatch.setattr("loraloom.studio.webhook.Webhook", lambda *arguments: _Closing())
    monkeypatch.setattr("loraloom.studio.curves.write_curves", no_curves)
    settings = TrainSettings.load(None, [*_overrides(settings), "notify.url=https://example.org/x"])
    with pytest.raises(type(error)) as caught:
        run_training(settings)
    assert caught.value is error
    assert error.__notes__ == [
        "the record of the run: OSError: the listener could not be closed",
        "the learning curves: RuntimeError: the curves have a fault",
    ]
    *_, last = RunLog(settings.output / "cat").events()
    assert isinstance(last, RunFailed) and str(error) in last.problem


def test_a_listener_that_cannot_write_is_dropped(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(listener: Callable[[Event], None]) -> Path:
        for event in (STARTED, STEP, STEP):
            listener(event)
        return Path("lora.safetensors")

    class Open(_Closing):
        def __exit__(self, *reason: object) -> None:
            pass

    pretend(monkeypatch, work)
    monkeypatch.setattr("loraloom.studio.webhook.Webhook", lambda *arguments: Open())
    settings = TrainSettings.load(None, [*_overrides(settings), "notify.url=https://example.org/x"])
    heard: list[Event] = []
    assert run_training(settings, listener=heard.append).lora == Path("lora.safetensors")
    (told,) = (event.text for event in heard if isinstance(event, Notice))
    assert told == "Open: nothing can be written; the run goes on without it"


def _overrides(settings: TrainSettings) -> list[str]:
    return ["checkpoint=a.ckpt", "dataset.folder=pictures", f"output='{settings.output}'", "name=cat"]
