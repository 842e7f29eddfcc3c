"""Weights by brackets, and BREAK.

Whatever a person types is a prompt: brackets that do not match are text or closed at the end, never an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

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
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")
_COMFY_TOKEN = re.compile(r"\\(?P<escaped>[()])|(?P<round>[()])|(?P<text>[^\\()]+|\\)")


def parse_attention(
    prompt: str, *, emphasis: PromptEmphasis = "original", compatibility: PromptCompatibility = "none"
) -> list[Segment]:
    """A prompt as stretches of equal weight; at least one.

    ``(x)`` 1.1, ``[x]`` 1/1.1, ``(x:1.3)`` 1.3, nested weights multiply, a backslash makes a bracket text. The word
    BREAK becomes conditioning.BREAK wherever it stands, also inside brackets. With ``emphasis="comfy"`` the rules are
    ComfyUI's: an explicit weight replaces those around it and square brackets are text (BREAK still works); with
    ``"none"`` everything is text. With the web UI's rules a BREAK in weighted brackets is the word, as it is there;
    only ``(a:1.2.3)``, at which the web UI fails, is text under all rules.
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
    """ComfyUI's rules: round brackets only; one without its partner is text."""
    tokens = list(_COMFY_TOKEN.finditer(prompt))
    partner = _partners([token["round"] or "" for token in tokens])
    segments: list[Segment] = []
    weights = [1.0]
    for index, token in enumerate(tokens):
        if token["escaped"]:
            segments.append(Segment(token["escaped"], weights[-1]))
        elif index not in partner:
            parts = _with_breaks(token.group(0))
            segments.extend(part if part is BREAK else replace(part, weight=weights[-1]) for part in parts)
        elif token["round"] == "(":
            last = tokens[partner[index] - 1]
            explicit = _explicit(last["text"] or "") if partner[index] - 1 > index else None
            weights.append(weights[-1] * ROUND_WEIGHT if explicit is None else explicit)
        else:
            weights.pop()
            last = tokens[index - 1]
            if partner[index] < index - 1 and last["text"] and _explicit(last["text"]) is not None:
                _drop_weight(segments)
    return _merged(segments)


def _partners(brackets: list[str]) -> dict[int, int]:
    """Index of the partner of every bracket that has one."""
    open_at: list[int] = []
    partner: dict[int, int] = {}
    for index, bracket in enumerate(brackets):
        if bracket == "(":
            open_at.append(index)
        elif bracket == ")" and open_at:
            partner[index] = open_at.pop()
            partner[partner[index]] = index
    return partner


def _explicit(text: str) -> float | None:
    """The weight at the end of a bracket's last text: ``word:1.2``."""
    _, colon, number = text.rpartition(":")
    if not colon or not _NUMBER.fullmatch(number.strip()):
        return None
    weight = float(number)
    return weight if math.isfinite(weight) else None


def _drop_weight(segments: list[Segment]) -> None:
    """Take ``:1.2`` off the text that was added last (a number holds no BREAK, so it is in one piece)."""
    segments[-1] = replace(segments[-1], text=segments[-1].text.rpartition(":")[0])
