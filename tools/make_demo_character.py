"""Rasterise the demo's character: Noto's ten cat faces with captions, on plain backgrounds, as PNG and text files.

Needs ``resvg-py`` and the npm package ``@iconify-json/noto`` unpacked (``npm pack @iconify-json/noto``)::

    python tools/make_demo_character.py UNPACKED/package src/loraloom/studio/character/10_mewo_cat

The small checkpoint was never trained on these drawings (``HELD_OUT`` in embedded_base/drawings.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).with_name("embedded_base")))

from drawings import HELD_OUT, IconSet, trimmed
from world import BACKGROUNDS

SIZE_PX = 192
TRIGGER = "mewo cat"
# code point: what sets it apart, background, side and centre as fractions of the picture
FACES: dict[str, tuple[str, str, float, float, float]] = {
    "1f431": ("", "white", 0.84, 0.50, 0.50),
    "1f638": ("grinning", "blue", 0.76, 0.45, 0.54),
    "1f639": ("laughing with tears", "white", 0.80, 0.52, 0.48),
    "1f63a": ("smiling", "green", 0.82, 0.53, 0.52),
    "1f63b": ("with heart eyes", "yellow", 0.78, 0.50, 0.47),
    "1f63c": ("smirking", "white", 0.74, 0.56, 0.53),
    "1f63d": ("kissing", "pink", 0.80, 0.48, 0.50),
    "1f63e": ("angry", "grey", 0.84, 0.51, 0.51),
    "1f63f": ("crying", "purple", 0.77, 0.54, 0.46),
    "1f640": ("screaming", "white", 0.86, 0.49, 0.51),
}


def main(package: Path, output: Path) -> None:
    icons = IconSet(package)
    output.mkdir(parents=True, exist_ok=True)
    for code, (mood, background, side, x, y) in FACES.items():
        if code not in HELD_OUT:
            raise SystemExit(f"{code} is not held out from the small checkpoint")
        side_px = round(side * SIZE_PX)
        face = trimmed(icons.draw(code, 2 * SIZE_PX)).resize((side_px, side_px), Image.Resampling.LANCZOS)
        page = Image.new("RGB", (SIZE_PX, SIZE_PX), BACKGROUNDS[background])
        page.paste(face, (round(x * SIZE_PX - side_px / 2), round(y * SIZE_PX - side_px / 2)), face)
        stem = "_".join(["mewo_cat", *mood.split()])
        page.quantize(96, dither=Image.Dither.NONE).save(output / f"{stem}.png", optimize=True)
        caption = f"a {TRIGGER}{f', {mood},' if mood else ''} on a {background} background"
        (output / f"{stem}.txt").write_text(caption + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
