"""Each check finds what it is for, and nothing in a dataset without faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from loraloom.data.audit import audit, concept_shares
from loraloom.data.dataset import load_dataset
from loraloom.data.problems import Problem, worst_first
from loraloom.data.sample import Dataset
from loraloom.data.settings import DatasetSettings


def picture(path: Path, *, size: tuple[int, int] = (96, 64), shade: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    level = sum(path.as_posix().encode()) % 251 if shade is None else shade
    Image.new("RGB", size, (level, 250 - level, len(path.name) % 256)).save(path)


def caption(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def load(folder: Path, **values: object) -> Dataset:
    return load_dataset(DatasetSettings.parse({"folder": folder, "resolution": 64, **values}))


def measure(text: str) -> tuple[int, int]:
    """A token a word; 75 to a chunk."""
    words = len(text.split())
    return words, max(1, -(-words // 75))


def findings(dataset: Dataset, kind: str) -> list[Problem]:
    return [problem for problem in audit(dataset, measure) if problem.kind == kind]


def test_a_good_dataset_has_no_findings(tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / "2_cat" / f"{index}.png", shade=index)
        caption(
            tmp_path / "2_cat" / f"{index}.txt", r"1girl, o_o, ^_^, >_<, looking at viewer, cat \(animal\), smile :)"
        )
    assert audit(load(tmp_path), measure) == []


def test_the_guides_arithmetic(tmp_path: Path) -> None:
    """2 x 20 and 1 x 10: 80 % and 20 %; regularization images have no share."""
    for index in range(20):
        picture(tmp_path / "2_HighRes" / f"{index}.png", shade=index)
    for index in range(10):
        picture(tmp_path / "1_LowRes" / f"{index}.png", shade=100 + index)
    picture(tmp_path / "reg" / "r.png", shade=200)
    dataset = load(tmp_path)
    assert [(row.concept.label, row.images, row.shown, row.share) for row in concept_shares(dataset)] == [
        ("1_LowRes", 10, 10, pytest.approx(0.2)),
        ("2_HighRes", 20, 40, pytest.approx(0.8)),
        ("reg", 1, 1, None),
    ]
    (finding,) = findings(dataset, "regularization")[:1]
    assert "1 regularization images for 30 training images" in finding.problem
    assert finding.severity == "warning"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1girl, (red hair:1.2)", "caption-weights"),
        ("1girl, <lora:x:0.8>", "caption-weights"),
        ("1girl,, solo", "caption-commas"),
        ("1girl, , solo", "caption-commas"),
        ("1girl, looking_at_viewer", "caption-underscores"),
        ("word " * 76, "caption-tokens"),
    ],
)
def test_caption_checks(tmp_path: Path, text: str, kind: str) -> None:
    picture(tmp_path / "a.png")
    caption(tmp_path / "a.txt", text)
    (finding,) = findings(load(tmp_path), kind)
    assert finding.path == tmp_path / "a.txt"
    assert finding.hint


@pytest.mark.parametrize(("words", "length"), [(75, None), (76, 150), (150, 150), (151, 225), (226, 300)])
def test_max_token_length(tmp_path: Path, words: int, length: int | None) -> None:
    picture(tmp_path / "a.png")
    caption(tmp_path / "a.txt", "word " * words)
    expected = [f"has {words} tokens and needs a max token length of {length}"] if length else []
    assert [problem.problem for problem in findings(load(tmp_path), "caption-tokens")] == expected


def test_sizes(tmp_path: Path) -> None:
    picture(tmp_path / "small.png", size=(50, 50))
    picture(tmp_path / "tiny.png", size=(20, 20))
    picture(tmp_path / "long.png", size=(2000, 100))
    dataset = load(tmp_path)
    assert {problem.path.name: problem.severity for problem in findings(dataset, "enlarged")} == {
        "tiny.png": "warning",
        "small.png": "info",
    }
    (cropped,) = findings(dataset, "cropped")
    assert cropped.path.name == "long.png"
    assert "80%" in cropped.problem  # 20:1 in a 4:1 bucket
    square = load(tmp_path, buckets=False, resolution=32)
    assert [problem.severity for problem in findings(square, "cropped")] == ["info"]
    assert findings(load(tmp_path, upscale=False), "enlarged") == []


def test_duplicates(tmp_path: Path) -> None:
    for name in ("1_a/x.png", "1_a/y.png", "1_b/z.png", "reg/r.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (9, 9, 9)).save(path)
    found = {problem.path.name: problem.problem for problem in findings(load(tmp_path), "duplicate")}
    assert found == {
        "y.png": "is the same picture as 1_a/x.png",
        "z.png": "is the same picture as 1_a/x.png, of another concept",
        "r.png": "is also a training image: 1_a/x.png",
    }


def test_empty_concepts_and_odd_names(tmp_path: Path) -> None:
    picture(tmp_path / "1_a" / "what?.png")
    picture(tmp_path / "1_a" / "nul.png")
    (tmp_path / "3_nothing").mkdir()
    dataset = load(tmp_path)
    assert [problem.path.name for problem in findings(dataset, "empty-concept")] == ["3_nothing"]
    assert {problem.path.name for problem in findings(dataset, "name")} == {"what?.png", "nul.png"}


def test_worst_first() -> None:
    problems = [
        Problem(severity, kind, Path(), "")  # type: ignore[arg-type]
        for severity, kind in [("info", "b"), ("warning", "a"), ("info", "a"), ("error", "c"), ("info", "b")]
    ]
    order = [(problem.severity, problem.kind) for problem in worst_first(problems)]
    assert order == [("error", "c"), ("warning", "a"), ("info", "b"), ("info", "b"), ("info", "a")]
