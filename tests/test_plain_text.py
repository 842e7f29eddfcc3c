from __future__ import annotations

import json

import pytest

from loraloom.plain_text import one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a fox, käthe\u3000雨", "a fox, käthe\u3000雨"),
        ("a\nb\tc\u2028d\re", r"a\nb" + "\t" + r"c\u2028d\re"),
        ("\x1b[2Ja\x07\x9b", r"\x1b[2Ja\x07\x9b"),
        ("gnp\u202e.cod", r"gnp\u202e.cod"),
        # The name of a file that is not UTF-8, as Python gets it from the system.
        (b"caf\xe9.png".decode("utf-8", "surrogateescape"), r"caf\xe9.png"),
        # Half a letter, as JSON can spell it.
        (json.loads(r'"a \ud83d b"'), r"a \ud83d b"),
    ],
)
def test_text_that_steers_no_terminal(text: str, line: str) -> None:
    assert one_line(text) == line
    assert one_line(line) == line
    line.encode("utf-8")
