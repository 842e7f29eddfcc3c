"""One run that many follow: its log is read once, a reader who comes back goes on, another log is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraloom.errors import FileFormatError, MissingFileError
from loraloom.events import Event, Notice, RunCreated, RunResumed, RunStarted, StepFinished
from loraloom.reading import open_file
from loraloom.studio.runs.following import FollowedRun, FollowedRuns
from loraloom.studio.runs.log import LOG_NAME, EventLog, RunLog
from loraloom.studio.runs.status import read_status


def step(number: int) -> StepFinished:
    return StepFinished(number, 1 + number // 30, 1 / number, 0.3 + 1 / number, {"unet": 1e-4}, 0.1 * number)


def write(folder: Path, *events: Event) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "settings.toml").touch()
    with EventLog(folder) as log:
        for event in events:
            log(event)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "cat"
    write(folder, RunCreated("cat"), RunStarted("cat", 300, 30, 10, 4, 100), *map(step, range(1, 90)))
    return folder


def test_the_status_is_that_of_the_whole_log(run: Path) -> None:
    followed = FollowedRun(run)
    status, offset = followed.look()
    assert status == read_status(run) and offset == (run / LOG_NAME).stat().st_size
    write(run, *map(step, range(90, 100)), RunResumed(95), step(96))
    assert followed.look()[0] == read_status(run) and followed.look()[0].step == 96


def test_what_was_read_a_moment_ago_is_not_read_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def counted(path: Path) -> Any:
        opened.append(path)
        return open_file(path)

    monkeypatch.setattr("loraloom.studio.runs.log.open_file", counted)
    followed = FollowedRun(run)
    _, offset = followed.look()
    write(run, step(90))
    followed.look()
    before = len(opened)
    for _ in range(20):
        assert followed.look(at_most_every_s=60)[0].step == 90
        assert [happened.event for happened in followed.after(offset)] == [step(90)]
    assert len(opened) == before, "twenty readers that are nearly up to date cost no look at the file"


def test_a_reader_who_comes_back_gets_the_rest(run: Path) -> None:
    followed = FollowedRun(run)
    followed.look()
    everything = followed.after(0)
    assert [happened.event for happened in everything] == RunLog(run).recorded()
    middle = everything[40]
    assert FollowedRun(run).offset_of(middle.place) == middle.end
    assert followed.after(middle.end) == everything[41:]
    write(run, *map(step, range(90, 1200)))
    followed.look()
    assert [happened.event for happened in followed.after(middle.end)] == RunLog(run).recorded()[41:]
    late = followed.after(0)[-3]
    assert [happened.event for happened in followed.after(late.end)] == [step(1198), step(1199)]


def test_what_is_superseded_is_said_with_the_event(run: Path) -> None:
    followed = FollowedRun(run)
    _, offset = followed.look()
    write(run, RunResumed(60), step(61), step(62), step(61), RunCreated("cat"))
    followed.look()
    assert [happened.back_to for happened in followed.after(offset)] == [60, None, None, 60, -1]


@pytest.mark.parametrize("place", ["x", "-1", "5", "7-00000000", "99999999", "9" * 30, "1e3", " 7", "\u0663"])
def test_what_is_no_place_is_refused(place: str, run: Path) -> None:
    with pytest.raises(FileFormatError):
        FollowedRun(run).offset_of(place)


def test_a_place_in_another_log_is_noticed(run: Path, tmp_path: Path) -> None:
    followed = FollowedRun(run)
    followed.look()
    place = followed.after(0)[50].place
    other = tmp_path / "runs" / "dog"
    write(other, RunCreated("cat"), RunStarted("cat", 300, 30, 10, 4, 100))
    write(other, *(StepFinished(n, 1, 1 / (n + 1), 0.3, {"unet": 1e-4}, 0.1) for n in range(1, 300)))
    with pytest.raises(FileFormatError, match="it was replaced"):
        FollowedRun(other).offset_of(place)
    assert FollowedRun(other).offset_of("0") == 0


def test_a_log_that_is_replaced_begins_anew(run: Path) -> None:
    followed = FollowedRun(run)
    followed.look()
    (run / LOG_NAME).unlink()
    write(run, RunCreated("cat"), Notice("new"))
    status, _ = followed.look()
    assert (followed.generation, status.state, status.step) == (1, "queued", 0)
    assert [happened.event for happened in followed.after(0)] == [RunCreated("cat"), Notice("new")]
    (run / LOG_NAME).write_bytes(b"")
    assert followed.look()[1] == 0 and followed.generation == 2


def test_names_lead_to_runs_of_the_folder_alone(run: Path, tmp_path: Path) -> None:
    runs = FollowedRuns(run.parent)
    assert runs.run("cat") is runs.run("cat") and [status.name for status in runs.statuses()] == ["cat"]
    write(tmp_path / "other", RunCreated("other"))
    for name in (
        "",
        ".",
        "..",
        "../other",
        "../runs/cat",
        "cat/",
        "cat/.",
        "/",
        str(tmp_path / "other"),
        "x\0",
        "x" * 300,
    ):
        with pytest.raises(MissingFileError, match="there is no run"):
            runs.run(name)


def test_a_link_to_a_run_elsewhere_is_none(run: Path, tmp_path: Path) -> None:
    write(tmp_path / "other", RunCreated("other"))
    try:
        (run.parent / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(MissingFileError):
        FollowedRuns(run.parent).run("linked")
