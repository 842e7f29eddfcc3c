"""Names of runs: what every system can keep and show, and the reason for what is refused."""

from __future__ import annotations

import pytest

from loraloom.file_names import LONGEST_NAME, check_name


@pytest.mark.parametrize(
    "name",
    ["lora", "my style 2", "käthe", "雨の町", "a.b", "v1.5-lora", "console", "com10", "nulls", "👩‍🎨", "x" * 200],
)
def test_names_that_are_taken_as_they_are(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("a/b", "cannot have /"),
        ("a\\b", r"cannot have \\"),
        ("a:b", "cannot have :"),
        ("why?", "cannot have [?]"),
        ("a\x1b[31mb", "control characters"),
        ("a\nb", "line ends"),
        ("a\u2028b", "line ends"),
        ("a\x7f", "control"),
        ("a\udce9", "control"),
        ("gnp\u202e.cod", "control"),
        ("..", "begin with a dot"),
        (".tmp-1", "begin with a dot"),
        (" a", "begin or end with a space"),
        ("a ", "begin or end with a space"),
        ("a.", "end with a dot"),
        ("NUL", "device on Windows"),
        ("com1.style", "device on Windows"),
        ("LPT³", "device on Windows"),
        ("x" * 201, "200 bytes, this has 201"),
        ("雨" * 67, "200 bytes, this has 201"),
    ],
)
def test_names_that_some_system_cannot_keep(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_name(name)


def test_what_a_run_writes_behind_its_name_still_fits() -> None:
    longest = "-last-good-step00001234-raw.safetensors"
    assert LONGEST_NAME + len(longest) <= 255
