"""AND, and comments."""

from __future__ import annotations

import pytest

from loraloom.generation.prompts.comments import strip_comments
from loraloom.generation.prompts.parts import Part, split_parts


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [Part("a cat")]),
        ("a AND b", [Part("a"), Part(" b")]),
        ("a :0.5 AND b:-2", [Part("a", 0.5), Part(" b", -2.0)]),
        ("a:1. AND b : .7 ", [Part("a", 1.0), Part(" b", 0.7)]),
        ("(a AND b:1.2)", [Part("(a"), Part(" b:1.2)")]),
        ("a AND b:c AND", [Part("a"), Part(" b:c"), Part("")]),
        ("SAND and ANDREW", [Part("SAND and ANDREW")]),
        ("a AND 16:9", [Part("a"), Part(" 16", 9.0)]),
    ],
)
def test_parts_and_weights(prompt: str, expected: list[Part]) -> None:
    assert list(split_parts(prompt)) == expected
    assert [part.weight for part in split_parts(prompt, compatibility="a1111")] == [part.weight for part in expected]


@pytest.mark.parametrize(
    ("prompt", "text", "weight"), [("cat :3", "cat", 3.0), ("ratio 16:9", "ratio 16", 9.0), ("sky, :99", "sky,", 99.0)]
)
def test_a_number_at_the_end_weighs_a_single_prompt_in_the_web_ui_only(prompt: str, text: str, weight: float) -> None:
    assert split_parts(prompt) == (Part(prompt),)
    assert split_parts(prompt, compatibility="a1111") == (Part(text, weight),)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat # my cat", "a cat "),
        ("# first\na cat\n  # second\na dog#x", "a cat\na dog"),
        (r"\#1 cat", r"\#1 cat"),
        ("#", ""),
        ("a\nb", "a\nb"),
    ],
)
def test_comments(prompt: str, expected: str) -> None:
    assert strip_comments(prompt) == expected
