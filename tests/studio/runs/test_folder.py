"""The run folder: numbered names, settings and events that read back, and what a crash leaves."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import pytest

from loraloom.errors import OutputError, SettingsError
from loraloom.events import Event, Notice, PreviewSaved, RunFinished, StepFinished
from loraloom.generation.settings import GenerateSettings
from loraloom.studio.runs.folder import RunFolder, with_absolute_paths
from loraloom.studio.runs.log import EventLog, RunLog
from loraloom.training.settings import TrainSettings

EVENTS: list[Event] = [
    Notice("ready", "warning"),
    StepFinished(1, 1, 0.25, 0.25, {"unet": 1e-4}, 0.5),
    PreviewSaved("previews/1.png", "猫\u2028in \x85 two\nlines", 1, 1),
    RunFinished(1, 2.5, False, 0.25),
]


def settings(tmp_path: Path, *overrides: str) -> TrainSettings:
    given = [f"checkpoint='{tmp_path / 'a.ckpt'}'", f"dataset.folder='{tmp_path / 'pictures'}'", *overrides]
    return TrainSettings.load(None, given)


def test_a_new_folder_with_its_parts(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "deep" / "runs", "cat", settings(tmp_path))
    assert folder.path == tmp_path / "deep" / "runs" / "cat"
    assert sorted(path.name for path in folder.path.iterdir()) == ["previews", "settings.toml", "weights"]
    assert list(RunLog(folder.path).events()) == []


def test_no_run_overwrites_another(tmp_path: Path) -> None:
    (tmp_path / "cat-3").write_text("a file of the name is in the way too", encoding="utf-8")
    names = [RunFolder.create(tmp_path, "cat", settings(tmp_path, f"seed={seed}")).path.name for seed in range(4)]
    assert names == ["cat", "cat-2", "cat-4", "cat-5"]
    for seed, name in enumerate(names):
        assert TrainSettings.load(tmp_path / name / "settings.toml").seed == seed


def test_settings_read_back_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = TrainSettings.load(
        None,
        ["checkpoint=models/a.ckpt", "dataset.folder=pictures", "preview.prompts=['a, b', 'c']", "adapter.alpha=2"],
    )
    folder = RunFolder.create(Path("runs"), "cat", given)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = TrainSettings.load(tmp_path / folder.path / "settings.toml")
    assert again.checkpoint == tmp_path / "models" / "a.ckpt"
    assert again.dataset.folder == tmp_path / "pictures"
    assert again.model_copy(update={"checkpoint": None, "dataset": None, "output": None}) == given.model_copy(
        update={"checkpoint": None, "dataset": None, "output": None}
    )


def test_paths_in_tuples_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loras = GenerateSettings(prompt="x", lora_folders=(Path("a"), tmp_path / "b"))
    assert with_absolute_paths(loras).lora_folders == (tmp_path / "a", tmp_path / "b")


def test_events_read_back(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "cat", settings(tmp_path))
    for events in (EVENTS[:2], EVENTS[2:]):  # a log that is opened again goes on
        with EventLog(folder.path) as log:
            for event in events:
                log(event)
    assert list(RunLog(folder.path).events()) == EVENTS
    for line in (folder.path / "events.jsonl").read_bytes().rstrip(b"\n").split(b"\n"):
        assert json.loads(line)["event"]


def test_each_event_is_on_the_disk_at_once(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "cat", settings(tmp_path))
    with EventLog(folder.path) as log:
        for count, event in enumerate(EVENTS, start=1):
            log(event)
            assert list(RunLog(folder.path).events()) == EVENTS[:count]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_last_line_cut_short_is_left_out(cut: int, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "cat", settings(tmp_path))
    with EventLog(folder.path) as log:
        for event in EVENTS[:3]:
            log(event)
    raw = (folder.path / "events.jsonl").read_bytes()
    last = raw[:-1].rfind(b"\n") + 1
    (folder.path / "events.jsonl").write_bytes(raw[: last + cut])
    assert list(RunLog(folder.path).events()) == EVENTS[:2]
    (folder.path / "events.jsonl").write_bytes(raw[: raw.index("猫".encode()) + 1])  # in the middle of a character
    assert list(RunLog(folder.path).events()) == EVENTS[:2]


def test_lines_of_other_programs_are_left_out(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "cat", settings(tmp_path))
    lines = [
        "12",
        "null",
        "[]",
        '{"event": "OfTheFuture"}',
        '{"event": "Notice"}',
        '{"event": "Notice", "text": "x", "new": 1}',
    ]
    (folder.path / "events.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert list(RunLog(folder.path).events()) == [Notice("x")]


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "cat", settings(tmp_path))
    notice = Notice("caf\udce9.png was skipped")
    with EventLog(folder.path) as log:
        log(notice)
    assert list(RunLog(folder.path).events()) == [notice]


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "deep" / "runs", "cat", settings(tmp_path))
    with EventLog(folder.path) as log:
        log(EVENTS[0])
    folder.discard()
    assert list(tmp_path.iterdir()) == []


def test_discard_takes_nothing_that_is_worth_keeping(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path / "runs", "cat", settings(tmp_path))
    second = RunFolder.create(tmp_path / "runs", "cat", settings(tmp_path))
    (second.path / "weights" / "cat.safetensors").write_bytes(b"x")
    second.discard()
    assert (second.path / "settings.toml").exists()
    first.discard()
    assert not first.path.exists()
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", "cat", settings(tmp_path)).discard()
    assert (tmp_path / "empty").is_dir()


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for output in (tmp_path / "file", tmp_path / "file" / "runs", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="cannot be made") as error:
            RunFolder.create(output, "cat", settings(tmp_path))
        assert error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["x" * 5000, "a\nb", "\x1b[2J", "..", "aux.v2"])
def test_a_name_that_cannot_be_kept_leaves_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"^name = '"):
        RunFolder.create(tmp_path / "deep" / "runs", name, settings(tmp_path))
    with pytest.raises(SettingsError, match="'name' = '"):
        settings(tmp_path, f"name={name}")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_leaves_none_of_its_parents(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        RunFolder.create(tmp_path / "new" / ("x" * 300), "cat", settings(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "cat", settings(tmp_path))
    (folder.path / "events.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"events\.jsonl"):
        EventLog(folder.path)


def test_a_full_disk_costs_events_but_never_tears_later_ones(tmp_path: Path) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    folder = RunFolder.create(tmp_path, "cat", settings(tmp_path))
    with EventLog(folder.path) as log:
        log(EVENTS[0])
        file, log._file = log._file, Full()
        with pytest.raises(OutputError, match="No space left"):
            log(EVENTS[1])
        log._file = file
        file.write('{"event": "StepFin')  # as much as still fitted
        log(EVENTS[2])
    assert list(RunLog(folder.path).events()) == [EVENTS[0], EVENTS[2]]
