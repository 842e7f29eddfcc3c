"""Weights: every row of the web UI's table, ComfyUI's rules, and a second evaluator on random prompts."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.generation.prompts import parse_attention
from loraloom.models.conditioning import BREAK, Segment


def parsed(prompt: str) -> list[tuple[str, float]]:
    return [(segment.text, round(segment.weight, 7)) for segment in parse_attention(prompt)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("((x))", [("x", 1.21)]),
        ("[x]", [("x", 0.9090909)]),
        ("[[x]]", [("x", 0.8264463)]),
        ("(x:1.3)", [("x", 1.3)]),
        ("(a:.7)", [("a", 0.7)]),
        ("(x:-0.5)", [("x", -0.5)]),
        ("(x : 1.2 )", [("x ", 1.2)]),
        ("(x:+2)", [("x", 2.0)]),
        ("(x:2.)", [("x", 2.0)]),
        ("(a (b:1.2) c:1.1)", [("a ", 1.1), ("b", 1.32), (" c", 1.1)]),
        ("(x", [("x", 1.1)]),
        ("[x", [("x", 0.9090909)]),
        ("x)", [("x)", 1.0)]),
        ("x]", [("x]", 1.0)]),
        (r"\(x\) \[y\] \\", [("(x) [y] \\", 1.0)]),
        (r"(\(x\):1.5)", [("(x)", 1.5)]),
        (r"a\b", [("ab", 1.0)]),
        ("[x:1.2]", [("x:1.2", 0.9090909)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("ratio 16:9", [("ratio 16:9", 1.0)]),
        ("cat :3", [("cat :3", 1.0)]),
        (":1.2)", [(":1.2)", 1.0)]),
        ("(a)(b)", [("ab", 1.1)]),
        ("", [("", 1.0)]),
        ("()", [("", 1.0)]),
        ("(:1.3)", [("", 1.0)]),
        ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("a breaks, BREAKFAST", [("a breaks, BREAKFAST", 1.0)]),
        ("a\nBREAK\nb", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("(a BREAK b:1.2)", [("a", 1.2), ("BREAK", -1.0), ("b", 1.2)]),
        ("[a BREAK b]", [("a", 0.9090909), ("BREAK", -1.0), ("b", 0.9090909)]),
        ("BREAK BREAK", [("BREAK", -1.0), ("BREAK", -1.0)]),
    ],
)
def test_attention(prompt: str, expected: list[tuple[str, float]]) -> None:
    assert parsed(prompt) == expected


def test_double_brackets_have_the_web_uis_exact_weight() -> None:
    assert parse_attention("((x))") == [Segment("x", 1.2100000000000002)]


def test_break_is_the_encoders_own() -> None:
    assert parse_attention("(a BREAK b:1.2)")[1] is BREAK


@given(st.text(alphabet="ab ()[]\\:.1-+<>,|\nBREAK", max_size=60))
def test_no_prompt_is_an_error_and_no_text_is_invented(prompt: str) -> None:
    segments = parse_attention(prompt)
    assert segments
    letters = "".join(segment.text for segment in segments if segment is not BREAK)
    assert set(letters) <= set(prompt)
    assert all(-1e9 < segment.weight < 1e9 or "1" in prompt for segment in segments)


# --- the web UI's own behaviour, faults included


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("(a BREAK b:1.2)", [("a", 1.2), ("BREAK", -1.2), ("b", 1.2)]),
        ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
         [("a ", 1.0), ("house", 1.573), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1),
          ("sky", 1.4641), (".", 1.1)]),
    ],
)  # fmt: skip
def test_the_web_uis_rules(prompt: str, expected: list[tuple[str, float]]) -> None:
    found = parse_attention(prompt, compatibility="a1111")
    assert [(segment.text, round(segment.weight, 7)) for segment in found] == expected


def test_only_a_break_of_weight_one_breaks_by_the_web_uis_rules() -> None:
    assert parse_attention("a BREAK b", compatibility="a1111")[1] is BREAK
    assert parse_attention("(a BREAK b)", compatibility="a1111")[1] != BREAK


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a (b) c", [("a ", 1.0), ("b", 1.1), (" c", 1.0)]),
        ("(a (b:1.2) c:1.5)", [("a ", 1.5), ("b", 1.2), (" c", 1.5)]),
        ("((a (b:0.5)):3)", [("a ", 3.3), ("b", 0.5)]),
        ("((x))", [("x", 1.21)]),
        ("[x] (y:2)", [("[x] ", 1.0), ("y", 2.0)]),
        ("(x", [("(x", 1.0)]),
        ("x) (y)", [("x) (y)", 1.0)]),
        (r"\(x\) (\(y\):1.5)", [("(x) ", 1.0), ("(y)", 1.5)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a BREAK b:2)", [("a", 2.0), ("BREAK", -1.0), ("b", 2.0)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("()(:2)", [(":2", 1.1)]),
        ("(a:1e2)", [("a", 100.0)]),
        ("(a: 1_0 )", [("a", 10.0)]),
        ("(a:nan) (b:1e999)", [("a:nan", 1.1), (" ", 1.0), ("b:1e999", 1.1)]),
        ("(a:1)b", [("a", 1.0), ("b", 1.0)]),
        ("(()", [("(", 1.1)]),
        ("((a:1.3)", [("(a", 1.3)]),
        ("((a)b", [("((a)b", 1.0)]),
        (")(a) ((b)", [(")(a) (", 1.0), ("b", 1.1)]),
        ("((a):0.3)", [("a", 0.33)]),
        ("(a:(b))", [("a:", 1.1), ("b", 1.21)]),
        ("(a:1.3 \\))", [("a:1.3 )", 1.1)]),
    ],
)
def test_comfyuis_rules(prompt: str, expected: list[tuple[str, float]]) -> None:
    found = parse_attention(prompt, emphasis="comfy")
    assert [(segment.text, round(segment.weight, 7)) for segment in found] == expected


def test_with_no_emphasis_everything_is_text() -> None:
    assert parse_attention("(a BREAK [b]:1.2)", emphasis="none") == [Segment("(a BREAK [b]:1.2)")]


# --- a second evaluator, by recursive descent, written from the specification


NUMBER = re.compile(r":\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))\s*\)")


class Descent:
    """Reads characters from the left; every bracket is a call. Returns (character, exponent list) pairs."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def run(self) -> list[tuple[str, float]]:
        letters: list[tuple[str, float]] = []
        while self.at < len(self.text):
            letters += self.piece(frozenset())
        return self.joined(letters)

    def piece(self, open_now: frozenset[str]) -> list[tuple[str, float]]:
        here = self.text[self.at]
        self.at += 1
        if here == "\\":
            if self.text[self.at : self.at + 1] in tuple("()[]\\"):
                self.at += 1
                return [(self.text[self.at - 1], 1.0)]
            return []
        if here in "([":
            return self.inside(here, open_now)
        return [(here, 1.0)]

    def inside(self, kind: str, open_now: frozenset[str]) -> list[tuple[str, float]]:
        letters: list[tuple[str, float]] = []
        closing = {"(": ")", "[": "]"}[kind]
        factor = {"(": 1.1, "[": 1 / 1.1}[kind]
        while self.at < len(self.text):
            explicit = NUMBER.match(self.text, self.at)
            if explicit and kind == "(":
                self.at = explicit.end()
                factor = float(explicit[1])
                break
            if self.text[self.at] == closing:
                self.at += 1
                break
            letters += self.piece(open_now | {kind})
        return [(letter, weight * factor) for letter, weight in letters]

    @staticmethod
    def joined(letters: list[tuple[str, float]]) -> list[tuple[str, float]]:
        runs: list[tuple[str, float]] = []
        for letter, weight in letters:
            if runs and abs(runs[-1][1] - weight) < 1e-12:
                runs[-1] = (runs[-1][0] + letter, runs[-1][1])
            else:
                runs.append((letter, weight))
        return runs or [("", 1.0)]


def random_prompt(draw: random.Random, depth: int = 0) -> str:
    """Brackets that nest (the two kinds do not cross), some never closed, escapes, numbers, stray closings."""
    pieces = []
    for _ in range(draw.randint(1, 5)):
        kind = draw.randrange(10)
        word = draw.choice(["cat", "a dog,", " red ", "16:9", ":", "12", "x:1.5", "ÿ猫", "\\(", "\\]", "\\\\"])
        if kind < 5 or depth > 3:
            pieces.append(word)
        elif kind < 7:
            weight = draw.choice(["", ":1.3", ":.7", ": -0.5 ", ":2.", ":+1", ":1.2.3", ":"])
            pieces.append(f"({random_prompt(draw, depth + 1)}{weight})")
        elif kind < 9:
            pieces.append(f"[{random_prompt(draw, depth + 1)}]")
        elif depth == 0:
            pieces.append(draw.choice([")", "]"]))
    if depth == 0 and draw.random() < 0.3:
        pieces.append(draw.choice("([") + "tail")
    return "".join(pieces)


def test_a_second_evaluator_agrees_on_300_random_prompts() -> None:
    draw = random.Random(20)
    weighted = 0
    for _ in range(300):
        prompt = random_prompt(draw)
        found = [(segment.text, segment.weight) for segment in parse_attention(prompt)]
        expected = Descent(prompt).run()
        assert [text for text, _ in found] == [text for text, _ in expected], prompt
        assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected], rel=1e-9), prompt
        weighted += any(weight != 1 for _, weight in found)
    assert weighted > 150  # the prompts are not all plain


@pytest.mark.parametrize("emphasis", ["original", "comfy"])
def test_deep_and_unbalanced_brackets_are_read(emphasis: str) -> None:
    for prompt in ("(" * 5000, ")" * 5000, "[" * 3000 + "x" + "]" * 2000, "(x:" * 1000, "\\" * 999):
        assert parse_attention(prompt, emphasis=emphasis)
