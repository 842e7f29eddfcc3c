"""What becomes of captions: each operation alone, together, and as a pure function of the draw."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loraloom.data.caption_operations import (
    FACES,
    OPERATIONS,
    Moment,
    caption_of,
    file_words,
    fullest_caption,
    without_underscores,
)
from loraloom.data.settings import CaptionSettings
from loraloom.data.without_effect import captions_without_effect
from loraloom.errors import SettingsError

TAGS = "a, b, c, d, e, f, g, h"


def told(caption: str | list[str], moment: Moment = Moment(1), identity: str = "x.png", **settings: object) -> str:  # noqa: B008 - frozen
    lines = [caption] if isinstance(caption, str) else caption
    return caption_of(lines, CaptionSettings.parse(settings), identity, moment)


def draws(caption: str | list[str], count: int, **settings: object) -> list[str]:
    return [told(caption, Moment(1, occurrence=index), **settings) for index in range(count)]


# what goes in, settings -> what comes out: everything that needs no chance
FIXED: dict[str, tuple[str | list[str], dict[str, object], str]] = {
    "nothing": ("a,  b ,c", {}, "a,  b ,c"),
    "first line": (["a", "b"], {}, "a"),
    "no line": ([], {}, ""),
    "all lines": (["a", "b, c,", " d"], {"lines": "join"}, "a, b, c, d"),
    "sentence": ("red fox", {"sentence": "photo of sks, [filewords], outside"}, "photo of sks, red fox, outside"),
    "sentence without a place": ("red fox", {"sentence": "photo of sks fox"}, "photo of sks fox"),
    "prefix and suffix": ("b", {"prefix": "a", "suffix": "c"}, "a b c"),
    "prefix of nothing": ("", {"prefix": "a"}, "a"),
    "escaped braces": ("{{a|b}}", {"wildcards": True}, "{a|b}"),
    "braces are text": ("{a|b}", {}, "{a|b}"),
    "one choice": ("x {a} y", {"wildcards": True}, "x a y"),
    "open brace": ("x {a|b", {"wildcards": True}, "x {a|b"),
    "underscores": ("long_hair, ^_^, o_o,a_b", {"replace_underscores": True}, "long hair, ^_^, o_o,a b"),
    "underscores in the trigger": (
        "my_fox, my_fur",
        {"replace_underscores": True, "trigger": "my_fox"},
        "my_fox, my fur",
    ),
    "trigger is missing": ("a, b", {"trigger": "sks"}, "sks, a, b"),
    "trigger of nothing": ("", {"trigger": "sks"}, "sks"),
    "trigger is there": ("a photo of Sks, b", {"trigger": "sks"}, "a photo of Sks, b"),
    "trigger inside a word": ("sksy", {"trigger": "sks"}, "sks, sksy"),
    "trigger is no pattern": ("a", {"trigger": "(s+k.s"}, "(s+k.s, a"),
    "all kept": ("a, b", {"shuffle": True, "keep_tokens": 9}, "a, b"),
    "separator": ("a; b", {"tag_dropout": 1, "keep_tokens": 1, "separator": ";"}, "a"),
    "blank as separator": ("a b c", {"tag_dropout": 1, "keep_tokens": 2, "separator": " "}, "a b"),
    "marks": ("a, b ||| c, d ||| e", {"tag_dropout": 1, "keep_tokens_separator": "|||"}, "a, b, e"),
    "mark is missing": ("a, b, c", {"tag_dropout": 1, "keep_tokens_separator": "|||", "keep_tokens": 1}, "a"),
    "mark without shuffle": ("a, b ||| c, ||| e", {"keep_tokens_separator": "|||"}, "a, b, c, e"),
    "kept tags": ("a, B, c", {"tag_dropout": 1, "keep_tags": "b"}, "B"),
    "kept trigger": ("a, sks, c", {"tag_dropout": 1, "trigger": "sks"}, "sks"),
    "secondary": ("a; b, c", {"secondary_separator": ";"}, "a, b, c"),
    "held together": ("a; b, c", {"secondary_separator": ";", "tag_dropout": 1, "keep_tags": "a; b"}, "a, b"),
    "empty tags": (" ,a,, b,", {"shuffle": True, "keep_tokens": 9}, "a, b"),
    "brackets hold": ("(a, b:1.3), c", {"tag_dropout": 1, "keep_tokens": 1, "weighted": True}, "(a, b:1.3)"),
    "brackets as text": ("(a, b:1.3), c", {"tag_dropout": 1, "keep_tokens": 1}, "(a"),
    "open bracket": ("(a, b", {"tag_dropout": 1, "keep_tokens": 1, "weighted": True}, "(a"),
    "escaped bracket": (r"a \(b, c), d", {"tag_dropout": 1, "keep_tokens": 2, "weighted": True}, r"a \(b, c)"),
    "dropped": ("a", {"dropout": 1, "trigger": "sks", "prefix": "p"}, ""),
    "dropped this epoch": ("a", {"dropout_every_epochs": 1}, ""),
}


@pytest.mark.parametrize("name", FIXED)
def test_what_needs_no_chance(name: str) -> None:
    caption, settings, expected = FIXED[name]
    assert told(caption, **settings) == expected


def test_shuffling_gives_every_order_equally_often() -> None:
    counts = Counter(draws("a, b, c", 3000, shuffle=True))
    assert len(counts) == 6
    assert all(abs(count - 500) < 100 for count in counts.values())


def test_kept_tags_stay_in_front_and_behind() -> None:
    for caption in draws("k, l ||| a, b, c, d ||| y, z", 20, shuffle=True, keep_tokens_separator="|||"):
        assert re.fullmatch(r"k, l, [a-d], [a-d], [a-d], [a-d], y, z", caption)
    assert {caption[:4] for caption in draws(TAGS, 20, shuffle=True, keep_tokens=2)} == {"a, b"}


def test_rates_are_rates() -> None:
    assert sum(not caption for caption in draws("a", 2000, dropout=0.25)) / 2000 == pytest.approx(0.25, abs=0.03)
    left = [len(caption.split(", ")) for caption in draws(TAGS, 1000, tag_dropout=0.25) if caption]
    assert sum(left) / len(left) == pytest.approx(6, abs=0.15)


def test_every_second_epoch_has_no_captions() -> None:
    epochs = [told("a", Moment(1, epoch=epoch), dropout_every_epochs=2) for epoch in range(4)]
    assert epochs == ["a", "", "a", ""]


def test_one_of_several_lines_and_choices() -> None:
    assert Counter(draws(["a", "b"], 400, lines="random", prefix="p")).keys() == {"p a", "p b"}
    counts = Counter(draws("{a|b} {c|d|{e|f} }", 2000, wildcards=True))
    assert set(counts) == {f"{first} {second}" for first in "ab" for second in "cdef"}
    assert counts["a c"] + counts["b c"] == pytest.approx(667, abs=80)


def test_the_same_choice_twice_is_made_twice() -> None:
    assert len(set(draws("{a|b}{a|b}", 100, wildcards=True))) == 4


def test_warm_up_adds_tags_one_by_one() -> None:
    def lengths(**settings: object) -> list[int]:
        moments = [Moment(1, step=step, total_steps=40, steps_per_epoch=4) for step in range(0, 12)]
        return [len(told(TAGS, moment, **settings).split(", ")) for moment in moments]

    # 8 tags, 1 at first: 1 + floor(step * 7 / 8), then all of them
    expected = [1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8]
    assert lengths(warmup_steps=8) == expected
    assert lengths(warmup_steps=0.2) == expected
    assert lengths(warmup_epochs=2) == expected
    assert lengths(warmup_steps=8, warmup_min=8) == [8] * 12
    assert lengths(warmup_steps=8, warmup_min=20) == [8] * 12
    assert told(TAGS, Moment(1, step=0), warmup_steps=8, keep_tokens=3) == "a, b, c, d"
    assert told("a, b", Moment(1, step=0), warmup_steps=8, warmup_min=0) == ""


def test_warm_up_cuts_before_it_shuffles() -> None:
    for occurrence in range(20):
        caption = told(TAGS, Moment(1, occurrence=occurrence, step=4), warmup_steps=8, shuffle=True)
        assert set(caption.split(", ")) == {"a", "b", "c", "d"}


def test_operations_do_not_disturb_one_another() -> None:
    for index in range(50):
        moment = Moment(1, occurrence=index)
        dropped = set(told(TAGS, moment, tag_dropout=0.5).split(", "))
        assert set(told(TAGS, moment, tag_dropout=0.5, shuffle=True).split(", ")) == dropped
        with_dropout = told(TAGS, moment, shuffle=True, dropout=0.5)
        assert with_dropout in ("", told(TAGS, moment, shuffle=True))


def test_draws_depend_on_all_of_the_moment_and_on_nothing_else() -> None:
    settings = {"shuffle": True, "tag_dropout": 0.3, "wildcards": True, "lines": "random"}
    lines = ["{a|b}, c, d, e, f, g", "h, i, j, k, l, m"]
    moments = [Moment(seed, epoch, occurrence) for seed in (1, 2) for epoch in (0, 1) for occurrence in range(3)]
    captions = [told(lines, moment, **settings) for moment in moments]
    assert captions == [told(lines, moment, **settings) for moment in moments]
    assert len(set(captions)) == len(captions)
    assert told(lines, moments[0], identity="y.png", **settings) != captions[0]
    assert told(lines, Moment(1, step=7), **settings) == captions[0]


@hypothesis_settings(max_examples=200)
@given(
    st.text(st.sampled_from("ab ,;|{}()[]\\_:1."), max_size=40),
    st.fixed_dictionaries(
        {},
        optional={
            "shuffle": st.booleans(),
            "wildcards": st.booleans(),
            "weighted": st.booleans(),
            "replace_underscores": st.booleans(),
            "keep_tokens": st.integers(0, 3),
            "keep_tokens_separator": st.sampled_from(["", "|", "|||"]),
            "secondary_separator": st.sampled_from(["", ";"]),
            "separator": st.sampled_from([",", " ", ".:"]),
            "tag_dropout": st.sampled_from([0, 0.5, 1]),
            "warmup_steps": st.sampled_from([0, 0.5, 3]),
        },
    ),
)
def test_any_caption_is_survived(caption: str, settings: dict[str, object]) -> None:
    parsed = CaptionSettings.parse(settings)
    out = caption_of([caption], parsed, "x", Moment(1, total_steps=8))
    assert len(out) <= 3 * len(caption) + 3
    if not any(wanted(parsed) for _, wanted, _ in OPERATIONS[1:]):
        assert out == caption
    fullest_caption([caption], parsed)


def test_shuffled_tags_are_the_tags() -> None:
    for caption in draws("(a, b:1.3), [c, d], e, (f), f", 30, shuffle=True, weighted=True):
        pieces = re.findall(r"\([^)]*\)|\[[^\]]*\]|\w+", caption)
        assert Counter(pieces) == Counter(["(a, b:1.3)", "[c, d]", "e", "(f)", "f"])


def test_faces_keep_their_underscores() -> None:
    for face in FACES:
        assert without_underscores(f"a_b, {face}, c_d") == f"a b, {face}, c d"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("001 red fox", "red fox"),
        ("red fox", "red fox"),
        ("12-07 fox", "fox"),
        ("123", ""),
        ("0a", "a"),
        ("a 1", "a 1"),
    ],
)
def test_words_of_file_names(name: str, words: str) -> None:
    assert file_words(name) == words


def test_the_fullest_caption_has_everything() -> None:
    settings = CaptionSettings(
        shuffle=True, tag_dropout=0.9, dropout=0.9, warmup_steps=99, wildcards=True, lines="random", trigger="sks"
    )
    assert fullest_caption(["a", "b, {c|dddd}, e"], settings) == "sks, b, dddd, e"
    assert fullest_caption(["a", "b"], CaptionSettings(lines="join")) == "a, b"
    assert fullest_caption([], CaptionSettings()) == ""


def test_settings_that_contradict_or_do_nothing_are_named() -> None:
    with pytest.raises(SettingsError, match="not both"):
        CaptionSettings.parse({"warmup_steps": 1, "warmup_epochs": 1})
    silent = CaptionSettings(keep_tokens=1, keep_tags=("a",), warmup_min=2, dropout=1.0)
    assert len(captions_without_effect(silent)) == 4
    assert captions_without_effect(CaptionSettings(keep_tokens=1, shuffle=True)) == []
    assert CaptionSettings.parse({"keep_tags": "a, red fox"}).keep_tags == ("a", "red fox")
