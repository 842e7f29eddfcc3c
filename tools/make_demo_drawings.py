"""Rasterise the demo's drawings: two dozen OpenMoji with captions, as PNG and text files.

Needs ``resvg-py`` and the npm package ``@iconify-json/openmoji`` unpacked (``npm pack @iconify-json/openmoji``)::

    python tools/make_demo_drawings.py UNPACKED/package src/loraloom/studio/drawings/10_openmoji
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import resvg_py
from PIL import Image

SIZE_PX = 192
DRAWINGS = {
    "dog": "1f415",
    "horse": "1f40e",
    "elephant": "1f418",
    "giraffe": "1f992",
    "penguin": "1f427",
    "owl": "1f989",
    "tropical fish": "1f420",
    "turtle": "1f422",
    "butterfly": "1f98b",
    "snail": "1f40c",
    "red apple": "1f34e",
    "pear": "1f350",
    "banana": "1f34c",
    "strawberry": "1f353",
    "carrot": "1f955",
    "mushroom": "1f344",
    "pizza": "1f355",
    "birthday cake": "1f382",
    "sunflower": "1f33b",
    "cactus": "1f335",
    "evergreen tree": "1f332",
    "red car": "1f697",
    "bicycle": "1f6b2",
    "sailboat": "26f5",
}


def main(package: Path, output: Path) -> None:
    icons = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    names = json.loads((package / "chars.json").read_text(encoding="utf-8"))
    output.mkdir(parents=True, exist_ok=True)
    for caption, code_point in DRAWINGS.items():
        icon = icons["icons"][names[code_point]]
        width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE_PX, height=SIZE_PX))
        drawing = Image.open(io.BytesIO(png)).convert("RGBA")
        page = Image.new("RGBA", drawing.size, "white")
        page.alpha_composite(drawing)
        stem = caption.replace(" ", "_")
        page.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(output / f"{stem}.png", optimize=True)
        article = "an" if caption[0] in "aeiou" else "a"
        (output / f"{stem}.txt").write_text(f"openmoji, {article} {caption} on a white background\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
