"""``dataset check``: the report, what is printed of it, and the exit code."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from loraloom.cli.dataset import app
from loraloom.data.settings import DatasetSettings
from loraloom.errors import DatasetError, SettingsError
from loraloom.events import Event, PieceFinished
from loraloom.studio.datasets import ProblemGroup, check_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 and 10 pictures with repeats 2 and 1, half of them 3:2 photographs."""
    for name, count in (("2_HighRes", 20), ("1_LowRes", 10)):
        (tmp_path / name).mkdir()
        for index in range(count):
            size = (96, 64) if index % 2 else (64, 64)
            Image.new("RGB", size, (index * 8, 10 * len(name), 0)).save(tmp_path / name / f"{index}.png")
            (tmp_path / name / f"{index}.txt").write_text("a drawing, simple", encoding="utf-8")
    return tmp_path


def check(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "140", "NO_COLOR": "1"}).invoke(app, ["check", str(folder), *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def digest(folder: Path) -> str:
    result = sha256()
    for path in sorted(folder.rglob("*")):
        result.update(str(path).encode() + (path.read_bytes() if path.is_file() else b""))
    return result.hexdigest()


def test_report(folder: Path) -> None:
    (folder / "2_HighRes" / "3.txt").write_text("word, " * 60, encoding="utf-8")
    seen: list[Event] = []
    report = check_dataset(DatasetSettings(folder=folder, resolution=128), listener=seen.append)
    assert [(row.concept.label, row.share) for row in report.concepts] == [
        ("1_LowRes", pytest.approx(0.2)),
        ("2_HighRes", pytest.approx(0.8)),
    ]
    assert (report.images, report.shown) == (30, 50)
    assert {use.size: (use.images, use.shown) for use in report.buckets} == {
        (128, 128): (15, 25),
        (152, 104): (15, 25),
    }
    # 3:2 in 152 x 104 shows 1.4615 / 1.5 of the picture; half of the pictures are square.
    assert report.cropped == pytest.approx((1 - (152 / 104) / 1.5) / 2)
    assert report.longest_caption == folder / "2_HighRes" / "3.txt"
    assert report.longest_tokens == 120
    assert report.max_token_length == 150
    assert report.clean
    assert seen == [PieceFinished("pictures", number, 30) for number in range(1, 31)]


def test_printed_tables(folder: Path) -> None:
    before = digest(folder)
    code, output = check(folder, "resolution=64")
    assert code == 0
    for words in ("80.0%", "20.0%", "2_HighRes", "64 x 64", "max token length 75", "Longest caption: 4 tokens"):
        assert words in output, words
    assert "0 errors" in output
    assert digest(folder) == before


def test_errors_are_listed_and_end_with_one(folder: Path) -> None:
    (folder / "1_LowRes" / "bad [red] file.png").write_bytes(b"")
    code, output = check(folder, "resolution=64")
    assert code == 1
    assert "1_LowRes/bad [red] file.png is empty (zero bytes)" in output.replace("\\", "/")
    assert "1 error," in output


def test_warnings_end_with_zero(folder: Path) -> None:
    (folder / "1_LowRes" / "nothing.txt").write_text("x", encoding="utf-8")
    code, output = check(folder, "resolution=64")
    assert code == 0
    assert "belongs to no picture" in output
    assert "1 warning" in output


def test_long_lists_are_cut_unless_asked_for(folder: Path) -> None:
    for path in folder.rglob("*.txt"):
        path.unlink()
    _, output = check(folder, "resolution=64")
    assert "and 22 more" in output
    assert output.count("has no caption") == 8
    assert check(folder, "resolution=64", "--all")[1].count("has no caption") == 30


def test_nothing_usable_is_reported_file_by_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    code, output = check(tmp_path)
    assert code == 1
    assert "a.png is empty" in output
    assert "holds no usable picture" in output


def test_wrong_arguments(folder: Path) -> None:
    with pytest.raises(DatasetError, match="does not exist"):
        check(folder / "absent")
    with pytest.raises(SettingsError, match="did you mean 'resolution'"):
        check(folder, "resolutoin=64")
    with pytest.raises(SettingsError, match="key=value"):
        check(folder, "resolution")


def test_problems_are_grouped_with_what_to_do(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / "1_LowRes" / "7.png").write_bytes(b"no picture")
    for number in (3, 4, 6):
        (folder / "2_HighRes" / f"{number}.txt").unlink()
    report = check_dataset(DatasetSettings(folder=folder, resolution=64))
    assert [problem for group in report.groups for problem in group.problems] == list(report.problems)
    kinds = [(group.severity, group.kind) for group in report.groups]
    assert len(set(kinds)) == len(kinds) and kinds[0][0] == "error"

    assert len(report.groups[0].problems) == 1 and report.groups[0].hint is None  # said behind the one file
    missing = next(group for group in report.groups if len(group.problems) == 3)
    assert missing.hint == missing.problems[2].hint != ""
    assert [report.count(severity) for severity in ("error", "warning", "info")] == [1, 0, len(report.problems) - 1]
    several = ProblemGroup("info", "kind", (missing.problems[0], replace(missing.problems[1], hint="another")))
    assert several.hint is None

    assert report.place(missing.problems[0].path).startswith("2_HighRes")
    assert report.place(folder) == str(folder) and report.place(None) == "-"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert report.place(elsewhere / "a.png") == str(elsewhere / "a.png")


def test_regularization_images_are_counted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("reg")
    (other / "1_cat").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 9, 9)).save(other / "1_cat" / f"{number}.png")
    report = check_dataset(DatasetSettings(folder=folder, resolution=64, regularization_folder=other))
    assert report.regularization_images == 3
    assert check_dataset(DatasetSettings(folder=folder, resolution=64)).regularization_images == 0
