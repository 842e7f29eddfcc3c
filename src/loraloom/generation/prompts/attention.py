"""Weights by brackets, and BREAK.

Whatever a person types is a prompt: brackets that do not match are text or closed at the end, never an error.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from loraloom.generation.settings import PromptCompatibility, PromptEmphasis
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
_LONGEST_NUMBER = 500
_ESCAPED = ("\ufdd0", "\ufdd1")
"""In the place of escaped brackets while ComfyUI's rules are followed; no text holds these two."""


def parse_attention(
    prompt: str, *, emphasis: PromptEmphasis = "original", compatibility: PromptCompatibility = "none"
) -> list[Segment]:
    """A prompt as stretches of equal weight; at least one.

    ``(x)`` 1.1, ``[x]`` 1/1.1, ``(x:1.3)`` 1.3, nested weights multiply, a backslash makes a bracket text. The word
    BREAK becomes conditioning.BREAK wherever it stands, also inside brackets. With ``emphasis="comfy"`` the rules are
    ComfyUI's, brackets that do not match included: an explicit weight replaces those around it and square brackets are
    text (BREAK works all the same, and a weight that is not finite is none); with ``"none"`` everything is text. With
    the web UI's rules a BREAK in weighted brackets is the word, as it is there; The one exception is ``(a:1.2.3)``, at
    which the web UI fails: it is text under all rules.
    """
    if emphasis == "none":
        return [Segment(prompt)]
    if emphasis == "comfy":
        return _comfy(prompt)
    segments: list[Segment] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    breaks_at_any_weight = compatibility == "none"

    def scale(since: int, weight: float) -> None:
        segments[since:] = [
            segment if segment is BREAK and breaks_at_any_weight else replace(segment, weight=segment.weight * weight)
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
            # How much a bracket weighs is known when it closes: then all that stands since it opened is weighed.
            scale(opened["["].pop(), SQUARE_WEIGHT)
        else:
            segments.extend(_with_breaks(token.group(0)))
    _close(opened, scale)
    return _merged(segments) if breaks_at_any_weight else _merged_as_the_web_ui(segments)


def _close(opened: dict[str, list[int]], scale: Callable[[int, float], None]) -> None:
    for since in opened["("]:
        scale(since, ROUND_WEIGHT)
    for since in opened["["]:
        scale(since, SQUARE_WEIGHT)


def _with_breaks(text: str) -> list[Segment]:
    first, *others = _BREAK.split(text)
    return [Segment(first)] + [segment for part in others for segment in (BREAK, Segment(part))]


def _merged(segments: Iterable[Segment]) -> list[Segment]:
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


def _merged_as_the_web_ui(segments: Iterable[Segment]) -> list[Segment]:
    """The same with the web UI's faults: an empty stretch of another weight parts two words, BREAK is a word too."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and merged[-1].weight == segment.weight:
            merged[-1] = Segment(merged[-1].text + segment.text, segment.weight)
        else:
            merged.append(segment)
    return [BREAK if segment == BREAK else segment for segment in merged if segment.text] or [Segment("")]


def _comfy(prompt: str) -> list[Segment]:
    """ComfyUI's rules. A text is a row of items, each in a pair of round brackets or plain; brackets hold texts again.

    Stretches stay apart as they are there, where each is cut into tokens by itself.
    """
    text = prompt.replace("\\)", _ESCAPED[0]).replace("\\(", _ESCAPED[1])
    marks = [mark.start() for mark in re.finditer(r"[()]", text)]
    partner = _partners(text, marks)
    segments: list[Segment] = []

    waiting = [_Stretch(0, len(text), 1.0)]
    while waiting:  # without recursion: brackets can be nested thousands deep
        stretch = waiting.pop()
        if stretch.is_plain:
            plain = text[stretch.start : stretch.end].replace(_ESCAPED[0], ")").replace(_ESCAPED[1], "(")
            parts = _with_breaks(plain)
            segments += [part if part is BREAK else replace(part, weight=stretch.weight) for part in parts]
            continue
        items = [_inside(text, start, end, stretch.weight) for start, end in _items(text, marks, partner, stretch)]
        waiting += reversed(items)

    return [segment for segment in segments if segment is BREAK or segment.text] or [Segment("")]


@dataclass(frozen=True)
class _Stretch:
    """Part of a prompt from one position to another, and the weight of what stands in no further brackets there."""

    start: int
    end: int
    weight: float
    is_plain: bool = False


def _partners(text: str, marks: Sequence[int]) -> dict[int, int]:
    """Where the bracket is closed that opens at a position, for those that are."""
    open_at: list[int] = []
    partner: dict[int, int] = {}
    for mark in marks:
        if text[mark] == "(":
            open_at.append(mark)
        elif open_at:
            partner[open_at.pop()] = mark
    return partner


def _items(text: str, marks: Sequence[int], partner: Mapping[int, int], stretch: _Stretch) -> Iterator[tuple[int, int]]:
    """Start and end of each item of a stretch.

    A bracket that is not closed takes all that follows. After one that closes nothing, the next that opens is text:
    ComfyUI counts one against the other.
    """
    begun, surplus = stretch.start, 0
    index = bisect_left(marks, stretch.start)
    while index < len(marks) and (at := marks[index]) < stretch.end:
        if text[at] == ")" or surplus:
            surplus += 1 if text[at] == ")" else -1
            index += 1
            continue
        if at > begun:
            yield begun, at
        begun = min(partner.get(at, stretch.end) + 1, stretch.end)
        yield at, begun
        index = bisect_left(marks, begun, index)
    if begun < stretch.end:
        yield begun, stretch.end


def _inside(text: str, start: int, end: int, weight: float) -> _Stretch:
    """What an item holds: the inside of brackets with its weight (whatever ``float`` reads behind the last colon)."""
    if end - start < 2 or text[start] != "(" or text[end - 1] != ")":
        return _Stretch(start, end, weight, is_plain=True)
    start, end = start + 1, end - 1
    colon = text.rfind(":", start, end)
    if colon > start and (explicit := _finite(text[colon + 1 : min(end, colon + 2 + _LONGEST_NUMBER)])) is not None:
        return _Stretch(start, colon, explicit)
    return _Stretch(start, end, weight * ROUND_WEIGHT)


def _finite(text: str) -> float | None:
    if len(text) > _LONGEST_NUMBER:
        return None
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if math.isfinite(weight) else None
