"""Choices: what can be drawn, how often, and that a draw is a function of the seed."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
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


def test_two_of_three_weighed_choices_come_in_the_order_of_their_weights() -> None:
    """Drawn one after the other without putting back: P(x, y) = w(x) / W * w(y) / (W - w(x)). ``c`` weighs 1."""
    weights = {"a": 0.5, "b": 2.5, "c": 1.0, "d": 0.0}
    found = drawn("{2$$0.5::a|2.5::b|c|0::d}", count=4000)
    for first, own in weights.items():
        for second, other in weights.items():
            wanted = 0.0 if first == second else own / 4 * other / (4 - own)
            assert found[f"{first}, {second}"] / 4000 == pytest.approx(wanted, abs=0.025), (first, second)


def test_what_weighs_nothing_is_left_out_even_where_more_are_asked_for() -> None:
    """Three are asked for and two can be had, wherever the third stands."""
    for options in ("0::a|0.7::b|2::c", "0.7::b|0::a|2::c", "0.7::b|2::c|0::a"):
        found = drawn("{3$$" + options + "}", count=600)
        assert set(found) == {"b, c", "c, b"}
        assert found["c, b"] / 600 == pytest.approx(2 / 2.7, abs=0.06)
    assert set(drawn("{2$$0::a|0::b}", count=50)) == {"a, b", "b, a"}, "equal weights are none"


def test_how_many_are_drawn_is_even_over_the_range() -> None:
    found = Counter(text.count("+") + 1 for text in drawn("{1-3$$+$$a|b|c|d}", count=3000).elements())
    assert set(found) == {1, 2, 3}
    assert all(abs(number - 1000) < 120 for number in found.values())
    assert set(drawn("{2-9$$+$$a|b|c}")) == {"+".join(p) for n in (2, 3) for p in permutations("abc", n)}


def test_lines_of_a_file_have_weights_in_a_range_only(tmp_path: Path) -> None:
    """``{1$$__name__}`` takes a line by its weight; ``__name__`` takes any line as it is."""
    (tmp_path / "sky.txt").write_text("0.5::grey\n3::blue\n0::green\n", encoding="utf-8")
    folders = WildcardFolders([tmp_path])
    found = drawn("{1$$__sky__}", folders, count=1400)
    assert found["grey"] / 1400 == pytest.approx(1 / 7, abs=0.04)
    assert set(found) == {"grey", "blue"}
    plain = drawn("__sky__", folders, count=900)
    assert all(abs(plain[line] - 300) < 75 for line in ("0.5::grey", "3::blue", "0::green"))


def test_earlier_folders_and_shorter_paths_win(tmp_path: Path) -> None:
    for path, text in {"one/deep/a": "deep", "one/a": "flat", "one/deep/b": "in the first", "two/b": "second"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{path}.txt").write_text(text, encoding="utf-8")
    folders = WildcardFolders([tmp_path / "one", tmp_path / "two"])
    assert [folders.lines(name) for name in ("a", "deep/a", "b")] == [("flat",), ("deep",), ("in the first",)]
    assert folders.lines("deep/*") == ("deep", "in the first")


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
