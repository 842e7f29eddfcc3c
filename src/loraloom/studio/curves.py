"""Learning curves of a run: the loss of every step and its running mean, learning rates below, as one PNG.

Everything is read from the run's events, so a curve can be drawn while a run goes on, after it failed, or years later.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from loraloom.events import Event, StepFinished, ValidationMeasured
from loraloom.formats.files import atomic_writer
from loraloom.studio.runs.log import RunLog, current_events

__all__ = [
    "CURVES_NAME",
    "Curves",
    "Plot",
    "ThinCurves",
    "draw_curves",
    "draw_rates",
    "mean_window",
    "plots",
    "read_curves",
    "running_mean",
    "sparkline",
    "thinned",
    "tick_values",
    "write_curves",
]

CURVES_NAME = "curves.png"
"""The file in a run folder."""
Series = Sequence[tuple[float, float]]
Rgb = tuple[int, int, int]

PAPER: Rgb = (255, 255, 255)
INK: Rgb = (39, 39, 42)
GRID: Rgb = (228, 228, 231)
STEP_LOSS: Rgb = (178, 200, 235)
MEAN_LOSS: Rgb = (29, 78, 216)
VALIDATION: tuple[Rgb, ...] = ((220, 38, 38), (147, 51, 234), (13, 148, 136))
RATES: tuple[Rgb, ...] = ((180, 83, 9), (21, 128, 61), (109, 40, 217))
_FINE = 2  # everything is drawn twice as large, then reduced: Pillow's lines have no soft edges
_TEXT_PX = 15
_NAMED_RATES = 5
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Curves:
    """What a run's events say, one value for each finished step."""

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Learning rates by part: unet, text_encoder, ..."""
    validation: tuple[tuple[int, float], ...] = ()
    """(step, loss) of each time the run was validated."""

    @property
    def means(self) -> list[tuple[int, float]]:
        """(step, mean of the losses of the :func:`mean_window` steps up to it), from the first full window on."""
        window = mean_window(len(self.losses))
        first = window - 1 if len(self.losses) > window else 0
        means = running_mean(self.losses, window)
        return list(zip(self.steps, means, strict=True))[first:]


@dataclass(frozen=True)
class Plot:
    """One pair of axes: a box in pixels (left, top, right, bottom) and the values at its edges."""

    box: tuple[int, int, int, int]
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a value is drawn, in pixels from the image's upper left corner."""
        left, top, right, bottom = self.box
        (x_low, x_high), (y_low, y_high) = self.x_range, self.y_range
        return (
            left + (x - x_low) / (x_high - x_low) * (right - left),
            bottom - (y - y_low) / (y_high - y_low) * (bottom - top),
        )


def read_curves(events: Iterable[Event]) -> Curves:
    """The curves of a run's events, of which those count that are not superseded."""
    found: list[StepFinished] = []
    checked: dict[int, float] = {}
    for event in current_events(events):
        # NaN and infinity have no place on an axis: a run that exploded has the curve of the steps before.
        if isinstance(event, StepFinished) and math.isfinite(event.loss):
            found.append(event)
        elif isinstance(event, ValidationMeasured) and math.isfinite(event.loss):
            checked[event.step] = event.loss

    parts = dict.fromkeys(part for event in found for part in event.learning_rates)
    return Curves(
        tuple(event.step for event in found),
        tuple(event.loss for event in found),
        {part: tuple(event.learning_rates.get(part, 0.0) for event in found) for part in parts},
        tuple(sorted(checked.items())),
    )


@dataclass(frozen=True)
class ThinCurves:
    """Curves for a screen: each value stands for a stretch of steps, of which ``steps`` has the last one."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    """The mean of the stretch, and the lowest and the highest in it: what was left out may be an outlier."""
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    means: tuple[float, ...]
    """The mean of the :func:`mean_window` steps up to there."""
    rates: Mapping[str, tuple[float, ...]]
    validation: tuple[tuple[int, float], ...]
    total: int
    """How many steps of the run the whole of it stands for."""


def thinned(curves: Curves, most: int, *, first: int = 0, last: int | None = None) -> ThinCurves:
    """At most ``most`` values for each curve, of the steps ``first`` to ``last`` (None: to the end)."""
    window = mean_window(len(curves.losses))
    means = running_mean(curves.losses, window)

    # Stretches of nearly the same number of steps, so that a step weighs the same wherever it is.
    begin = bisect_left(curves.steps, first)
    end = len(curves.steps) if last is None else bisect_right(curves.steps, last)
    count = max(0, end - begin)
    pieces = min(most, count)
    edges = [begin + count * number // pieces for number in range(pieces + 1)] if pieces else [begin]
    stretches = [curves.losses[a:b] for a, b in pairwise(edges)]
    ends = [b - 1 for b in edges[1:]]
    checked = [(step, loss) for step, loss in curves.validation if step >= first and (last is None or step <= last)]
    return ThinCurves(
        tuple(curves.steps[at] for at in ends),
        tuple(sum(stretch) / len(stretch) for stretch in stretches),
        tuple(map(min, stretches)),
        tuple(map(max, stretches)),
        tuple(means[at] for at in ends),
        {part: tuple(rates[at] for at in ends) for part, rates in curves.rates.items()},
        tuple(checked[:: max(1, -(-len(checked) // most))]),
        count,
    )


def mean_window(count: int) -> int:
    """Over how many steps a curve of ``count`` steps is averaged: a twelfth, at least ten."""
    return max(10, count // 12)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """For each value the mean of it and of those before it, ``window`` in all (fewer at the start)."""
    sums = [0.0, *accumulate(values)]
    return [
        (sums[end] - sums[max(0, end - window)]) / (end - max(0, end - window)) for end in range(1, len(values) + 1)
    ]


def tick_values(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers between ``low`` and ``high``, multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / max(1, about)
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def plots(
    curves: Curves, size: tuple[int, int] = (960, 600), validation: Mapping[str, Series] | None = None
) -> tuple[Plot, Plot]:
    """The axes of the losses and those of the learning rates.

    The losses start at 0 and end a little above the highest mean and 97 of 100 single losses: one outlier must not
    flatten the curve (it is drawn up to the edge).
    """
    width, height = size
    left, right = 76, width - 20
    checked = [point for series in _validation(curves, validation).values() for point in series]
    last = max([1.0, *curves.steps[-1:], *(x for x, _ in checked)])
    ordered = sorted(curves.losses)
    usual = ordered[min(len(ordered) - 1, int(0.97 * len(ordered)))] if ordered else 0.0

    # A run without steps yet, or whose rates are all 0, has no height of its own: the axis ends at 1.
    highest = 1.08 * max([usual, *(mean for _, mean in curves.means), *(y for _, y in checked)])
    fastest = 1.08 * max((rate for rates in curves.rates.values() for rate in rates), default=0.0)
    middle = round(0.68 * height)
    return (
        Plot((left, 40, right, middle - 24), (0.0, last), (0.0, highest or 1.0)),
        Plot((left, middle + 26, right, height - 46), (0.0, last), (0.0, fastest or 1.0)),
    )


def draw_curves(
    curves: Curves,
    *,
    validation: Mapping[str, Series] | None = None,
    title: str = "",
    size: tuple[int, int] = (960, 600),
) -> Image.Image:
    """The curves as an RGB image of ``size`` pixels.

    The run's own validation losses are drawn in, the lowest of them ringed, and so are more of them from
    ``validation``: name to (step, loss) pairs.
    """
    loss_plot, rate_plot = plots(curves, size, validation)
    checked = _validation(curves, validation)
    canvas = _Canvas(size)
    window = mean_window(len(curves.losses))
    legend = [("loss of each step", STEP_LOSS), (f"mean of {window} steps", MEAN_LOSS)]
    legend += [(name, VALIDATION[index % len(VALIDATION)]) for index, name in enumerate(checked)]
    canvas.axes(loss_plot, "step", steps=False)
    canvas.heading(loss_plot, f"{title}: loss" if title else "loss", legend)
    canvas.line(loss_plot, list(zip(curves.steps, curves.losses, strict=True)), STEP_LOSS, 1)
    canvas.line(loss_plot, curves.means, MEAN_LOSS, 2)
    for index, series in enumerate(checked.values()):
        canvas.line(loss_plot, series, VALIDATION[index % len(VALIDATION)], 2)
        canvas.dots(loss_plot, series, VALIDATION[index % len(VALIDATION)])
        if len(series) > 1:
            canvas.best(loss_plot, min(series, key=lambda point: point[1]), VALIDATION[index % len(VALIDATION)])

    canvas.rates(rate_plot, curves, "learning rate")
    return canvas.finished()


def draw_rates(curves: Curves, *, title: str = "", size: tuple[int, int] = (960, 360)) -> Image.Image:
    """The learning rates alone as an RGB image of ``size`` pixels, as they are known before a run."""
    width, height = size
    fastest = 1.08 * max((rate for rates in curves.rates.values() for rate in rates), default=0.0)
    last = float(max([1, *curves.steps[-1:]]))
    canvas = _Canvas(size)
    plot = Plot((76, 40, width - 20, height - 46), (0.0, last), (0.0, fastest or 1.0))
    canvas.rates(plot, curves, f"{title}: learning rate" if title else "learning rate")
    return canvas.finished()


def _validation(curves: Curves, more: Mapping[str, Series] | None) -> dict[str, Series]:
    own: dict[str, Series] = {"validation": curves.validation} if curves.validation else {}
    return {name: [(x, y) for x, y in series if math.isfinite(y)] for name, series in {**own, **(more or {})}.items()}


def write_curves(folder: Path, *, validation: Mapping[str, Series] | None = None) -> Path | None:
    """Draw the curves of a run folder into its ``curves.png``; None when no step was taken yet. OutputError."""
    curves = read_curves(RunLog(folder).events())
    if not curves.steps:
        return None
    image = draw_curves(curves, validation=validation, title=folder.name)
    with atomic_writer(folder / CURVES_NAME) as file:
        image.save(file, "PNG", optimize=True)
    return folder / CURVES_NAME


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The values as one line of block letters, from the lowest to the highest; each letter is the mean of a stretch."""
    if not values:
        return ""
    width = min(width, len(values))
    edges = [index * len(values) // width for index in range(width + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high <= low:
        return _BARS[0] * width
    return "".join(_BARS[min(len(_BARS) - 1, int((mean - low) / (high - low) * len(_BARS)))] for mean in means)


class _Canvas:
    """A page that is drawn on twice as large as it is shown."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._page = Image.new("RGB", (size[0] * _FINE, size[1] * _FINE), PAPER)
        self._pen = ImageDraw.Draw(self._page)
        self._font = ImageFont.load_default(_TEXT_PX * _FINE)

    def finished(self) -> Image.Image:
        return self._page.resize(self._size, Image.Resampling.BOX)

    def axes(self, plot: Plot, name: str, *, steps: bool) -> None:
        """Grid lines with their numbers; the numbers of the steps only where ``steps``."""
        left, top, right, bottom = plot.box
        for value in tick_values(*plot.y_range, about=max(3, (bottom - top) // 60)):
            y = plot.point(0, value)[1]
            self._straight(left, y, right, y, GRID)
            self.text(left - 8, y, f"{value:g}", anchor="rm")
        for value in tick_values(*plot.x_range, about=max(2, (right - left) // 90), whole=True):
            x = plot.point(value, 0)[0]
            self._straight(x, top, x, bottom, GRID)
            if steps:
                self.text(x, bottom + 7, f"{value:g}" if value < 1e6 else f"{value / 1e6:g}M", anchor="ma")
        self._straight(left, bottom, right, bottom, INK)
        self._straight(left, top, left, bottom, INK)
        if steps:
            self.text(right, bottom + 23, name, anchor="ra")

    def heading(self, plot: Plot, title: str, legend: Sequence[tuple[str, Rgb]]) -> None:
        """A title above the axes, and the names of the lines in their colours from the right."""
        y, x = plot.box[1] - 12, float(plot.box[2])
        for name, colour in reversed(legend):
            self.text(x, y, name, anchor="rs")
            x -= self._font.getlength(name) / _FINE + 6
            self._straight(x - 18, y - 5, x, y - 5, colour, 3)
            x -= 36
        room = x - plot.box[0]
        while len(title) > 4 and self._font.getlength(title) / _FINE > room:
            title = f"{title[:-4]}..."
        self.text(plot.box[0], y, title, anchor="ls")

    def line(self, plot: Plot, points: Series, colour: Rgb, width: int) -> None:
        """A line through the points, cut at the edges of the axes; a single point is a dot."""
        if len(points) == 1:
            self.dots(plot, points, colour)
        layer = self._page.copy()
        ImageDraw.Draw(layer).line(
            [(x * _FINE, y * _FINE) for x, y in (plot.point(*point) for point in points)],
            fill=colour,
            width=width * _FINE,
            joint="curve",
        )
        box = tuple(edge * _FINE for edge in plot.box)
        inside = (box[0], box[1] - _FINE, box[2] + _FINE, box[3] + _FINE)
        self._page.paste(layer.crop(inside), inside)

    def rates(self, plot: Plot, curves: Curves, title: str) -> None:
        """The learning rates with their axes; parts that have the same are one line. The first lines have a name."""
        together: dict[tuple[float, ...], list[str]] = {}
        for part, rates in curves.rates.items():
            together.setdefault(rates, []).append(part)
        colours = [RATES[index % len(RATES)] for index in range(len(together))]
        names = [(", ".join(parts), colour) for parts, colour in zip(together.values(), colours, strict=True)]
        self.axes(plot, "step", steps=True)
        self.heading(plot, title, names[:_NAMED_RATES])
        for rates, colour in zip(together, colours, strict=True):
            self.line(plot, list(zip(curves.steps, rates, strict=True)), colour, 2)

    def dots(self, plot: Plot, points: Series, colour: Rgb) -> None:
        for point in points:
            x, y = plot.point(*point)
            self._pen.ellipse([(x - 3) * _FINE, (y - 3) * _FINE, (x + 3) * _FINE, (y + 3) * _FINE], fill=colour)

    def best(self, plot: Plot, point: tuple[float, float], colour: Rgb) -> None:
        """A ring around the lowest point, with its step and value."""
        x, y = plot.point(*point)
        edges = [(x - 7) * _FINE, (y - 7) * _FINE, (x + 7) * _FINE, (y + 7) * _FINE]
        self._pen.ellipse(edges, outline=colour, width=2 * _FINE)
        at_left = x < (plot.box[0] + plot.box[2]) / 2
        label = f"best: {point[1]:.4g} at step {point[0]:g}"
        self.text(x + (11 if at_left else -11), y - 9, label, anchor="ls" if at_left else "rs")

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        self._pen.text((x * _FINE, y * _FINE), text, fill=INK, font=self._font, anchor=anchor)

    def _straight(self, x: float, y: float, to_x: float, to_y: float, colour: Rgb, width: int = 1) -> None:
        self._pen.line([(x * _FINE, y * _FINE), (to_x * _FINE, to_y * _FINE)], fill=colour, width=width * _FINE)
