"""Weights by brackets, and BREAK.

Whatever a person types is a prompt: brackets that do not match are text or closed at the end, never an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from loraloom.models.conditioning import BREAK, Segment

__all__ = ["parse_attention"]

ROUND_WEIGHT = 1.1
SQUARE_WEIGHT = 1 / 1.1

_TOKEN = re.compile(
    r"""
      \\(?P<escaped>[()\[\]\\]?)                                         # a lone backslash disappears
    | (?P<open>[(\[])
    | : \s* (?P<weight> [+-]? (?: \d+ (?:\.\d*)? | \.\d+ ) ) \s* \)
    | (?P<close>[)\]])
    | (?P<text> [^\\()\[\]:]+ | : )
    """,
    re.VERBOSE,
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


def parse_attention(prompt: str) -> list[Segment]:
    """A prompt as stretches of equal weight; at least one.

    ``(x)`` 1.1, ``[x]`` 1/1.1, ``(x:1.3)`` 1.3, nested weights multiply, a backslash makes a bracket text. The word
    BREAK becomes conditioning.BREAK wherever it stands, also inside brackets.
    """
    segments: list[Segment] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def scale(since: int, weight: float) -> None:
        segments[since:] = [
            segment if segment is BREAK else replace(segment, weight=segment.weight * weight)
            for segment in segments[since:]
        ]

    for token in _TOKEN.finditer(prompt):
        if token["escaped"] is not None:
            segments.append(Segment(token["escaped"]))
        elif token["open"]:
            opened[token["open"]].append(len(segments))
        elif token["weight"] and opened["("]:
            scale(opened["("].pop(), float(token["weight"]))
        elif token["close"] == ")" and opened["("]:
            scale(opened["("].pop(), ROUND_WEIGHT)
        elif token["close"] == "]" and opened["["]:
            scale(opened["["].pop(), SQUARE_WEIGHT)
        else:
            segments.extend(_with_breaks(token.group(0)))
    _close(opened, scale)
    return _merged(segments)


def _close(opened: dict[str, list[int]], scale: Callable[[int, float], None]) -> None:
    for since in opened["("]:
        scale(since, ROUND_WEIGHT)
    for since in opened["["]:
        scale(since, SQUARE_WEIGHT)


def _with_breaks(text: str) -> list[Segment]:
    first, *others = _BREAK.split(text)
    return [Segment(first)] + [segment for part in others for segment in (BREAK, Segment(part))]


def _merged(segments: list[Segment]) -> list[Segment]:
    """Neighbours of equal weight joined, empty stretches dropped."""
    merged: list[Segment] = []
    for segment in segments:
        if segment is not BREAK and not segment.text:
            continue
        last = merged[-1] if merged else BREAK
        if segment is not BREAK and last is not BREAK and last.weight == segment.weight:
            merged[-1] = Segment(last.text + segment.text, last.weight)
        else:
            merged.append(segment)
    return merged or [Segment("")]
