"""Choices: what can be drawn, how often, and that a draw is a function of the seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraloom.errors import FileFormatError, PromptError
from loraloom.generation.prompts.wildcards import WildcardFolders, make_choices

NOTHING = WildcardFolders(())


@pytest.fixture
def folders(tmp_path: Path) -> WildcardFolders:
    (tmp_path / "hair").mkdir()
    (tmp_path / "colour.txt").write_text("\ufeffred\n\n# no\nblue\n", encoding="utf-8")
    (tmp_path / "hair" / "long.txt").write_text("__colour__ plaits\n", encoding="utf-8")
    (tmp_path / "circle.txt").write_text("x __circle__\n", encoding="utf-8")
    (tmp_path / "bomb.txt").write_text("__bomb2__ __bomb2__\n" * 2, encoding="utf-8")
    (tmp_path / "bomb2.txt").write_text("__bomb__ __bomb__\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("épée".encode("latin-1"))
    return WildcardFolders([tmp_path])


def drawn(prompt: str, folders: WildcardFolders = NOTHING, count: int = 200) -> Counter[str]:
    return Counter(make_choices(prompt, folders, seed, "prompt") for seed in range(count))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {b|c} d", {"a b d", "a c d"}),
        ("{a|}", {"a", ""}),
        ("{a|{b|c}}", {"a", "b", "c"}),
        ("{2$$a|b|c}", {f"{x}, {y}" for x in "abc" for y in "abc" if x != y}),
        ("{1-2$$ and $$a|b}", {"a", "b", "a and b", "b and a"}),
        ("{1-2$$, $$a|b}", {"a", "b", "a, b", "b, a"}),
        ("{-1$$a|b}", {"", "a", "b"}),
        ("{2-$$a|b}", {"a, b", "b, a"}),
        ("{9$$a|b}", {"a, b", "b, a"}),
        ("{0::a|b}", {"b"}),
        ("{word}", {"{word}"}),
        ("{a|b", {"{a|b"}),
        ("a|b}", {"a|b}"}),
        (r"\{a|b\} {c|c}", {r"\{a|b\} c"}),
        ("{x$$a|b}", {"x$$a", "b"}),
        ("{{a|b}", {"{a", "{b"}),
        ("cost $$5 __ ___ ____", {"cost $$5 __ ___ ____"}),
    ],
)
def test_what_can_be_drawn(prompt: str, expected: set[str]) -> None:
    assert set(drawn(prompt)) == expected


def test_all_choices_are_as_likely_as_they_should_be() -> None:
    even = drawn("{a|b|c|d}", count=2000)
    assert all(abs(number - 500) < 100 for number in even.values())
    weighed = drawn("{3::a|1::b}", count=2000)
    assert abs(weighed["a"] - 1500) < 100


def test_a_draw_is_a_function_of_seed_and_place_alone() -> None:
    prompt = "{a|b|c|d|e} {a|b|c|d|e}"
    assert make_choices(prompt, NOTHING, 5, "prompt") == make_choices(prompt, NOTHING, 5, "prompt")
    pairs = drawn(prompt, count=500)
    assert len(pairs) == 25  # the two places are independent
    assert make_choices(prompt, NOTHING, 5, "prompt")[0] == make_choices("{a|b|c|d|e} x", NOTHING, 5, "prompt")[0]
    assert drawn("{a|b}", count=50) != Counter(make_choices("{a|b}", NOTHING, s, "negative prompt") for s in range(50))


def test_files(folders: WildcardFolders) -> None:
    assert set(drawn("a __colour__ car", folders)) == {"a red car", "a blue car"}
    assert set(drawn("__Hair/Long__", folders)) == {"red plaits", "blue plaits"}
    assert set(drawn("__long__", folders)) == {"red plaits", "blue plaits"}
    assert set(drawn("__co*r__", folders)) == {"red", "blue"}
    assert set(drawn("{2$$__colour__}", folders)) == {"red, blue", "blue, red"}


@pytest.mark.parametrize(
    ("prompt", "error", "part"),
    [
        ("__coluor__", PromptError, "__colour__"),
        ("__../colour__ __nothing__", PromptError, "nothing"),
        ("__circle__", PromptError, "come to an end"),
        ("__bomb__", PromptError, "come to an end"),
        ("__empty__", PromptError, "is empty"),
        ("__latin__", FileFormatError, "latin.txt"),
    ],
)
def test_files_that_are_wrong_are_told(
    folders: WildcardFolders, prompt: str, error: type[Exception], part: str
) -> None:
    with pytest.raises(error) as raised:
        make_choices(prompt, folders, 1, "prompt")
    assert part in str(raised.value)


@given(st.text(alphabet="ab{}|$:-1_\\ ,.", max_size=60).filter(lambda text: "__" not in text))
def test_no_braces_are_an_error(prompt: str) -> None:
    assert set(make_choices(prompt, NOTHING, 1)) <= set(prompt) | set(", ")


def test_deep_braces_are_text() -> None:
    for prompt in ("{" * 3000, "}" * 3000, "{a|" * 3000 + "}" * 3000, "{2$$" * 500):
        assert make_choices(prompt, NOTHING, 1)
