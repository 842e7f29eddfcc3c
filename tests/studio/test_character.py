"""A character that is learned: trained as the demo trains it, judged by the pictures it paints.

Minutes, not seconds: they run with ``-m slow``. benchmarks/learning.py measures more of the same.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from loraloom.studio.demo import CHARACTER

slow = pytest.mark.slow


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
