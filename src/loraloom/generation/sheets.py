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
    """One box for each cell, row by row; an image smaller than its cell is put in the middle."""
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
    """Where :func:`draw_sheet` puts everything, for those who want to find an image on a sheet again.

    ValueError when there are more labels than rows or columns.
    """
    count = _count_columns(cells, rows, columns)
    width_px, height_px = _usual_size(cells)
    letters = _Letters(text_px or min(40, max(12, width_px // 14)))
    gap = letters.gap

    sides = [wrap_text(label, max(_LABEL_EMS * letters.px, width_px), letters.font) for label in rows]
    side_px = max((letters.width(line) for lines in sides for line in lines), default=0)
    left = gap + (side_px + gap if side_px else 0)
    table = _columns(cells, [*columns, *[""] * (count - len(columns))], left, width_px, letters)

    page_px = left + sum(column.slot + gap for column in table)
    # A sheet of one narrow column still shows its title in readable lines.
    page_px = max(page_px, min(24 * letters.px, max(letters.natural_width(text) for text in (title, footer)) + 2 * gap))

    stack = _Stack(letters, page_px)
    stack.add_text(title)
    stack.add_heads(table)
    boxes = []
    for y, row in enumerate(cells):
        height = max([image.height for image in row if image is not None], default=height_px)
        boxes.append(stack.add_row(table, height, sides[y] if y < len(sides) else (), side_px))
    stack.add_text(footer)

    texts = tuple(stack.texts)
    return SheetLayout((page_px, stack.top), tuple(boxes), tuple(text.box for text in texts), letters.px, texts)


class _Letters:
    """The letters of a sheet, and the distances that follow from their height."""

    def __init__(self, px: int) -> None:
        self.px = px
        self.font = _font(px)
        self.line_px = _line_px(px)
        self.gap = max(4, px // 2)

    def width(self, line: str) -> int:
        """Of a line, in pixels."""
        return round(self.font.getlength(line) + 0.5)

    def natural_width(self, text: str) -> int:
        """Of the widest line of a text that is not wrapped."""
        return max((self.width(" ".join(line.split())) for line in text.strip().splitlines()), default=0)


@dataclass(frozen=True)
class _Column:
    """A column of images: its place on the page, and what stands above it."""

    left: int
    slot: int
    """The width that it has, of which its images may take less."""
    image_px: int
    """Width of its widest image."""
    head: tuple[str, ...]

    def cell(self, top: int, height: int) -> Box:
        """The box of an image, in the middle of the slot."""
        left = self.left + (self.slot - self.image_px) // 2
        return left, top, left + self.image_px, top + height


class _Stack:
    """A page that is filled from top to bottom: whatever is added stands below what was added before."""

    def __init__(self, letters: _Letters, page_px: int) -> None:
        self._letters = letters
        self._page_px = page_px
        self.top = letters.gap
        self.texts: list[_Text] = []

    def add_text(self, text: str) -> None:
        """A text over the whole width of the page."""
        gap = self._letters.gap
        lines = wrap_text(text, self._page_px - 2 * gap, self._letters.font)
        if lines:
            self._write(lines, gap, self._page_px - gap, self.top, centred=False)
            self.top += self._height(lines) + gap

    def add_heads(self, table: Sequence[_Column]) -> None:
        """The labels of the columns, all of which end on one line."""
        height = max(self._height(column.head) for column in table)
        for column in table:
            if column.head:
                top = self.top + height - self._height(column.head)
                self._write(column.head, column.left, column.left + column.slot, top, centred=True)
        self.top += height + self._letters.gap if height else 0

    def add_row(self, table: Sequence[_Column], height: int, side: tuple[str, ...], side_px: int) -> tuple[Box, ...]:
        """A row of images with its label beside it, both in the middle of the taller one; the boxes of the images."""
        gap = self._letters.gap
        needed = max(height, self._height(side))
        if side:
            top = self.top + needed // 2 - self._height(side) // 2
            self._write(side, gap, gap + side_px, top, centred=False)
        upper = self.top + (needed - height) // 2
        self.top += needed + gap
        return tuple(column.cell(upper, height) for column in table)

    def _height(self, lines: Sequence[str]) -> int:
        return self._letters.line_px * len(lines)

    def _write(self, lines: tuple[str, ...], left: int, right: int, top: int, *, centred: bool) -> None:
        self.texts.append(_Text(lines, (left, top, right, top + self._height(lines)), centred))


def _count_columns(cells: Cells, rows: Sequence[str], columns: Sequence[str]) -> int:
    """How many columns there are; ValueError when there are more labels than rows, or fewer than columns."""
    count = max([len(columns), 1, *(len(row) for row in cells)])
    if len(rows) > len(cells):
        raise ValueError(f"{len(rows)} row labels for {len(cells)} rows")
    if columns and any(len(row) > len(columns) for row in cells):
        raise ValueError(f"{len(columns)} column labels for {count} columns")
    return count


def _usual_size(cells: Cells) -> tuple[int, int]:
    """(width, height) in pixels of most images: what a missing one takes."""
    images = [image for row in cells for image in row if image is not None]
    if not images:
        return _EMPTY_PX, _EMPTY_PX
    return round(median(image.width for image in images)), round(median(image.height for image in images))


def _columns(cells: Cells, labels: Sequence[str], left: int, usual_px: int, letters: _Letters) -> list[_Column]:
    """The columns from left to right."""
    table = []
    for x, label in enumerate(labels):
        images = [image for row in cells for image in row[x : x + 1] if image is not None]
        image_px = max([image.width for image in images], default=usual_px)
        # Narrow images get wider slots where their label needs it, up to a limit; then the label is wrapped.
        slot = max(image_px, min(letters.natural_width(label), _LABEL_EMS * letters.px))
        table.append(_Column(left, slot, image_px, wrap_text(label, slot, letters.font)))
        left += slot + letters.gap
    return table


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
