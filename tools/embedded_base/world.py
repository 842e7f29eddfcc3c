"""The base model's world: scenes of one or two things on a plain background, each a function of its number."""

from __future__ import annotations

import itertools
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from drawings import Concept
from PIL import Image

from loraloom.randomness import seed_of

SIZE_PX = 128
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "grey": (168, 170, 174),
    "red": (214, 66, 66),
    "orange": (246, 158, 66),
    "yellow": (250, 222, 98),
    "green": (112, 190, 104),
    "blue": (84, 148, 228),
    "purple": (156, 104, 204),
    "pink": (248, 168, 200),
}
_WHITE_SHARE = 0.35
_PAIR_SHARE = 0.12
_JITTER = 10
# Words that say nothing about the scene, so that the model learns to look past what it does not know:
# a trigger word or a style word in a prompt then changes nothing until a LoRA gives it a meaning.
_FILLERS = ("a drawing of", "a picture of", "an icon of", "a nice picture of", "an illustration of")


@dataclass(frozen=True)
class Placement:
    """A thing at a place: centre and side of its square as fractions of the image."""

    concept: Concept
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Scene:
    """What an image shows and what is said about it."""

    things: tuple[Placement, ...]
    background: str
    colour: tuple[int, int, int]
    caption: str


class World:
    """Scenes by number. The same seed, number and concepts always give the same scene."""

    def __init__(self, concepts: Sequence[Concept], *, seed: int) -> None:
        self.concepts = list(concepts)
        self.seed = seed
        self._steps = list(itertools.accumulate(concept.weight for concept in self.concepts))

    def scene(self, number: int) -> Scene:
        """Scene ``number``."""
        draw = np.random.default_rng(seed_of("scene", self.seed, number))
        background = "white" if draw.random() < _WHITE_SHARE else list(BACKGROUNDS)[1 + draw.integers(8)]
        colour = BACKGROUNDS[background]
        if background != "white":
            colour = tuple(int(min(255, max(0, c + draw.integers(-_JITTER, _JITTER + 1)))) for c in colour)
        things = self._pair(draw) if draw.random() < _PAIR_SHARE else self._single(draw)
        return Scene(things, background, colour, self._caption(things, background, draw))

    def _concept(self, draw: np.random.Generator) -> Concept:
        return self.concepts[bisect(self._steps, draw.random() * self._steps[-1])]

    def _single(self, draw: np.random.Generator) -> tuple[Placement, ...]:
        side = 0.66 + 0.27 * draw.random()
        room = (1 - side) / 2
        x, y = 0.5 + room * draw.uniform(-1, 1), 0.5 + room * draw.uniform(-1, 1)
        return (Placement(self._concept(draw), x, y, side),)

    def _pair(self, draw: np.random.Generator) -> tuple[Placement, ...]:
        left, right = self._concept(draw), self._concept(draw)
        while right is left:
            right = self._concept(draw)
        sides = 0.42 + 0.06 * draw.random(2)
        heights = 0.5 + 0.18 * draw.uniform(-1, 1, 2)
        return (
            Placement(left, 0.25, float(heights[0]), float(sides[0])),
            Placement(right, 0.75, float(heights[1]), float(sides[1])),
        )

    def _caption(self, things: tuple[Placement, ...], background: str, draw: np.random.Generator) -> str:
        names = []
        for thing in things:
            choices = thing.concept.names
            name = choices[0] if draw.random() < 0.6 else choices[draw.integers(len(choices))]
            names.append(with_article(name))
        subject = " and ".join(names)
        form = draw.random()
        if form < 0.12:
            return subject if len(names) > 1 or draw.random() < 0.5 else subject.split(" ", 1)[-1]
        if form < 0.22:
            subject = f"{_FILLERS[draw.integers(len(_FILLERS))]} {subject}"
        tail = (
            f", {background} background"
            if draw.random() < 0.1
            else f" on a{'n' * (background == 'orange')} {background} background"
        )
        return subject + tail


_PLURAL = ("grapes", "cherries", "french fries", "glasses")


def with_article(name: str) -> str:
    """``a`` or ``an`` before a name, nothing before plurals and names that need none."""
    if name in _PLURAL:
        return name
    return f"an {name}" if name[0] in "aeio" or name.startswith("umbrella") else f"a {name}"


def render(scene: Scene, sprites: Mapping[str, Image.Image], size_px: int = SIZE_PX) -> Image.Image:
    """The scene as an RGB image."""
    page = Image.new("RGB", (size_px, size_px), scene.colour)
    for thing in scene.things:
        side = round(thing.side * size_px)
        sprite = sprites[thing.concept.code].resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        corner = round(thing.x * size_px - side / 2), round(thing.y * size_px - side / 2)
        page.paste(sprite, corner, sprite)
    return page
