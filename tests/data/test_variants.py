"""Versions of pictures: the first is the picture as it is, the others are other crops and colours of it, for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from loraloom.data.batches import plan_epoch
from loraloom.data.cache import LatentCache, latent_key, load_pixels
from loraloom.data.dataset import load_dataset
from loraloom.data.sample import Dataset
from loraloom.data.settings import DatasetSettings
from loraloom.data.variants import Colours, Variation, colours_of, fit_of, with_colours


def load(folder: Path, **settings: object) -> Dataset:
    return load_dataset(DatasetSettings.parse({"folder": folder, "resolution": 64, **settings}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data" / "2_x").mkdir(parents=True)
    for index, size in enumerate([(64, 64), (96, 64), (200, 100)]):
        Image.effect_noise(size, 60 + index).convert("RGB").save(tmp_path / "data" / "2_x" / f"{index}.png")
    return tmp_path / "data"


def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
    mean = avg_pool2d(pixels, 8)
    return mean, mean.abs()


def test_crops_cover_their_bucket_and_use_all_the_room() -> None:
    variation = Variation(64, crop=True, zoom=1.5)
    fits = [fit_of((300, 200), (64, 64), "digest", variation, variant) for variant in range(64)]
    assert fits[0].resized == (96, 64)
    assert fits[0].crop == (0, 16)
    for placed in fits:
        (width, height), (top, left) = placed.resized, placed.crop
        assert width >= 96
        assert height >= 64
        assert width <= 145
        assert 0 <= top <= height - 64
        assert 0 <= left <= width - 64
    assert min(f.crop[1] for f in fits) < 8
    assert max(f.crop[1] for f in fits) > 40
    assert fits == [fit_of((300, 200), (64, 64), "digest", variation, variant) for variant in range(64)]
    assert fits[1:] != [fit_of((300, 200), (64, 64), "other", variation, variant) for variant in range(1, 64)]


def test_colours_change_a_little_and_only_when_asked() -> None:
    variation = Variation(64, colours=True)
    found = [colours_of("digest", variation, variant) for variant in range(64)]
    assert found[0] is None
    hues = [colours.hue for colours in found if colours is not None]
    assert len(set(hues)) == 63
    assert -12 <= min(hues) < -6 < 6 < max(hues) <= 12
    assert colours_of("digest", Variation(64, crop=True), 5) is None


def test_recolouring_turns_hue_and_bends_brightness() -> None:
    image = Image.new("RGB", (2, 2), (200, 50, 50))
    turned = with_colours(image, Colours(hue=120.0, gamma=1.0)).getpixel((0, 0))
    assert np.abs(np.subtract(turned, (50, 200, 50))).max() <= 4
    darker = with_colours(image, Colours(hue=0.0, gamma=2.0)).getpixel((0, 0))
    assert darker[0] == pytest.approx(255 * (200 / 255) ** 2, abs=2)
    assert darker[0] / darker[1] == pytest.approx(4, rel=0.1)


def test_version_zero_is_the_picture_as_it_is(folder: Path) -> None:
    plain, varied = load(folder).samples, load(folder, random_crop=True, color_augmentation=True).samples
    for before, after in zip(plain, varied, strict=True):
        assert after.variation.count == 8
        assert torch.equal(load_pixels(before, flipped=False), load_pixels(after, flipped=False, variant=0))
        assert latent_key(before, flipped=False, vae_key="v") == latent_key(after, flipped=False, vae_key="v")
        keys = {latent_key(after, flipped=False, vae_key="v", variant=variant) for variant in range(8)}
        assert len(keys) == 8


def test_versions_are_encoded_once_each_and_alike_ones_once(folder: Path, tmp_path: Path) -> None:
    count = 0

    def counting(pixels: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += len(pixels)
        return encode(pixels)

    samples = load(folder, random_crop=True, random_crop_zoom=1.3, variants=4).samples
    LatentCache(counting, vae_key="v", folder=tmp_path / "latents").prepare(samples, flips=True)
    assert count == 3 * 4 * 2
    cache = LatentCache(counting, vae_key="v", folder=tmp_path / "latents")
    cache.prepare(samples, flips=True)
    for sample in samples:
        for variant in range(4):
            pixels = load_pixels(sample, flipped=True, variant=variant)
            assert torch.equal(cache.get(sample, True, variant)[0], encode(pixels[None])[0][0])
    assert count == 3 * 4 * 2
    count = 0
    exact = load(folder, random_crop=True, max_crop=0).samples[:1]  # 64 x 64 in its bucket: nothing to cut
    LatentCache(counting, vae_key="v", folder=None).prepare(exact)
    assert count == 1


def test_each_draw_takes_one_version_by_chance(folder: Path) -> None:
    dataset = load(folder, color_augmentation=True, variants=4)
    draws = [d for e in range(60) for b in plan_epoch(dataset, batch_size=2, seed=3, epoch=e, flip=False) for d in b]
    counts = [sum(draw.variant == variant for draw in draws) for variant in range(4)]
    assert sum(counts) == 360
    assert all(60 < count < 120 for count in counts)
    plain = plan_epoch(load(folder), batch_size=2, seed=3, epoch=0, flip=True)
    varied = plan_epoch(dataset, batch_size=2, seed=3, epoch=0, flip=True)
    assert [[(d.sample.identity, d.occurrence, d.flipped) for d in batch] for batch in plain] == [
        [(d.sample.identity, d.occurrence, d.flipped) for d in batch] for batch in varied
    ]


def test_settings_without_effect_are_said(folder: Path) -> None:
    def said(**settings: object) -> int:
        return sum(problem.kind == "settings" for problem in load(folder, **settings).problems)

    assert said() == 0
    assert said(random_crop=True) == 1
    assert said(random_crop=True, random_crop_zoom=1.2) == 0
    assert said(random_crop=True, buckets=False) == 0
    assert said(random_crop_zoom=1.2) == 1
    assert said(variants=3) == 1
    assert said(variants=1, color_augmentation=True) == 1
