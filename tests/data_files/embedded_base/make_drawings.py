"""Write ``drawings.npz`` and ``openmoji/``: what things look like, for tests that judge what a LoRA has learned.

Needs ``resvg-py`` and the npm packages unpacked (tools/embedded_base/README.md says how)::

    python make_drawings.py NOTO/package OPENMOJI/package

For each concept of ``concepts.tsv`` and each held-out cat face: the code point, the main name (empty for cat faces),
and of Noto's and OpenMoji's drawing of it, on white, the feature vector (tools/embedded_base/features.py) and the share
of outlined edge. ``openmoji/`` holds OpenMoji's drawings of things that the demo's dataset does not
show, as that dataset's drawings are made.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from drawings import IconSet

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "tools" / "embedded_base"))

SIZE_PX, SIDE_PX = 128, 102
HELD_OUT_THINGS = (
    "fox face", "tomato", "frog face", "hedgehog", "red heart", "lemon", "pig face", "crescent moon",
    "star", "green apple", "red balloon", "deciduous tree", "grinning face", "blue heart", "sun", "cat",
    "pineapple", "rose", "cherries", "house", "umbrella", "crown", "rocket", "ghost",
)  # fmt: skip
"""Noto draws them without black outlines, so black outlines are the LoRA's."""


def main(noto: Path, openmoji: Path) -> None:
    from drawings import HELD_OUT, IconSet, read_concepts
    from features import features, outlined

    concepts = read_concepts()
    names = {concept.code: concept.name for concept in concepts} | dict.fromkeys(sorted(HELD_OUT), "")
    sets = {"noto": IconSet(noto), "openmoji": IconSet(openmoji)}
    pages = {kind: [_page(icons, code) for code in names] for kind, icons in sets.items()}
    np.savez_compressed(
        HERE / "drawings.npz",
        codes=np.array(list(names)),
        names=np.array(list(names.values())),
        **{f"{kind}_vectors": np.stack([features(page) for page in pages[kind]]).astype(np.float16) for kind in sets},
        **{f"{kind}_outlined": np.array([outlined(page) for page in pages[kind]], np.float32) for kind in sets},
    )
    codes = {concept.name: concept.code for concept in concepts}
    for number, name in enumerate(HELD_OUT_THINGS):
        drawing = sets["openmoji"].draw(codes[name], SIZE_PX)
        page = Image.new("RGB", (SIZE_PX, SIZE_PX), "white")
        page.paste(drawing, (0, 0), drawing)
        path = HERE / "openmoji" / f"{number:02d} {name}.png"
        path.parent.mkdir(exist_ok=True)
        page.quantize(32, dither=Image.Dither.NONE).save(path, optimize=True)


def _page(icons: IconSet, code: str) -> Image.Image:
    from drawings import trimmed

    drawing = trimmed(icons.draw(code)).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR, reducing_gap=2.0)
    page = Image.new("RGB", (SIZE_PX, SIZE_PX), "white")
    page.paste(drawing, ((SIZE_PX - SIDE_PX) // 2,) * 2, drawing)
    return page


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
