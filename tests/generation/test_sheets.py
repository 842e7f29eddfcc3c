"""Sheets: the images are untouched, the labels are beside them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFont

from loraloom.generation.sheets import MISSING, PAPER, draw_sheet, lay_out_sheet, wrap_text
from loraloom.randomness import seed_of

LONG = "openmoji, a hedgehog with an umbrella, in front of a house on a hill, at night, best quality, detailed"


def noise(width: int, height: int, name: str) -> Image.Image:
    draw = np.random.default_rng(seed_of(name))
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))


def overlap(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


SIZES = [((64, 64),) * 3, ((128, 64), (64, 128), (8, 8)), ((16, 16),) * 3, ((512, 384),) * 3]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("label", ["0.25", LONG, "x" * 300], ids=["short", "long", "one word"])
def test_cells_are_the_images_and_labels_keep_clear(sizes: tuple[tuple[int, int], ...], label: str) -> None:
    cells: list[list[Image.Image | None]] = [
        [noise(*size, f"{row}{column}") for column, size in enumerate(sizes)] for row in range(2)
    ]
    texts = {"rows": [label, "second"], "columns": ["0", label, "1"], "title": label, "footer": label}
    layout = lay_out_sheet(cells, **texts)  # type: ignore[arg-type]
    page = draw_sheet(cells, **texts)  # type: ignore[arg-type]
    assert page.size == layout.size
    assert page.mode == "RGB"
    boxes = [box for row in layout.cells for box in row]
    everything = [*boxes, *layout.labels]
    assert all(0 <= b[0] < b[2] <= page.width and 0 <= b[1] < b[3] <= page.height for b in everything)
    assert not any(overlap(a, b) for i, a in enumerate(everything) for b in everything[:i])
    for row, images in enumerate(cells):
        for column, image in enumerate(images):
            assert image is not None
            left, top, right, bottom = layout.cells[row][column]
            x, y = left + (right - left - image.width) // 2, top + (bottom - top - image.height) // 2
            shown = page.crop((x, y, x + image.width, y + image.height))
            assert ImageChops.difference(shown, image).getbbox() is None


@pytest.mark.parametrize("label", ["0.25", LONG], ids=["short", "long"])
def test_ink_is_inside_the_label_boxes_only(label: str) -> None:
    cells = [[Image.new("RGB", (96, 96), PAPER)] * 2] * 2
    texts = {"rows": [label, "gjpqy|"], "columns": [label, "Ågjpqy|"], "title": "Title gjpq", "footer": label}
    layout = lay_out_sheet(cells, **texts)  # type: ignore[arg-type]
    page = draw_sheet(cells, **texts)  # type: ignore[arg-type]
    assert len(layout.labels) == 6
    for box in layout.labels:
        assert len(page.crop(box).getcolors(1 << 24) or ()) > 1, "the label is drawn"
        page.paste(PAPER, box)
    assert page.getcolors() == [(page.width * page.height, PAPER)]


def test_missing_cells_are_grey() -> None:
    image = Image.new("RGB", (32, 32), "red")
    layout = lay_out_sheet([[image, None], [image]], columns=["a", "b"])
    page = draw_sheet([[image, None], [image]], columns=["a", "b"])
    for row, column in ((0, 1), (1, 1)):
        box = layout.cells[row][column]
        assert page.crop(box).getcolors() == [(32 * 32, MISSING)]
    assert draw_sheet([]).width > 0
    assert draw_sheet([[None]], title="nothing yet").width > 0


def test_transparent_and_grey_images_are_shown_on_white() -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    grey = Image.new("L", (16, 16), 99)
    palette = Image.new("RGB", (16, 16), (1, 2, 3)).quantize(4)
    layout = lay_out_sheet([[clear, grey, palette]])
    page = draw_sheet([[clear, grey, palette]])
    shown = [page.getpixel(box[:2]) for box in layout.cells[0]]
    assert shown == [(255, 255, 255), (99, 99, 99), (1, 2, 3)]


def test_too_many_labels_are_refused() -> None:
    image = Image.new("RGB", (16, 16))
    with pytest.raises(ValueError, match="2 row labels for 1 rows"):
        draw_sheet([[image]], rows=["a", "b"])
    with pytest.raises(ValueError, match="1 column labels for 2 columns"):
        draw_sheet([[image, image]], columns=["a"])


def test_wrapping() -> None:
    font = ImageFont.load_default(16)
    width = font.getlength("two words")
    assert wrap_text("two words here", width, font) == ("two words", "here")
    assert wrap_text("two\nwo  rds\t", width, font) == ("two", "wo rds")
    assert wrap_text("", width, font) == ()
    broken = wrap_text("a" + "m" * 50, width, font)
    assert "".join(broken) == "a" + "m" * 50
    assert all(font.getlength(line) <= width for line in broken)
    assert wrap_text("mm", 1, font) == ("m", "m")
