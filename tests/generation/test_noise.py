"""The noise of images: streams, variations, other sizes, Brownian paths; all functions of the image's own seed."""

from __future__ import annotations

import math

import pytest
import torch

from loraloom.diffusion.sampling.brownian import BrownianPath
from loraloom.generation.noise import BatchNoise, ImageSeed, initial_noise, slerp

CPU = torch.device("cpu")


def test_first_and_fresh_noise_are_one_stream_of_the_seed() -> None:
    generator = torch.Generator().manual_seed(3)
    stream = [torch.randn(4, 6, 8, generator=generator) for _ in range(3)]
    noise = BatchNoise([ImageSeed(9), ImageSeed(3)], (64, 48), CPU)
    assert torch.equal(noise.first()[1], stream[0])
    assert torch.equal(noise.fresh()[1], stream[1])
    assert torch.equal(noise.fresh()[1], stream[2])
    assert torch.equal(initial_noise(3, 64, 48), stream[0])


def test_a_seed_delta_starts_the_fresh_stream_of_another_seed() -> None:
    noise = BatchNoise([ImageSeed(3, seed_delta=31337)], (64, 48), CPU)
    assert torch.equal(noise.first()[0], initial_noise(3, 64, 48))
    assert torch.equal(noise.fresh()[0], initial_noise(3 + 31337, 64, 48))


def test_variations_go_from_one_seed_to_the_other() -> None:
    ends = [initial_noise(seed, 64, 64) for seed in (1, 2)]
    found = [ImageSeed(1, 2, strength).first(64, 64) for strength in (0.0, 0.3, 1.0)]
    assert torch.equal(found[0], ends[0])
    torch.testing.assert_close(found[2], ends[1], atol=1e-5, rtol=0)
    for channel in range(4):
        for column in range(8):  # on the circle through both: c(share) = (sin((1-s)a) u + sin(s a) v) / sin(a)
            first, second = (end[channel, :, column].double() for end in ends)
            angle = math.acos(float(first @ second / first.norm() / second.norm()))
            expected = (math.sin(0.7 * angle) * first + math.sin(0.3 * angle) * second) / math.sin(angle)
            torch.testing.assert_close(found[1][channel, :, column].double(), expected, atol=1e-4, rtol=0)


def test_parallel_columns_are_interpolated_straight() -> None:
    one = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(slerp(one, one, 0.4), one)
    assert bool(torch.isfinite(slerp(one, -one, 0.4)).all())


@pytest.mark.parametrize("size", [(64, 48), (128, 96), (72, 200), (200, 40)])
def test_noise_of_another_size_lies_in_the_middle(size: tuple[int, int]) -> None:
    width, height = size
    small = initial_noise(5, 96, 80)  # 12 x 10 latents
    noise = ImageSeed(5, resize_from=(96, 80)).first(width, height)
    around = initial_noise(5, width, height)
    assert noise.shape == around.shape
    inside = torch.zeros(height // 8, width // 8, dtype=torch.bool)
    left, top = (width // 8 - 12) // 2, (height // 8 - 10) // 2
    for row in range(max(0, top), min(height // 8, 10 + top)):
        for column in range(max(0, left), min(width // 8, 12 + left)):
            inside[row, column] = torch.equal(noise[:, row, column], small[:, row - top, column - left])
    rows, columns = (own if own < other else other for own, other in ((height // 8, 10), (width // 8, 12)))
    assert int(inside.sum()) >= (rows - 1) * (columns - 1)  # an odd difference leaves a line over
    assert torch.equal(noise[:, ~inside], around[:, ~inside])


# --- Brownian paths


def test_a_path_does_not_depend_on_what_was_asked_before() -> None:
    asked, fresh = BrownianPath((3,), 7), BrownianPath((3,), 7)
    for start, end in ((14.6, 9.0), (9.0, 0.5), (0.5, 0.029)):
        asked.increment(start, end)
    assert torch.equal(asked.increment(5.0, 2.0), fresh.increment(5.0, 2.0))
    assert not torch.equal(BrownianPath((3,), 8).increment(5.0, 2.0), fresh.increment(5.0, 2.0))


@pytest.mark.parametrize(
    ("start", "middle", "end"), [(14.6, 12.0, 9.0), (4096.0, 300.0, 60.0), (0.06, 0.04, 0.029), (0.0003, 0.0002, 0.0)]
)
def test_steps_are_standard_normal_and_correlated_as_brownian_motion(start: float, middle: float, end: float) -> None:
    path = BrownianPath((20000,), 1)
    whole, first, second = path.increment(start, end), path.increment(start, middle), path.increment(middle, end)
    for step in (whole, first, second):
        assert step.mean().item() == pytest.approx(0, abs=0.03)
        assert step.std().item() == pytest.approx(1, abs=0.03)
    assert float((first * second).mean()) == pytest.approx(0, abs=0.03)
    expected = math.sqrt((start - middle) / (start - end))
    assert abs(float((whole * first).mean())) == pytest.approx(expected, abs=0.03)
    together = first * math.sqrt(start - middle) + second * math.sqrt(middle - end)
    torch.testing.assert_close(together / math.sqrt(start - end), whole, atol=1e-2, rtol=0)
