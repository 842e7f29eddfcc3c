"""Prompts that change while an image is made: ``[from:to:when]``, ``[to:when]``, ``[from::when]``, ``[a|b]``.

``when`` with a point is a share of the steps, else a step. Brackets that are not schedule stay as they are, for
:mod:`attention`; nothing is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from loraloom.generation.settings import PromptCompatibility

__all__ = ["State", "prompt_states", "state_at"]

_TOKEN = re.compile(r"(?P<text>(?:[^\\\[\]():|]|\\.)+)|(?P<mark>[\[\]():|])|(?P<other>\\)")
_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")


@dataclass(frozen=True)
class State:
    """The text of a prompt up to and including step ``end`` (steps count from 1)."""

    end: int
    text: str


@dataclass(frozen=True)
class _Change:
    """``before`` up to the step ``when``, ``after`` from the next one on."""

    before: _Items
    after: _Items
    when: int

    def at(self, step: int) -> _Items:
        return self.before if step <= self.when else self.after


@dataclass(frozen=True)
class _Alternation:
    choices: tuple[_Items, ...]

    def at(self, step: int) -> _Items:
        return self.choices[(step - 1) % len(self.choices)]


@dataclass(frozen=True)
class _Mark:
    """A bracket, colon or bar, which means nothing until its bracket is closed."""

    text: str


@dataclass(frozen=True)
class _Group:
    """Brackets that are text, with what is in them."""

    items: _Items


_Item = str | _Mark | _Group | _Change | _Alternation
_Items = tuple["_Item", ...]


@dataclass
class _Frame:
    opening: str
    items: list[_Item] = field(default_factory=list)


@dataclass(frozen=True)
class _Clock:
    """How ``when`` becomes a step."""

    steps: int
    earlier: int
    """Steps of the pass before this one."""
    second_pass: bool
    compatibility: PromptCompatibility

    def step(self, when: str) -> int:
        value = float(when)
        if self.compatibility == "a1111-1.5":
            value = value * self.steps if value < 1 else value
        elif "." in when:
            value = (value - (1 if self.second_pass else 0)) * self.steps
        else:
            value -= self.earlier if self.second_pass else 0
        return int(max(-1.0, min(float(self.steps), value)))


def prompt_states(
    prompt: str,
    steps: int,
    *,
    calls_per_step: int = 1,
    earlier_steps: int | None = None,
    compatibility: PromptCompatibility = "none",
) -> tuple[State, ...]:
    """The texts that a prompt is, one after another; the last one ends at ``steps * calls_per_step``.

    ``calls_per_step`` 2 counts as the web UI does for second-order samplers: every call of the model is a step.
    ``earlier_steps`` is given in a second (high-resolution) pass: a share is then counted from 1, a step from the end
    of the first pass. Before 1.6 the web UI took any number below 1 as a share and knew no second pass. With the web
    UI's rules a ``|`` or a lone backslash outside of ``[a|b]`` makes the whole prompt plain text, as it does there.
    """
    total = steps * calls_per_step
    is_old = compatibility == "a1111-1.5"
    second_pass = earlier_steps is not None and not is_old
    clock = _Clock(total, (earlier_steps or 0) * calls_per_step, second_pass, compatibility)
    strict = compatibility != "none"
    items, boundaries = _parse(prompt, clock, strict=strict)
    if strict and any(item in (_Mark("|"), _Mark("\\")) for item in items):
        return (State(total, prompt),)
    ends = sorted({total, *(end for end in boundaries if 1 <= end < total)})
    return tuple(State(end, _text_at(items, end)) for end in ends)


def state_at(states: tuple[State, ...], step: int, *, compatibility: PromptCompatibility = "none") -> int:
    """Which state is in force at a step (from 1); the last one beyond the end.

    The web UI compares steps that count from 0 with ends that count from 1, so that every change there comes one step
    late; with its rules it does here too.
    """
    late = 0 if compatibility == "none" else 1
    return next((index for index, state in enumerate(states) if step - late <= state.end), len(states) - 1)


def _parse(prompt: str, clock: _Clock, *, strict: bool) -> tuple[_Items, set[int]]:
    """The prompt as items of the outermost level, and the steps at which something changes."""
    frames = [_Frame("")]
    boundaries: set[int] = set()
    for token in _TOKEN.finditer(prompt):
        mark = token["mark"] or token["other"]
        if not mark:
            frames[-1].items.append(token["text"])
        elif mark == "\\" and strict:
            frames[0].items.append(_Mark(mark))
        elif mark in "([":
            frames.append(_Frame(mark))
        elif mark in ")]":
            _closed(frames, mark, clock, boundaries, strict=strict)
        else:
            frames[-1].items.append(_Mark(mark))
    _flatten(frames)
    return tuple(frames[0].items), boundaries


def _closed(frames: list[_Frame], mark: str, clock: _Clock, boundaries: set[int], *, strict: bool) -> None:
    """Make a group of what the closing bracket ends; a bracket that does not match makes all open ones text."""
    if frames[-1].opening != {")": "(", "]": "["}[mark]:
        _flatten(frames)
        frames[0].items.append(_Mark(mark))
        return

    frame = frames.pop()
    colons = frame.items.count(_Mark(":"))
    bars = frame.items.count(_Mark("|"))
    made: _Change | _Alternation | None = None
    if mark == "]" and bars and not colons:
        made = _Alternation(_split(frame.items, "|"))
        boundaries.update(range(1, clock.steps + 1))
    elif mark == "]" and colons in (1, 2) and not bars:
        made = _change(_split(frame.items, ":"), clock)

    if made is not None:
        if isinstance(made, _Change):
            boundaries.add(made.when)
        frames[-1].items.append(made)
        return

    if strict and (bars or colons > (1 if mark == ")" else 0)):
        frames.append(frame)  # no group by the web UI's grammar: nothing around it can be one
        _flatten(frames)
        frames[0].items.append(_Mark(mark))
        return

    inert = (item.text if isinstance(item, _Mark) else item for item in frame.items)
    frames[-1].items.append(_Group((frame.opening, *inert, mark)))


def _flatten(frames: list[_Frame]) -> None:
    """Every open bracket becomes text of the outermost level."""
    for frame in frames[1:]:
        frames[0].items.append(_Mark(frame.opening))
        frames[0].items.extend(frame.items)
    del frames[1:]


def _split(items: list[_Item], mark: str) -> tuple[_Items, ...]:
    places = [-1, *(index for index, item in enumerate(items) if item == _Mark(mark)), len(items)]
    return tuple(tuple(items[start + 1 : end]) for start, end in pairwise(places))


def _change(parts: tuple[_Items, ...], clock: _Clock) -> _Change | None:
    """``before:after:when``; None where the last part is not a number."""
    last = parts[-1]
    number = _WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
    if number is None:
        return None
    before = parts[0] if len(parts) == 3 else ()
    return _Change(before, parts[-2], clock.step(number.group(1)))


def _text_at(items: _Items, step: int) -> str:
    return "".join(_texts(items, step))


def _texts(items: _Items, step: int) -> Iterator[str]:
    """The pieces of text in force at a step (without recursion: brackets can be nested thousands deep)."""
    waiting = list(reversed(items))
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, _Mark):
            yield item.text
        else:
            waiting.extend(reversed(item.items if isinstance(item, _Group) else item.at(step)))
