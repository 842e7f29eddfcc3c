"""LoRAs that learn: trained as the demo trains them, judged by the pictures they paint.

Minutes, not seconds: ``-m "not slow"`` leaves these out. benchmarks/learning.py measures more of the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from loraloom.studio.demo import CHARACTER, STYLE, make_checkpoint

slow = pytest.mark.slow
FALL = 0.01
"""How far the style score may fall from one weight to the next before it does not count as rising."""


@pytest.fixture(scope="module")
def learning() -> Iterator[ModuleType]:
    before = list(sys.path)
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import learning  # type: ignore[import-not-found]

        yield learning
    finally:
        sys.path[:] = before


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
def pictures(learning: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return learning.Pictures(make_checkpoint(tmp_path_factory.mktemp("base") / "base.safetensors"))


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


@pytest.fixture(scope="module")
def character(learning: ModuleType, pictures: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    plans = {"with": CHARACTER, "without": replace(CHARACTER, regularization_prompts=())}
    return {
        name: learning.measure_character(
            pictures, learning.train_plan(plan, pictures, tmp_path_factory.mktemp(name)), seeds=3
        )
        for name, plan in plans.items()
    }


@slow
def test_the_trigger_word_calls_the_character(character: dict[str, Any]) -> None:
    assert character["with"]["cat_with_trigger"] >= 0.6, character


@slow
def test_without_the_trigger_word_little_changes(character: dict[str, Any]) -> None:
    found = character["with"]
    assert found["cat_without_trigger"] <= found["cat_in_base"] + 0.1, found
    assert found["drift_without_trigger"] < 0.5 * found["drift_with_trigger"], found
    assert found["likeness_without_trigger"] > 0.8, found


@slow
def test_regularization_images_keep_the_rest(character: dict[str, Any]) -> None:
    changed = {name: 1 - found["likeness_without_trigger"] for name, found in character.items()}
    assert changed["with"] < 0.8 * changed["without"], character
    assert character["with"]["drift_without_trigger"] < character["without"]["drift_without_trigger"], character
    assert character["with"]["cat_without_trigger"] <= character["without"]["cat_without_trigger"], character
