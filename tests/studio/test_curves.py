"""Learning curves: the numbers behind them, and that lines are where the numbers say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from loraloom.events import Event, Notice, RunStarted, StepFinished, ValidationMeasured
from loraloom.studio import curves
from loraloom.studio.curves import (
    MEAN_LOSS,
    PAPER,
    RATES,
    STEP_LOSS,
    VALIDATION,
    Curves,
    draw_curves,
    mean_window,
    plots,
    read_curves,
    running_mean,
    sparkline,
    tick_values,
    write_curves,
)
from loraloom.studio.runs.folder import RunFolder
from loraloom.studio.runs.log import EventLog, RunLog


def step(number: int, loss: float, unet: float = 1e-3, text_encoder: float = 5e-4) -> StepFinished:
    return StepFinished(number, 1, loss, loss, {"unet": unet, "text_encoder": text_encoder}, 0.1)


def near(image: Image.Image, at: tuple[float, float], colour: tuple[int, int, int], reach: int = 1) -> bool:
    """Whether a pixel at most ``reach`` from the place has about the colour."""
    x, y = round(at[0]), round(at[1])
    pixels = [image.getpixel((x + i, y + j)) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]
    return any(max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 60 for pixel in pixels)  # type: ignore[arg-type]


def test_running_mean() -> None:
    assert running_mean([4.0, 2.0, 6.0, 0.0], 2) == [4.0, 3.0, 4.0, 3.0]
    assert running_mean([1.0, 2.0, 3.0], 10) == [1.0, 1.5, 2.0]
    assert running_mean([], 3) == []
    assert (mean_window(5), mean_window(1200)) == (10, 100)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0.23, [0, 0.05, 0.1, 0.15, 0.2]),
        (0, 1e-4, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]),
        (0, 480, [0, 100, 200, 300, 400]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, expected: list[float]) -> None:
    assert tick_values(low, high) == pytest.approx(expected)


def test_ticks_of_steps_are_whole() -> None:
    assert tick_values(0, 2, whole=True) == [0, 1, 2]


def test_steps_taken_again_after_a_resume_count_once() -> None:
    events: list[Event] = [
        RunStarted("x", 4, 4, 1, 4, 100),
        *(step(n, n / 10) for n in (1, 2, 3)),
        Notice("resumed"),
        *(step(n, n / 100) for n in (3, 4)),
        step(5, float("nan")),
    ]
    found = read_curves(events)
    assert found.steps == (1, 2, 3, 4)
    assert found.losses == (0.1, 0.2, 0.03, 0.04)
    assert found.rates == {"unet": (1e-3,) * 4, "text_encoder": (5e-4,) * 4}


def test_lines_are_where_the_numbers_say() -> None:
    losses = [0.2 if number % 2 else 0.1 for number in range(1, 121)]
    found = read_curves(step(n, loss, unet=1e-3 * (1 - n / 120)) for n, loss in enumerate(losses, start=1))
    checked = {"validation": [(40, 0.05), (120, 0.03)]}
    image = draw_curves(found, validation=checked, title="cat", size=(960, 600))
    assert image.size == (960, 600)
    loss_plot, rate_plot = plots(found, (960, 600), checked)
    assert loss_plot.box[3] < rate_plot.box[1]
    for number in (11, 50, 101):  # the mean of ten alternating losses is 0.15 from the tenth step on
        assert near(image, loss_plot.point(number, 0.15), MEAN_LOSS)
        assert not near(image, loss_plot.point(number, 0.17), MEAN_LOSS)
        assert near(image, loss_plot.point(number, losses[number - 1]), STEP_LOSS, reach=2)
    assert near(image, loss_plot.point(40, 0.05), VALIDATION[0])
    assert near(image, loss_plot.point(80, 0.04), VALIDATION[0])
    for number in (10, 50, 110):
        assert near(image, rate_plot.point(number, 1e-3 * (1 - number / 120)), RATES[0])
        assert near(image, rate_plot.point(number, 5e-4), RATES[1])
        assert not near(image, rate_plot.point(number, 1.05e-3), RATES[0])


def test_the_run_s_own_validation_is_drawn_in() -> None:
    events: list[Event] = [step(n, 0.1) for n in range(1, 41)]
    events[20:20] = [ValidationMeasured(20, 1, 0.05, {}, True)]
    events += [ValidationMeasured(40, 2, 0.04, {}, True), step(31, 0.1), *(step(n, 0.1) for n in range(32, 41))]
    events += [ValidationMeasured(40, 2, 0.03, {}, True), ValidationMeasured(41, 2, float("nan"), {}, False)]
    found = read_curves(events)
    assert found.validation == ((20, 0.05), (40, 0.03))
    assert near(draw_curves(found), plots(found)[0].point(30, 0.04), VALIDATION[0])


def test_axes_map_values_to_pixels() -> None:
    plot = curves.Plot((100, 10, 300, 110), (0, 20), (0, 0.5))
    assert plot.point(0, 0) == (100, 110)
    assert plot.point(20, 0.5) == (300, 10)
    assert plot.point(5, 0.25) == (150, 60)


def test_one_wild_loss_neither_flattens_the_curve_nor_leaves_the_axes() -> None:
    found = read_curves(step(n, 50.0 if n == 60 else 0.1) for n in range(1, 121))
    loss_plot, _ = plots(found)
    calm = Curves(found.steps, (0.1,) * 120, found.rates)
    highest_mean = max(mean for _, mean in found.means)
    assert loss_plot.y_range[1] == pytest.approx(1.08 * highest_mean)
    assert plots(calm)[0].y_range == (0.0, pytest.approx(0.108))
    image = draw_curves(found)
    left, top, right, _ = loss_plot.box
    above = image.crop((left, 0, right, top - 2))
    blues = [colour for _, colour in above.getcolors(1 << 24) or () if colour == STEP_LOSS]
    whole = [colour for _, colour in image.getcolors(1 << 24) or () if colour == STEP_LOSS]
    assert whole
    below_legend = image.crop((left, 0, left + 300, top - 2))
    assert STEP_LOSS not in [colour for _, colour in below_legend.getcolors(1 << 24) or ()]
    assert len(blues) <= 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_short_runs_are_drawn(count: int) -> None:
    found = read_curves(step(n, 0.0) for n in range(1, count + 1))
    image = draw_curves(found, title="x" * 200)
    assert near(image, plots(found)[0].point(count, 0.0), MEAN_LOSS, reach=4)


def test_equal_rates_share_a_line() -> None:
    found = read_curves(step(n, 0.1, 1e-3, 1e-3) for n in range(1, 30))
    image = draw_curves(found)
    assert RATES[1] not in [colour for _, colour in image.getcolors(1 << 24) or ()]


def test_written_into_the_run_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert write_curves(tmp_path) is None
    with EventLog(folder.path) as log:
        for number in range(1, 20):
            log(step(number, 0.1))
    path = write_curves(tmp_path)
    assert path == tmp_path / "curves.png"
    with Image.open(path) as image:
        assert image.size == (960, 600)
        assert image.getpixel((0, 0)) == PAPER
        found = read_curves(RunLog(folder.path).events())
        assert near(image, plots(found)[0].point(10, 0.1), MEAN_LOSS)
    assert replace(found, losses=(0.2,) * 19).means == [(number, pytest.approx(0.2)) for number in range(10, 20)]


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline([0, 0, 1, 1], 2) == "▁█"
    assert len(sparkline([float(n) for n in range(1000)], 30)) == 30


def test_the_best_validation_is_ringed() -> None:
    events: list[Event] = [step(n, 0.1) for n in range(1, 61)]
    for number, loss in ((15, 0.05), (30, 0.03), (45, 0.06)):
        events.append(ValidationMeasured(number, 1, loss, {}, False))
    found = read_curves(events)
    image, plot = draw_curves(found), plots(found)[0]

    def ring(x: float, y: float) -> bool:
        middle = plot.point(x, y)
        corners = [(middle[0] + 5 * a, middle[1] + 5 * b) for a in (-1, 1) for b in (-1, 1)]
        return all(near(image, corner, VALIDATION[0], reach=1) for corner in corners)

    assert ring(30, 0.03) and not ring(15, 0.05) and not ring(45, 0.06)
