"""``AND``: several prompts for one image, each with its weight (composable diffusion, Liu et al., 2206.01714)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraloom.generation.settings import PromptCompatibility

__all__ = ["Part", "split_parts"]

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"[-+]?(?:\d+\.?|\d*\.\d+)")


@dataclass(frozen=True)
class Part:
    """One of the prompts, and how much its direction counts."""

    text: str
    weight: float = 1.0


def split_parts(prompt: str, *, compatibility: PromptCompatibility = "none") -> tuple[Part, ...]:
    """The parts between the words AND (upper case), at least one; each may end in ``:weight``.

    A prompt without AND has no weight: ``ratio 16:9`` is text. With the web UI's rules it weighs 9, as it does there.
    Brackets do not hold a prompt together: AND is looked for before they are.
    """
    texts = _AND.split(prompt)
    if len(texts) == 1 and compatibility == "none":
        return (Part(prompt),)
    return tuple(_weighed(text) for text in texts)


def _weighed(text: str) -> Part:
    before, colon, number = text.rpartition(":")
    if colon and _WEIGHT.fullmatch(number.strip()) and (weight := float(number)) < float("inf"):
        return Part(before.rstrip(), weight)
    return Part(text.rstrip())
