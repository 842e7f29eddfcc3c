"""Data of strangers within limits, and values in sentences."""

from __future__ import annotations

from typing import Any

import pytest

from loraloom.errors import FileFormatError
from loraloom.plain_data import LARGEST_WHOLE, finite, parse_json, parse_toml, shown, too_large

HUGE = "9" * 400


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"[a]\nb = [1, {HUGE}]", r"a\.b\[1\] is a whole number of 400 digits"),
        (f"b = {'9' * 5000}", "is not valid TOML"),
        (f"b = 0x{'f' * 5000}", "b is a whole number of about 6021 digits"),
        ("b = inf", "b is infinity"),
        ("b = -1e999", "b is infinity"),
        ("[a]\nb = nan", r"a\.b is NaN"),
        (f"b = {'[' * 60}{']' * 60}", "nested too deeply"),
        (f"b = {'[' * 900}{']' * 900}", "nested"),
        ("b = 1\nb = 2", "is not valid TOML"),
        ("b = 2024-13-45", "is not valid TOML"),
        ("b = = 3", "is not valid TOML: line 1 column 4"),
    ],
)
def test_toml_outside_the_limits(text: str, problem: str) -> None:
    with pytest.raises(FileFormatError, match=f"^x.toml.*{problem}"):
        parse_toml(text, "x.toml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f'{{"a": {{"b": {HUGE}}}}}', r"a\.b is a whole number of 400 digits"),
        (f"[{'9' * 5000}]", "thousands of digits"),
        ("[1e999]", r"\[0\] is infinity"),
        ('{"a": NaN}', "a is NaN"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": }', "line 1 column 7"),
    ],
)
def test_json_outside_the_limits(text: str, problem: str) -> None:
    with pytest.raises(FileFormatError, match=rf"^x.json.*{problem}"):
        parse_json(text, "x.json")


def test_what_is_within_the_limits_is_read() -> None:
    assert parse_json(f"[{'9' * 300}, [[[0.3]]]]", "x") == [int("9" * 300), [[[0.3]]]]
    assert parse_toml("a = [1, [2]]\nb = 3e300", "x") == {"a": [1, [2]], "b": 3e300}


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("0.3", 0.3),
        (7, 7.0),
        (10**400, None),
        ("9" * 400, None),
        ("nan", None),
        ("inf", None),
        (None, None),
        ([], None),
    ],
)
def test_finite_numbers(value: Any, number: float | None) -> None:
    assert finite(value) == number


def test_whole_numbers_of_64_bits() -> None:
    assert not too_large([0, {"a": (LARGEST_WHOLE, -3)}, True, 1e300, "9" * 40])
    assert too_large({"a": [(1, -LARGEST_WHOLE - 1)]})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "nothing"),
        (True, "true"),
        (0.3, "0.3"),
        ("red", "'red'"),
        ("a\nb", r"'a\nb'"),
        ("x" * 99, f"'{'x' * 59}…'"),
        (10**400, "a whole number of 401 digits"),
        ([1, "a", None], "1, 'a', nothing"),
        (list(range(9)), "0, 1, 2, 3, 4, 5 and 3 more"),
        ({}, "an empty group"),
        ({"b": 3, "c": {"d": 4}}, "a group of settings (b, c)"),
        ([{"b": 3}], "a group of settings (b)"),
    ],
)
def test_values_in_sentences(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize("text", ["null", "5", "name"])
def test_toml_that_ends_too_early_says_so(text: str) -> None:
    with pytest.raises(FileFormatError, match="it ends too early"):
        parse_toml(text, "a.toml")
