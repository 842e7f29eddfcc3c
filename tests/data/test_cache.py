"""The latent cache: exact, keyed by everything that matters, never wrong after damage or interruption."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from loraloom.control import Interrupted, Request
from loraloom.data.cache import Encoders, LatentCache, latent_key, load_pixels
from loraloom.data.dataset import load_dataset
from loraloom.data.sample import Sample
from loraloom.data.settings import DatasetSettings
from loraloom.errors import DatasetError, OutputError
from loraloom.events import Event, LatentsCached, Notice


class Encoder:
    """Averages 8 x 8 pixels; counts pictures; can break down after some."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.pictures = 0
        self.fail_after = fail_after

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.pictures += len(pixels)
        if self.fail_after is not None and self.pictures > self.fail_after:
            raise KeyboardInterrupt
        mean = avg_pool2d(pixels, 8)
        return mean, mean.abs() / 10 + 0.1


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    folder = tmp_path / "data" / "1_x"
    folder.mkdir(parents=True)
    for index in range(7):
        size = (64, 64) if index % 2 else (96, 64)
        Image.effect_noise(size, 60 + index).convert("RGB").save(folder / f"{index}.png")
    return load_dataset(DatasetSettings(folder=tmp_path / "data", resolution=64)).samples


def expected(sample: Sample, flipped: bool) -> tuple[Tensor, Tensor]:
    mean, std = Encoder()(load_pixels(sample, flipped=flipped)[None])
    return mean[0], std[0]


def cache(encoder: Encoder, folder: Path | None, vae_key: str = "vae") -> LatentCache:
    return LatentCache(encoder, vae_key=vae_key, folder=folder)


@pytest.mark.parametrize("on_disk", [False, True])
def test_latents_are_what_was_encoded(samples: tuple[Sample, ...], tmp_path: Path, on_disk: bool) -> None:
    encoder, events = Encoder(), list[Event]()
    latents = cache(encoder, tmp_path / "latents" if on_disk else None)
    latents.prepare(samples, flips=True, batch_size=3, listener=events.append)
    assert encoder.pictures == 14
    for sample in samples:
        for flipped in (False, True):
            mean, std = latents.get(sample, flipped)
            assert torch.equal(mean, expected(sample, flipped)[0])
            assert torch.equal(std, expected(sample, flipped)[1])
    assert encoder.pictures == 14
    assert events[-1] == LatentsCached(14, 14)
    assert [event.done for event in events if isinstance(event, LatentsCached)] == sorted({e.done for e in events})  # type: ignore[attr-defined]


def test_the_next_run_encodes_nothing(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    cache(Encoder(), tmp_path / "latents").prepare(samples)
    again = Encoder()
    latents = cache(again, tmp_path / "latents")
    latents.prepare(samples)
    assert torch.equal(latents.get(samples[0])[0], expected(samples[0], False)[0])
    assert again.pictures == 0
    cache(again, tmp_path / "latents", vae_key="another").prepare(samples)
    assert again.pictures == 7


def test_an_interrupted_cache_goes_on(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cache(Encoder(fail_after=4), tmp_path / "latents").prepare(samples, batch_size=2)
    assert list((tmp_path / "latents").rglob("*.safetensors"))
    rest = Encoder()
    latents = cache(rest, tmp_path / "latents")
    latents.prepare(samples, batch_size=2)
    assert 0 < rest.pictures < 7
    cache(Encoder(), tmp_path / "whole").prepare(samples, batch_size=2)
    interrupted, whole = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}
        for name in ("latents", "whole")
    )
    assert interrupted == whole


def test_a_wish_to_end_is_heard_between_two_batches(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    encoder = Encoder()
    with pytest.raises(Interrupted):
        cache(encoder, tmp_path / "latents").prepare(
            samples, batch_size=2, control=lambda: Request.STOP if encoder.pictures >= 3 else Request.GO
        )
    # The three of 64 x 64 come first, as a batch of two and one of one.
    assert encoder.pictures == 3
    assert len(list((tmp_path / "latents").rglob("*.safetensors"))) == 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_that_share_the_encoding_ask_equally_often(samples: tuple[Sample, ...], count: int) -> None:
    """Seven pictures do not go round; an answer that only some of them hear would leave the others waiting."""
    asked = []
    for number in range(count):
        answers: list[Request] = []

        def control(answers: list[Request] = answers) -> Request:
            answers.append(Request.GO)
            return Request.GO

        cache(Encoder(), None).prepare(samples, among=Encoders(number, count), control=control)
        asked.append(len(answers))
    assert len(set(asked)) == 1 and asked[0] * count >= 7


def test_processes_hand_one_another_what_they_encoded(
    samples: tuple[Sample, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of them, in rounds of one batch each, so that the seven pictures take three rounds and do not go round."""
    monkeypatch.setattr("loraloom.data.cache._TOGETHER", 1)
    count = 3
    barrier, said = Barrier(count, timeout=60), list[Any]([None] * count)

    def work(number: int) -> tuple[Encoder, LatentCache, list[Event]]:
        def exchange(own: object) -> list[Any]:
            said[number] = own
            barrier.wait()
            everybody = list(said)
            barrier.wait()
            return everybody

        encoder, events = Encoder(), list[Event]()
        latents = cache(encoder, None)
        latents.prepare(samples, listener=events.append, among=Encoders(number, count, exchange))
        return encoder, latents, events

    with ThreadPoolExecutor(count) as pool:
        done = list(pool.map(work, range(count)))
    assert [encoder.pictures for encoder, _, _ in done] == [3, 2, 2]
    for encoder, latents, events in done:
        before = encoder.pictures
        assert [event.done for event in events if isinstance(event, LatentsCached)] == list(range(1, 8))
        for sample in samples:
            assert torch.equal(latents.get(sample)[0], expected(sample, flipped=False)[0])
        assert encoder.pictures == before, "nothing is encoded twice"


@pytest.mark.parametrize("damage", ["truncate", "flip a bit", "empty", "swap", "another file"])
def test_damaged_files_are_encoded_again(samples: tuple[Sample, ...], tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "latents"
    cache(Encoder(), folder).prepare(samples)
    first, second, *_ = sorted(folder.rglob("*.safetensors"))
    data = bytearray(first.read_bytes())
    if damage == "truncate":
        first.write_bytes(data[:-10])
    elif damage == "flip a bit":
        data[-5] ^= 1
        first.write_bytes(data)
    elif damage == "empty":
        first.write_bytes(b"")
    elif damage == "swap":
        first.write_bytes(second.read_bytes())
    else:
        first.write_bytes(b"something else entirely")
    again = Encoder()
    latents = cache(again, folder)
    for sample in samples:
        assert torch.equal(latents.get(sample)[0], expected(sample, False)[0])
    assert again.pictures == 1


def test_damaged_files_are_told_once_with_their_number(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    cache(Encoder(), folder).prepare(samples)
    for path in sorted(folder.rglob("*.safetensors"))[:2]:
        path.write_bytes(path.read_bytes()[:-10])
    sorted(folder.rglob("*.safetensors"))[-1].unlink()  # absent is not damaged
    told: list[list[str]] = []
    for _ in range(2):
        events: list[Event] = []
        cache(Encoder(), folder).prepare(samples, batch_size=4, listener=events.append)
        told.append([event.text for event in events if isinstance(event, Notice)])
    assert told == [[f"2 of the encoded pictures in {folder} were damaged: they are encoded again"], []]


def test_the_key_holds_everything(samples: tuple[Sample, ...]) -> None:
    sample = samples[0]
    variants = [
        latent_key(sample, flipped=False, vae_key="a"),
        latent_key(sample, flipped=True, vae_key="a"),
        latent_key(sample, flipped=False, vae_key="b"),
        latent_key(sample, flipped=False, vae_key="a", precision=torch.float16),
        latent_key(replace(sample, digest="0" * 64), flipped=False, vae_key="a"),
        latent_key(replace(sample, bucket=(64, 64)), flipped=False, vae_key="a"),
        latent_key(replace(sample, background=(0, 0, 0)), flipped=False, vae_key="a"),
        latent_key(samples[1], flipped=False, vae_key="a"),
    ]
    assert len(set(variants)) == len(variants)
    moved = replace(sample, path=Path("/elsewhere"), name="n", identity="i", caption="c")
    assert latent_key(moved, flipped=False, vae_key="a") == variants[0]


def test_what_is_not_finite_is_never_kept(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    def broken(pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = Encoder()(pixels)
        mean[-1, 0, 0, 0] = float("nan")
        return mean, std

    latents = LatentCache(broken, vae_key="vae", folder=tmp_path / "latents")
    with pytest.raises(DatasetError, match=r"\.png into values that are not finite"):
        latents.prepare(samples)
    assert not list((tmp_path / "latents").rglob("*.safetensors"))


def test_half_precision_halves_the_memory(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    latents = LatentCache(Encoder(), vae_key="v", folder=tmp_path / "latents", precision=torch.float16)
    latents.prepare(samples)
    mean, _ = latents.get(samples[0])
    assert mean.dtype == torch.float32
    assert torch.equal(mean, expected(samples[0], False)[0].half().float())


def test_a_folder_that_cannot_be_written(samples: tuple[Sample, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        cache(Encoder(), tmp_path / "file" / "latents").prepare(samples)


def test_a_picture_that_vanished_is_named(samples: tuple[Sample, ...]) -> None:
    samples[2].path.unlink()
    with pytest.raises(DatasetError, match=r"2\.png: does not exist"):
        cache(Encoder(), None).prepare(samples)
