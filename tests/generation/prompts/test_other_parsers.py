"""Prompts read as the web UI and ComfyUI read them: their parsers' own answers, recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraloom.generation.prompts import parse_attention
from loraloom.generation.prompts.parts import split_parts
from loraloom.generation.prompts.schedules import prompt_states, state_at

RECORDED = json.loads((Path(__file__).parents[2] / "data_files" / "prompt_parsers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("emphasis", ["original", "comfy"])
def test_weights(emphasis: str) -> None:
    rows = RECORDED["attention" if emphasis == "original" else "comfy"]
    assert len(rows) > 100
    for prompt, expected in rows:
        found = parse_attention(prompt, emphasis=emphasis, compatibility="a1111")
        assert [[segment.text, segment.weight] for segment in found] == expected, prompt


def test_parts() -> None:
    assert len(RECORDED["parts"]) > 50
    for prompt, expected in RECORDED["parts"]:
        assert [[part.text, part.weight] for part in split_parts(prompt, compatibility="a1111")] == expected, prompt


def texts(prompt: str, steps: int, hires: int | None, *, old: bool) -> list[str]:
    """The text of each step of the pass that is asked about (the steps as the web UI's parser counts them)."""
    rules: Any = "a1111-1.5" if old else "a1111"
    total = steps if hires is None else hires
    found = prompt_states(prompt, total, earlier_steps=None if hires is None else steps, compatibility=rules)
    return [found[state_at(found, step)].text for step in range(1, total + 1)]


def test_schedules() -> None:
    assert len(RECORDED["schedules"]) > 70
    for prompt, steps, hires, old, expected in RECORDED["schedules"]:
        assert texts(prompt, steps, hires, old=old) == expected, prompt


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[a:b:0.5]]", ["a]", "a]", "b]", "b]"]),
        ("[y:0.5][::]", ["[::]", "[::]", "y[::]", "y[::]"]),
        ("[a:b:0.5]: cat", ["a: cat", "a: cat", "b: cat", "b: cat"]),
        ("[a:b:0.5]) cat", ["a) cat", "a) cat", "b) cat", "b) cat"]),
    ],
)
def test_where_the_web_ui_has_two_answers_the_change_counts(prompt: str, expected: list[str]) -> None:
    """Its grammar is ambiguous beside loose brackets and colons: the answer varies from one start to the next."""
    assert texts(prompt, 4, None, old=False) == expected
    assert texts(prompt, 4, None, old=True) == expected
