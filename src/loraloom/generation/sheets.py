"""Labelled sheets: a table of images with a title and names for its rows and columns, as one image.

Comparisons are read from such sheets: prompts x weights, seeds x epochs, one setting against another. The images
themselves are pasted as they are, pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from PIL import Image, ImageDraw, ImageFont

__all__ = ["SheetLayout", "draw_sheet", "lay_out_sheet", "wrap_text"]

Box = tuple[int, int, int, int]
Cells = Sequence[Sequence[Image.Image | None]]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

PAPER = (255, 255, 255)
INK = (24, 24, 27)
MISSING = (205, 205, 208)
_EMPTY_PX = 64
_LABEL_EMS = 9
"""A label is wrapped at the width of its images, but never narrower than this many times its letters' height."""


@dataclass(frozen=True)
class _Text:
    lines: tuple[str, ...]
    box: Box
    centred: bool


@dataclass(frozen=True)
class SheetLayout:
    """Where everything of a sheet is; boxes are (left, top, right, bottom) in pixels, right and bottom excluded."""

    size: tuple[int, int]
    cells: tuple[tuple[Box, ...], ...]
    """One box for each cell, row by row; an image smaller than its cell stands in the middle."""
    labels: tuple[Box, ...]
    """The boxes of all texts: title, columns, rows, footer."""
    text_px: int
    texts: tuple[_Text, ...] = ()


def draw_sheet(
    cells: Cells,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    footer: str = "",
    text_px: int | None = None,
) -> Image.Image:
    """A sheet, RGB: ``cells[row][column]`` under their labels. ``None``, and what short rows lack, stays grey.

    Images may be of any sizes and modes (transparency is put onto white). Labels are wrapped, never cut.
    ``text_px`` is the height of the letters; left out, it follows from the images. ValueError when there are more
    labels than rows or columns.
    """
    layout = lay_out_sheet(cells, rows=rows, columns=columns, title=title, footer=footer, text_px=text_px)
    page = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(page)
    for y, boxes in enumerate(layout.cells):
        for x, box in enumerate(boxes):
            image = cells[y][x] if x < len(cells[y]) else None
            if image is None:
                pen.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=MISSING)
            else:
                _paste(page, image, box)
    font = _font(layout.text_px)
    for text in layout.texts:
        left, top, right, _ = text.box
        for line in text.lines:
            indent = (right - left - font.getlength(line)) / 2 if text.centred else 0
            pen.text((left + indent, top), line, fill=INK, font=font)
            top += _line_px(layout.text_px)
    return page


def lay_out_sheet(
    cells: Cells,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    footer: str = "",
    text_px: int | None = None,
) -> SheetLayout:
    """Where :func:`draw_sheet` puts everything, for those who want to find an image on a sheet again."""
    count = max([len(columns), 1, *(len(row) for row in cells)])
    if len(rows) > len(cells):
        raise ValueError(f"{len(rows)} row labels for {len(cells)} rows")
    if columns and any(len(row) > len(columns) for row in cells):
        raise ValueError(f"{len(columns)} column labels for {count} columns")
    images = [image for row in cells for image in row if image is not None]
    usual = (round(median(i.width for i in images)), round(median(i.height for i in images))) if images else None
    width_px, height_px = usual or (_EMPTY_PX, _EMPTY_PX)
    letters = text_px or min(40, max(12, width_px // 14))
    font, line_px, gap = _font(letters), _line_px(letters), max(4, letters // 2)

    widths = [
        max([i.width for row in cells for i in row[x : x + 1] if i is not None], default=width_px) for x in range(count)
    ]
    heights = [max([i.height for i in row if i is not None], default=height_px) for row in cells]
    # Narrow images get wider slots where their label needs it, up to a limit; then the label is wrapped.
    slots = [
        max(width, min(_natural_width(font, label), _LABEL_EMS * letters))
        for width, label in zip(widths, [*columns, *[""] * (count - len(columns))], strict=True)
    ]
    heads = [wrap_text(label, slot, font) for label, slot in zip(columns, slots, strict=False)]
    sides = [wrap_text(label, max(_LABEL_EMS * letters, width_px), font) for label in rows]
    side_px = max((round(font.getlength(line) + 0.5) for lines in sides for line in lines), default=0)
    left = gap + (side_px + gap if side_px else 0)
    page_px = left + sum(slots) + gap * count
    # A sheet of one narrow column still shows its title in readable lines.
    page_px = max(page_px, min(24 * letters, max(_natural_width(font, text) for text in (title, footer)) + 2 * gap))

    texts, top = [], gap
    above = wrap_text(title, page_px - 2 * gap, font)
    if above:
        bottom = top + line_px * len(above)
        texts.append(_Text(above, (gap, top, page_px - gap, bottom), centred=False))
        top = bottom + gap
    head_px = line_px * max((len(lines) for lines in heads), default=0)
    x = left
    edges = []
    for index, slot in enumerate(slots):
        edges.append(x)
        if index < len(heads) and heads[index]:
            used = line_px * len(heads[index])
            texts.append(_Text(heads[index], (x, top + head_px - used, x + slot, top + head_px), centred=True))
        x += slot + gap
    top += head_px + gap if head_px else 0

    boxes = []
    for y, height in enumerate(heights):
        side = sides[y] if y < len(sides) else ()
        needed = max(height, line_px * len(side))
        middle = top + needed // 2
        if side:
            first = middle - line_px * len(side) // 2
            texts.append(_Text(side, (gap, first, gap + side_px, first + line_px * len(side)), centred=False))
        upper = top + (needed - height) // 2
        boxes.append(
            tuple(
                (edge + (slot - width) // 2, upper, edge + (slot - width) // 2 + width, upper + height)
                for edge, slot, width in zip(edges, slots, widths, strict=True)
            )
        )
        top += needed + gap
    below = wrap_text(footer, page_px - 2 * gap, font)
    if below:
        bottom = top + line_px * len(below)
        texts.append(_Text(below, (gap, top, page_px - gap, bottom), centred=False))
        top = bottom + gap
    return SheetLayout((page_px, top), tuple(boxes), tuple(text.box for text in texts), letters, tuple(texts))


def wrap_text(text: str, width_px: float, font: Font) -> tuple[str, ...]:
    """The lines of a text that are at most ``width_px`` wide: broken at spaces, inside a word only if it is wider.

    Line ends of the text are kept; other white space counts as one space. A single letter is never broken.
    """
    lines: list[str] = []
    for paragraph in text.strip().splitlines():
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}" if line else word
            if font.getlength(longer) <= width_px:
                line = longer
                continue
            if line:
                lines.append(line)
            line = word
            while font.getlength(line) > width_px and len(line) > 1:
                fits = next((n for n in range(len(line) - 1, 1, -1) if font.getlength(line[:n]) <= width_px), 1)
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    return tuple(lines)


def _natural_width(font: Font, text: str) -> int:
    return max((round(font.getlength(" ".join(line.split())) + 0.5) for line in text.strip().splitlines()), default=0)


def _font(text_px: int) -> Font:
    return ImageFont.load_default(text_px)


def _line_px(text_px: int) -> int:
    return round(text_px * 1.3)


def _paste(page: Image.Image, image: Image.Image, box: Box) -> None:
    corner = (box[0] + (box[2] - box[0] - image.width) // 2, box[1] + (box[3] - box[1] - image.height) // 2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        page.paste(Image.new("RGB", image.size, PAPER), corner)
        page.paste(layer, corner, layer)
    else:
        page.paste(image.convert("RGB"), corner)
