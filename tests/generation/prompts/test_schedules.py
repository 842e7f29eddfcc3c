"""Prompts that change by step: the web UI's examples, and a second evaluator that rewrites text from the inside out."""

from __future__ import annotations

import random
import re

import pytest

from loraloom.generation.prompts.schedules import State, prompt_states, state_at
from work import counted, growth


def states(prompt: str, steps: int = 10, **options) -> list[tuple[int, str]]:
    return [(state.end, state.text) for state in prompt_states(prompt, steps, **options)]


@pytest.mark.parametrize("rules", ["none", "a1111", "a1111-1.5"])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3 ]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a::.75]", [(7, "a"), (10, "")]),
        ("[x]", [(10, "[x]")]),
        ("(x:1.2)", [(10, "(x:1.2)")]),
        ("[a:b:c:0.5]", [(10, "[a:b:c:0.5]")]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a:b:-3]", [(10, "b")]),
        ("[a:b:999999999999999999999]", [(10, "a")]),
        (r"[\[a\]:b:.5]", [(5, r"\[a\]"), (10, "b")]),
        ("[[a:b:.3]|c]", [(step, "c" if step % 2 == 0 else "a" if step <= 3 else "b") for step in range(1, 11)]),
    ],
)
def test_examples(prompt: str, expected: list[tuple[int, str]], rules: str) -> None:
    assert states(prompt, compatibility=rules) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[a:b:0.5]", [(3, "a"), (6, "b")]),
        ("[a:b:10]", [(6, "a")]),
        ("[b:0.25]", [(1, ""), (6, "b")]),
        ("[a:b:1.0]", [(6, "a")]),
        ("[a:b:0]", [(6, "b")]),
        ("[a|b|c]", [(1, "a"), (2, "b"), (3, "c"), (4, "a"), (5, "b"), (6, "c")]),
        ("[fe|]male", [(1, "female"), (2, "male"), (3, "female"), (4, "male"), (5, "female"), (6, "male")]),
    ],
)
def test_the_specifications_rows_at_six_steps(prompt: str, expected: list[tuple[int, str]]) -> None:
    assert states(prompt, 6) == expected
    assert states(prompt, 6, compatibility="a1111") == expected


def test_numbers_below_one_are_a_share_by_the_old_rule_and_those_with_a_point_by_the_new() -> None:
    assert states("[a:b:1.5]", compatibility="a1111-1.5") == [(1, "a"), (10, "b")]
    assert states("[a:b:1.5]") == [(10, "a")]
    assert states("[a:b:0]", compatibility="a1111-1.5") == [(10, "b")]


def test_a_second_pass_counts_on() -> None:
    assert states("a [b:.5] c", earlier_steps=10) == [(10, "a b c")]
    assert states("a [b:1.5] c", earlier_steps=10) == [(5, "a  c"), (10, "a b c")]
    assert states("a [b:14] c", earlier_steps=10) == [(4, "a  c"), (10, "a b c")]


def test_a_second_pass_of_other_length_counts_from_the_end_of_the_first() -> None:
    """7 steps, then 10, with two calls a step: the first pass has had 14 of them."""
    assert states("a [b:17] c", earlier_steps=7) == [(10, "a  c")]
    assert states("a [b:16] c", earlier_steps=7) == [(9, "a  c"), (10, "a b c")]
    assert states("a [b:17] c", earlier_steps=7, calls_per_step=2) == [(3, "a  c"), (20, "a b c")]
    assert states("a [b:1.35] c", earlier_steps=7, calls_per_step=2) == [(7, "a  c"), (20, "a b c")]
    assert states("a [b:6] c", earlier_steps=7, compatibility="a1111-1.5") == [(6, "a  c"), (10, "a b c")]


def test_second_order_samplers_count_calls() -> None:
    assert states("[a:b:0.5]", calls_per_step=2) == [(10, "a"), (20, "b")]
    assert states("[a:b:4]", calls_per_step=2) == [(4, "a"), (20, "b")]


def test_a_bar_that_alternates_nothing_makes_all_of_it_text_in_the_web_ui_only() -> None:
    assert states("a | b [c:d:.5]") == [(5, "a | b c"), (10, "a | b d")]
    assert states("(a|b) [c:d:.5]") == [(5, "(a|b) c"), (10, "(a|b) d")]
    for prompt in ("a | b [c:d:.5]", "(a|b) [c:d:.5]", "[c:d:.5]\\"):
        assert states(prompt, compatibility="a1111") == [(10, prompt)]
    assert states("[(a:1:2):b:.5]") == [(5, "(a:1:2)"), (10, "b")]
    assert states("[(a:1:2):b:.5]", compatibility="a1111") == [(10, "[(a:1:2):b:.5]")]


def test_the_state_of_a_step() -> None:
    found = (State(3, "a"), State(6, "b"))
    assert [state_at(found, step) for step in range(1, 8)] == [0, 0, 0, 1, 1, 1, 1]
    assert [state_at(found, step, compatibility="a1111") for step in range(1, 8)] == [0, 0, 0, 0, 1, 1, 1]


# --- a second evaluator: the innermost bracket is replaced by its text at a step, until none is left


INNERMOST = re.compile(r"\[([^\[\]]*)\]")
WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*")


def at_step(prompt: str, step: int, steps: int) -> str:
    """The text in force at a step, for prompts whose brackets match and without escapes."""

    def replaced(match: re.Match[str]) -> str:
        inner = match[1]
        colons = inner.split(":")
        when = WHEN.fullmatch(colons[-1])
        if "|" in inner and ":" not in inner:
            choices = inner.split("|")
            return choices[(step - 1) % len(choices)]
        if len(colons) in (2, 3) and when and "|" not in inner:
            number = float(when[1]) * (steps if "." in when[1] else 1)
            before = colons[0] if len(colons) == 3 else ""
            return before if step <= int(number) else colons[-2]
        return "\x01" + inner.replace(":", "\x03").replace("|", "\x04") + "\x02"

    while INNERMOST.search(prompt):
        prompt = INNERMOST.sub(replaced, prompt)
    return prompt.translate({1: "[", 2: "]", 3: ":", 4: "|"})


def random_prompt(draw: random.Random, depth: int = 0) -> str:
    def inner() -> str:
        return random_prompt(draw, depth + 1)

    pieces = []
    for _ in range(draw.randint(1, 3)):
        kind = draw.randrange(9) if depth < 3 else 0
        when = draw.choice(["0.5", ".25", " 0.75 ", "1.0", "3", "7", "0", "12", "-1", "1.7", "x"])
        if kind < 3:
            pieces.append(draw.choice(["cat ", "a dog, ", "red"]))
        elif kind == 3:
            pieces.append(f"[{inner()}:{inner()}:{when}]")
        elif kind == 4:
            pieces.append(f"[{inner()}:{when}]")
        elif kind == 5:
            pieces.append(f"[{inner()}::{when}]")
        else:
            pieces.append(draw.choice(["[{}|{}]", "[|{}|{}]", "[{}]"]).format(inner(), inner()))
    return "".join(pieces)


def test_a_second_evaluator_agrees_at_1_to_50_steps() -> None:
    draw = random.Random(5)
    changing = 0
    for steps in range(1, 51):
        for _ in range(6):
            prompt = random_prompt(draw)
            found = prompt_states(prompt, steps)
            assert found[-1].end == steps
            texts = [found[state_at(found, step)].text for step in range(1, steps + 1)]
            assert texts == [at_step(prompt, step, steps) for step in range(1, steps + 1)], prompt
            changing += len(set(texts)) > 1
    assert changing > 100


@pytest.mark.parametrize("rules", ["none", "a1111"])
@pytest.mark.parametrize(
    ("before", "middle", "after"),
    [("[", "", ""), ("]", "", ""), ("[a|", "", ""), ("([", "", ""), ("[", "a:b:.5", "]"), ("[", "a", "|b]")],
)
def test_the_work_grows_with_the_brackets_and_no_faster(before: str, middle: str, after: str, rules: str) -> None:
    def read(prompt: str) -> None:
        assert prompt_states(prompt, 3, compatibility=rules)  # type: ignore[arg-type]

    few, many = (before * count + middle + after * count for count in (700, 7 * 700))
    with counted() as work:
        read(few)
    with counted() as more:
        read(many)
    assert more.calls < 7.5 * work.calls
    assert growth(read, few, many, tries=3) < 30  # 7 where it grows evenly, 49 with the square
