"""Bucket choice against closed forms: what a photograph loses, what area is used, who shares a bucket."""

from __future__ import annotations

from math import log
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from loraloom.data.buckets import Fit, assign_buckets, bucket_sizes, cropped_share, fit
from loraloom.data.settings import DatasetSettings


def settings(**values: object) -> DatasetSettings:
    return DatasetSettings.parse({"folder": Path(), **values})


@pytest.mark.parametrize("resolution", [64, 128, 256, 512, 768, 1024])
def test_every_bucket_is_allowed_and_full(resolution: int) -> None:
    sizes = bucket_sizes(settings(resolution=resolution))
    assert (resolution, resolution) in sizes
    assert sizes == sorted(sizes, key=lambda size: size[0] / size[1])
    for width, height in sizes:
        assert width % 8 == height % 8 == 0
        assert width * height <= resolution**2
        assert resolution / 2 <= min(width, height) <= max(width, height) <= resolution * 2
        assert (height, width) in sizes
        # One more step in either direction would be too large: nothing is wasted.
        assert (width + 8) * (height + 8) > resolution**2


def test_a_three_to_two_photograph_keeps_everything() -> None:
    """1500 x 1000 at 512: sd-scripts' 640 x 384 loses a tenth of it, 624 x 416 nothing."""
    (bucket,) = assign_buckets([(1500, 1000)], settings(resolution=512)).values()
    assert bucket == (624, 416)
    assert cropped_share((1500, 1000), bucket) == 0
    assert cropped_share((1500, 1000), (640, 384)) == pytest.approx(0.1)


def test_sizes_of_sd_scripts_are_there_with_its_step() -> None:
    """512 with steps of 64 between 256 and 1024 are the 17 buckets that sd-scripts makes."""
    sizes = bucket_sizes(settings(resolution=512, bucket_step=64, bucket_min=256, bucket_max=1024))
    assert len(sizes) == 17
    assert {(640, 384), (576, 448), (512, 512), (256, 1024)} <= set(sizes)


@pytest.mark.parametrize(
    ("size", "most"),
    [((1000, 667), 0.01), ((800, 600), 0.011), ((1920, 1080), 0.01), ((667, 1000), 0.01), ((5, 4), 0.01)],
)
def test_usual_shapes_lose_about_one_percent_at_most(size: tuple[int, int], most: float) -> None:
    for resolution in (512, 768, 1024):
        (bucket,) = assign_buckets([size], settings(resolution=resolution)).values()
        assert cropped_share(size, bucket) <= most


def test_landscape_and_portrait_are_mirror_images() -> None:
    sizes = [(1000 + 13 * step, 700) for step in range(40)]
    for size in sizes:
        (wide,) = assign_buckets([size], settings()).values()
        (tall,) = assign_buckets([size[::-1]], settings()).values()
        assert wide == tall[::-1]


def test_near_shapes_share_a_bucket() -> None:
    """Twenty shapes within four percent of one another: one bucket, none cropped more than that."""
    sizes = [(1000 + 2 * step, 1000) for step in range(20)]
    together = assign_buckets(sizes, settings(max_crop=0.04))
    assert len(set(together.values())) == 1
    assert max(cropped_share(size, bucket) for size, bucket in together.items()) <= 0.04
    assert len(set(assign_buckets(sizes, settings(max_crop=0)).values())) > 1


def test_the_usual_shape_wins_its_group() -> None:
    """Grouping never costs a picture that has an exact bucket when most of its group share that shape."""
    sizes = [(1500, 1000), (3000, 2000), (600, 400), (1520, 1000)]
    assert assign_buckets(sizes, settings())[1500, 1000] == (624, 416)


sides = st.integers(1, 4000)


@hypothesis_settings(max_examples=60)
@given(
    st.lists(st.tuples(sides, sides), min_size=1, max_size=30),
    st.sampled_from([64, 128, 512]),
    st.sampled_from([0.0, 0.03, 0.2]),
)
def test_no_picture_is_cropped_more_than_allowed_or_needed(
    sizes: list[tuple[int, int]], resolution: int, max_crop: float
) -> None:
    chosen = settings(resolution=resolution, max_crop=max_crop)
    result = assign_buckets(sizes, chosen)
    assert set(result) == set(sizes)
    assert result == assign_buckets(reversed(sizes), chosen)
    for size, bucket in result.items():
        best = min(cropped_share(size, other) for other in bucket_sizes(chosen))
        assert cropped_share(size, bucket) <= max(best, max_crop) + 1e-9


def test_grouping_is_the_fewest_possible() -> None:
    """Against an exhaustive search on a small case."""
    from itertools import combinations

    chosen = settings(resolution=128, max_crop=0.05)
    sizes = [(100, 100), (104, 100), (112, 100), (125, 100), (140, 100), (150, 100), (175, 100)]
    buckets = bucket_sizes(chosen)
    allowed = {s: {b for b in buckets if cropped_share(s, b) <= 0.05} for s in sizes}
    fewest = next(
        count
        for count in range(1, len(sizes) + 1)
        if any(all(set(choice) & good for good in allowed.values()) for choice in combinations(buckets, count))
    )
    assert len(set(assign_buckets(sizes, chosen).values())) == fewest


def test_without_upscaling_small_pictures_keep_their_size() -> None:
    chosen = settings(resolution=512, upscale=False)
    result = assign_buckets([(300, 200), (1000, 1000), (200, 3000)], chosen)
    assert result[300, 200] == (296, 200)
    assert result[1000, 1000] == (512, 512)
    width, height = result[200, 3000]
    assert width * height <= 512 * 512
    assert abs(log(width / height) - log(200 / 3000)) < 0.08
    assert assign_buckets([(300, 200)], settings(resolution=512))[300, 200] == (624, 416)


def test_without_buckets_the_centre_is_cropped() -> None:
    assert set(assign_buckets([(300, 200), (20, 900)], settings(resolution=128, buckets=False)).values()) == {
        (128, 128)
    }
    wide = settings(resolution=(200, 100), buckets=False)
    assert set(assign_buckets([(300, 200)], wide).values()) == {(200, 96)}


def test_a_resolution_of_two_sides_counts_by_its_area() -> None:
    (bucket,) = assign_buckets([(1500, 1000)], settings(resolution="384,682")).values()
    assert bucket == (624, 416)


def test_fit_covers_and_centres() -> None:
    assert fit((1500, 1000), (624, 416)) == Fit((624, 416), (0, 0))
    assert fit((300, 200), (96, 96)) == Fit((144, 96), (0, 24))
    assert fit((100, 300), (96, 96)) == Fit((96, 288), (96, 0))
    # Odd rests, 51 pixels: the smaller half comes off at the top and the left, in whole pixels.
    assert fit((307, 200), (96, 96)) == Fit((147, 96), (0, 25))
    assert fit((200, 307), (96, 96)) == Fit((96, 147), (25, 0))


@given(st.tuples(sides, sides), st.tuples(st.integers(1, 64), st.integers(1, 64)))
def test_fit_always_holds_the_bucket(size: tuple[int, int], eighths: tuple[int, int]) -> None:
    bucket = (eighths[0] * 8, eighths[1] * 8)
    placed = fit(size, bucket)
    top, left = placed.crop
    assert 0 <= left <= placed.resized[0] - bucket[0]
    assert 0 <= top <= placed.resized[1] - bucket[1]
    assert bucket[0] == placed.resized[0] or bucket[1] == placed.resized[1]


def no_upscale_of_sd_scripts(size: tuple[int, int], area: int, step: int) -> tuple[tuple[int, int], float]:
    """The bucket, and the share that is cropped, of the rule behind bucket_no_upscale in sd-scripts.

    A picture larger than the area is thought of as shrunk to it. Then either its width or its height is rounded down
    to whole steps, whichever leaves a shape (of two rounded sides) closer to the picture's, and the other side follows
    from the picture's shape. A smaller picture is not resized. Both sides rounded down are the bucket; the rest is cut.
    """
    ratio = size[0] / size[1]

    def whole(length: float) -> int:
        return int(length + 0.5) // step * step

    resized = size
    if size[0] * size[1] > area:
        width, height = whole((area * ratio) ** 0.5), whole((area / ratio) ** 0.5)
        by_width = abs(width / whole(width / ratio) - ratio)
        by_height = abs(whole(height * ratio) / height - ratio)
        if by_width < by_height:
            resized = (width, int(width / ratio + 0.5))
        else:
            resized = (int(height * ratio + 0.5), height)
    bucket = (resized[0] // step * step, resized[1] // step * step)
    return bucket, 1 - bucket[0] * bucket[1] / (resized[0] * resized[1])


NO_UPSCALE = [
    # size, bucket and cropped share of sd-scripts at 512 with steps of 64, as recorded with the function above
    ((1500, 1000), (576, 384), 0.0),
    ((1000, 1500), (384, 576), 0.0),
    ((4032, 3024), (512, 384), 0.0),
    ((1920, 1080), (640, 384), 0.0630),
    ((1080, 1920), (384, 640), 0.0630),
    ((1280, 853), (576, 384), 0.0),
    ((1024, 1024), (512, 512), 0.0),
    ((1406, 1489), (448, 448), 0.0549),
    ((949, 844), (512, 448), 0.0154),
    ((2215, 3173), (384, 576), 0.0448),
    ((3333, 1250), (640, 256), 0.0630),
    ((700, 1900), (256, 640), 0.0791),
    ((300, 200), (256, 192), 0.1808),
    ((450, 611), (384, 512), 0.0173),
    ((333, 512), (320, 512), 0.0390),
    ((600, 400), (576, 384), 0.0784),
]
ROUNDING = 0.001
"""sd-scripts resizes to whole pixels before it cuts, which hides up to half a pixel of each side."""


def test_without_upscaling_no_picture_loses_more_than_with_sd_scripts() -> None:
    chosen = settings(resolution=512, bucket_step=64, upscale=False)
    ours = assign_buckets([size for size, _, _ in NO_UPSCALE], chosen)
    for size, theirs, cropped in NO_UPSCALE:
        assert no_upscale_of_sd_scripts(size, 512 * 512, 64) == (theirs, pytest.approx(cropped, abs=1e-4))
        assert cropped_share(size, ours[size]) <= cropped + ROUNDING, (size, ours[size])
        assert ours[size][0] % 64 == ours[size][1] % 64 == 0
        assert ours[size][0] <= size[0] and ours[size][1] <= size[1], "nothing is enlarged"
    mean = sum(cropped_share(size, bucket) for size, bucket in ours.items()) / len(ours)
    assert mean < 0.03 < sum(cropped for _, _, cropped in NO_UPSCALE) / len(NO_UPSCALE)


@hypothesis_settings(max_examples=150, deadline=None)
@given(st.tuples(st.integers(200, 4000), st.integers(200, 4000)), st.sampled_from([(640, 64), (448, 32), (576, 96)]))
def test_any_picture_keeps_as_much_without_upscaling_as_in_sd_scripts(
    size: tuple[int, int], grid: tuple[int, int]
) -> None:
    if not 0.4 < size[0] / size[1] < 2.5:
        return
    resolution, step = grid
    limits = {"bucket_min": step * 4, "bucket_max": step * 16}
    chosen = settings(resolution=resolution, bucket_step=step, upscale=False, max_crop=0, **limits)
    (bucket,) = assign_buckets([size], chosen).values()
    _, cropped = no_upscale_of_sd_scripts(size, resolution**2, step)
    assert cropped_share(size, bucket) <= cropped + 2 * ROUNDING
    assert bucket[0] * bucket[1] <= resolution**2
    assert bucket[0] <= size[0] and bucket[1] <= size[1]


def test_without_upscaling_fine_steps_still_share_buckets() -> None:
    """Large pictures that a full bucket suits are not given buckets of their own."""
    sizes = [(3000 + 6 * number, 2000) for number in range(20)]
    assert assign_buckets(sizes, settings(upscale=False)) == assign_buckets(sizes, settings(upscale=True))


def test_a_picture_smaller_than_a_step_gets_one_step() -> None:
    """sd-scripts gives it a bucket of no width."""
    (bucket,) = assign_buckets([(60, 500)], settings(resolution=512, bucket_step=64, upscale=False)).values()
    assert bucket == (64, 448)


def test_bucket_max_holds_both_sides() -> None:
    """With a longest side that no power of two hides: 256 x 1024 would have the area, 640 is the most."""
    sizes = bucket_sizes(settings(resolution=512, bucket_min=256, bucket_max=640))
    assert max(max(size) for size in sizes) == 640
    assert {(256, 640), (640, 256), (640, 408)} <= set(sizes)


def test_max_crop_is_a_share_of_the_picture() -> None:
    """Two shapes that one bucket between them crops by 26 % each: allowed at 0.3, not at 0.25."""
    sizes = [(1000, 1000), (1822, 1000)]
    together = assign_buckets(sizes, settings(max_crop=0.3))
    assert len(set(together.values())) == 1
    assert 0.25 < max(cropped_share(size, bucket) for size, bucket in together.items()) <= 0.3
    assert len(set(assign_buckets(sizes, settings(max_crop=0.25)).values())) == 2
