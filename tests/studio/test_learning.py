"""A style that is learned: trained as the demo trains it, judged by the pictures it paints.

Minutes, not seconds: they run with ``-m slow``. benchmarks/learning.py measures more of the same.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from loraloom.studio.demo import STYLE

slow = pytest.mark.slow
FALL = 0.01
"""How far the style score may fall from one weight to the next before it does not count as rising."""


def test_black_outlines_tell_the_styles_apart(learning: ModuleType) -> None:
    from features import auc, outlined  # type: ignore[import-not-found]

    noto = learning.Judge().outlined["noto"].tolist()
    openmoji = [outlined(image) for image in learning.held_out_drawings().values()]
    assert auc(openmoji, noto) >= 0.99


def test_drawings_are_found_again(learning: ModuleType) -> None:
    judge = learning.Judge()
    folder = Path(__file__).parents[2] / "src" / "loraloom" / "studio" / "character"
    faces = [Image.open(path).resize((128, 128)) for path in sorted(folder.glob("*/*.png"))]
    assert [judge.nearest(face) for face in faces] == [""] * 10, "on any background, at any place and size"
    assert judge.named(list(learning.held_out_drawings().values()), list(learning.HELD_OUT)) == 1


@pytest.fixture(scope="module")
def style(learning: ModuleType, pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    lora = learning.train_plan(STYLE, pictures, tmp_path_factory.mktemp("style"))
    figures: dict[str, Any] = learning.measure_style(pictures, lora, count=16, few=8)
    return figures


@slow
def test_weight_0_is_the_checkpoint(style: dict[str, Any]) -> None:
    assert style["weight_0_equals_base"]


@slow
def test_the_style_is_that_of_the_drawings(style: dict[str, Any]) -> None:
    assert style["share_of_the_way"] >= 0.9, style


@slow
def test_the_style_grows_with_the_weight(style: dict[str, Any]) -> None:
    scores = list(style["scores_by_weight"].values())
    assert all(after > before - FALL for before, after in pairwise(scores)), scores
    assert scores[-1] > scores[0] + 5 * FALL


@slow
def test_things_stay_what_they_are_in_the_style(style: dict[str, Any]) -> None:
    assert style["named_base"] >= 0.5, "the checkpoint itself must know them, or nothing is measured"
    assert style["named_at_weight_1"] > 0.75 * style["named_base"], style
