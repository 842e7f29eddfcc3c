"""Latents encoded once: in memory, or on disk between runs, never used for anything but exactly what was encoded.

A key holds everything the latent depends on (the picture's bytes, bucket, crop, flip, background, VAE, precision), so
a changed picture, resolution or VAE finds nothing instead of something stale. Files are checked when read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from loraloom.data.dataset import Sample
from loraloom.data.images import load_pixels, quiet_decoders
from loraloom.errors import DatasetError, FileError, OutputError
from loraloom.events import LatentsCached, Listener, ignore
from loraloom.formats.tensors import open_tensors, write_tensors

__all__ = ["Encode", "LatentCache", "latent_key"]

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels (B, 3, H, W) in [-1, 1] to the latents' mean and standard deviation, (B, C, h, w) each."""

Latent = tuple[Tensor, Tensor]
_FORMAT = "1"  # part of every key; raised when pixels are prepared differently


def latent_key(sample: Sample, *, flipped: bool, vae_key: str, precision: torch.dtype = torch.float32) -> str:
    """Name of the latent of one picture: a sha256 over all that it depends on, in hexadecimal."""
    top, left = sample.crop
    parts = (
        _FORMAT,
        sample.digest,
        f"{sample.bucket[0]}x{sample.bucket[1]}",
        f"{top},{left}",
        "flipped" if flipped else "plain",
        "#{:02x}{:02x}{:02x}".format(*sample.background),
        vae_key,
        str(precision),
    )
    return sha256("\n".join(parts).encode()).hexdigest()


class LatentCache:
    """Means and standard deviations of latents, by content.

    ``encode`` is the VAE; ``vae_key`` names its weights and compute type; ``folder`` None keeps everything in memory.
    ``precision`` is the type latents are kept in.
    """

    def __init__(
        self, encode: Encode, *, vae_key: str, folder: Path | None, precision: torch.dtype = torch.float32
    ) -> None:
        self._encode = encode
        self._vae_key = vae_key
        self._folder = folder
        self._precision = precision
        self._memory: dict[str, Latent] = {}

    def prepare(
        self, samples: Sequence[Sample], flips: bool = False, batch_size: int = 1, listener: Listener = ignore
    ) -> None:
        """Encode whatever is missing; with ``flips`` the mirrored pictures too.

        Batches are cut from all the samples, not from the missing ones, and encoded whole: a cache that was
        interrupted ends up bit-identical to one that was not. Raises DatasetError naming a picture that can no
        longer be read or whose latent is not finite; OutputError if the folder cannot be written.
        """
        wanted = [(sample, flipped) for flipped in ((False, True) if flips else (False,)) for sample in samples]
        done = 0
        todo = []
        for batch in _batches(wanted, batch_size):
            if all(self._read(*item) is not None for item in batch):
                done += len(batch)
                listener(LatentsCached(done, len(wanted)))
            else:
                todo.append(batch)
        with quiet_decoders(), ThreadPoolExecutor(2) as pool:
            for batch, pixels in _ahead(pool, todo):
                self._store(batch, pixels)
                done += len(batch)
                listener(LatentsCached(done, len(wanted)))

    def get(self, sample: Sample, flipped: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (C, h, w) float32 each; encoded now if they are missing."""
        found = self._read(sample, flipped)
        if found is None:
            batch = [(sample, flipped)]
            found = self._store(batch, _pixels(batch))[0]
        return found[0].float(), found[1].float()

    def _key(self, sample: Sample, flipped: bool) -> str:
        return latent_key(sample, flipped=flipped, vae_key=self._vae_key, precision=self._precision)

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / key[:2] / f"{key}.safetensors"

    def _read(self, sample: Sample, flipped: bool) -> Latent | None:
        key = self._key(sample, flipped)
        path = self._path(key)
        if path is None:
            return self._memory.get(key)
        try:
            file = open_tensors(path)
            mean, std = file["mean"], file["std"]
            intact = file.metadata.get("key") == key and file.metadata.get("sha256") == _checksum(mean, std)
        except (FileError, KeyError):
            return None
        return (mean, std) if intact and mean.dtype == std.dtype == self._precision else None

    def _store(self, batch: Sequence[tuple[Sample, bool]], pixels: Tensor) -> list[Latent]:
        with torch.no_grad():
            means, stds = (part.to("cpu", self._precision) for part in self._encode(pixels))
        latents = []
        for (sample, flipped), mean, std in zip(batch, means, stds, strict=True):
            latent = (mean.clone(), std.clone())
            if not all(bool(torch.isfinite(part).all()) for part in latent):
                raise DatasetError(
                    f"the VAE turns {sample.path} into values that are not finite",
                    "encode in fp32 (fp16 overflows in SDXL's VAE); if other pictures work, remove this one",
                )
            self._write(self._key(sample, flipped), latent)
            latents.append(latent)
        return latents

    def _write(self, key: str, latent: Latent) -> None:
        path = self._path(key)
        if path is None:
            self._memory[key] = latent
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create {path.parent}: {error.strerror}", "choose another cache_folder"
            ) from error
        mean, std = latent
        write_tensors(path, {"mean": mean, "std": std}, metadata={"key": key, "sha256": _checksum(mean, std)})


def _batches(wanted: Sequence[tuple[Sample, bool]], batch_size: int) -> Iterator[list[tuple[Sample, bool]]]:
    """Runs of at most ``batch_size`` of one bucket, in a fixed order."""
    groups: dict[tuple[int, int], list[tuple[Sample, bool]]] = {}
    for item in wanted:
        groups.setdefault(item[0].bucket, []).append(item)
    for _, group in sorted(groups.items()):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def _pixels(batch: Sequence[tuple[Sample, bool]]) -> Tensor:
    return torch.stack([load_pixels(sample, flipped=flipped) for sample, flipped in batch])


def _ahead(
    pool: ThreadPoolExecutor, batches: Sequence[list[tuple[Sample, bool]]]
) -> Iterator[tuple[list[tuple[Sample, bool]], Tensor]]:
    """Each batch with its pixels; the next ones are decoded while one is encoded."""
    pending = [pool.submit(_pixels, batch) for batch in batches[:2]]
    for index, batch in enumerate(batches):
        future = pending.pop(0)
        if index + 2 < len(batches):
            pending.append(pool.submit(_pixels, batches[index + 2]))
        yield batch, future.result()


def _checksum(mean: Tensor, std: Tensor) -> str:
    digest = sha256()
    for part in (mean, std):
        digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
        digest.update(part.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
