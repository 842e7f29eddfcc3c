"""Openly licensed emoji drawings: read from npm's icon packages, rasterised, with the concepts they stand for."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

CONCEPTS_FILE = Path(__file__).with_name("concepts.tsv")
SPRITE_PX = 256
# Held out for the demo's character: they must never be trained on, whatever the list says.
HELD_OUT = frozenset({"1f431", *(f"{code:x}" for code in range(0x1F638, 0x1F641))})
# Nothing flat, lettered or ticking: what the autoencoder may see beside the listed concepts.
_NOT_THINGS = ("Flags", "Symbols", "Component", "Clocks")


@dataclass(frozen=True)
class Concept:
    """A thing of the base model's world: its drawing's code point, what it is called, how often it is drawn."""

    code: str
    names: tuple[str, ...]
    weight: float
    stage: int = 1
    """A short training learns the things of stage 1 only."""

    @property
    def name(self) -> str:
        """The main name."""
        return self.names[0]


def read_concepts(path: Path = CONCEPTS_FILE) -> list[Concept]:
    """The concepts of a table: code point, names separated by ``|``, weight, stage; lines with # are comments."""
    concepts = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        code, names, weight, stage = line.split("\t")
        if code in HELD_OUT:
            raise ValueError(f"{path}: {code} is held out for the demo's character")
        concepts.append(Concept(code, tuple(names.split("|")), float(weight), int(stage)))
    codes = [concept.code for concept in concepts]
    if len(set(codes)) != len(codes):
        raise ValueError(f"{path}: a code point stands twice: {sorted({c for c in codes if codes.count(c) > 1})}")
    return concepts


class IconSet:
    """The drawings of one unpacked npm package (``@iconify-json/noto``, ``.../openmoji``, ...)."""

    def __init__(self, package: Path) -> None:
        self._icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))
        self._names: dict[str, str] = json.loads((package / "chars.json").read_text(encoding="utf-8"))
        metadata = json.loads((package / "metadata.json").read_text(encoding="utf-8"))
        self._categories: dict[str, list[str]] = metadata["categories"]

    def __contains__(self, code: str) -> bool:
        return self._names.get(code) in self._icons["icons"]

    def draw(self, code: str, size_px: int = SPRITE_PX) -> Image.Image:
        """The drawing of a code point, RGBA, square."""
        import resvg_py  # only here: everything else works without it

        icon = self._icons["icons"][self._names[code]]
        width, height = (icon.get(side, self._icons.get(side, 16)) for side in ("width", "height"))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px))
        return Image.open(io.BytesIO(png)).convert("RGBA")

    def codes(self) -> list[str]:
        """Single code points that show things (no flags, signs, letters, clocks), held-out ones left out."""
        excluded = {
            name for category, names in self._categories.items() if category.startswith(_NOT_THINGS) for name in names
        }
        return sorted(
            code
            for code, name in self._names.items()
            if "-" not in code
            and code not in HELD_OUT
            and name in self._icons["icons"]
            and name not in excluded
            and not any(word in name for word in ("clock", "oclock", "thirty", "button", "sign", "flag", "keycap"))
        )


def trimmed(drawing: Image.Image) -> Image.Image:
    """The drawing cut to what is not transparent, then padded to a square around its centre."""
    box = drawing.getchannel("A").point(lambda alpha: 255 if alpha > 8 else 0).getbbox()
    if box is None:
        return drawing
    cut = drawing.crop(box)
    side = max(cut.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square


def load_sprites(package: Path, codes: list[str], cache: Path) -> dict[str, Image.Image]:
    """Trimmed drawings by code point; rasterised once, then read from PNGs in ``cache``."""
    cache.mkdir(parents=True, exist_ok=True)
    icons: IconSet | None = None
    sprites = {}
    for code in codes:
        path = cache / f"{code}.png"
        if not path.exists():
            icons = icons or IconSet(package)
            trimmed(icons.draw(code)).save(path)
        sprites[code] = Image.open(path).convert("RGBA")
    return sprites
