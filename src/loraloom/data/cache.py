"""Latents and captions encoded once: in memory, or on disk between runs, never used for anything else.

A key holds everything the latent depends on (the picture's bytes, bucket, crop, flip, background, VAE, precision), so
a changed picture, resolution or VAE finds nothing instead of something stale. Files are checked when read.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loraloom.control import Control, heed, keep_going
from loraloom.data.images import load_picture
from loraloom.data.sample import Sample
from loraloom.data.variants import with_colours
from loraloom.errors import DatasetError, FileError, MissingFileError, OutputError
from loraloom.events import LatentsCached, Listener, Notice, ignore
from loraloom.formats.memory_budget import MemoryBudget
from loraloom.formats.pictures import picture_budget, quiet_decoders
from loraloom.formats.tensors import bytes_of, open_tensors, write_tensors

__all__ = ["ALONE", "Encode", "Encoders", "LatentCache", "TensorStore", "latent_key", "load_pixels", "text_key"]

Turn = TypeVar("Turn")
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Pixels (B, 3, H, W) in [-1, 1] to the latents' mean and standard deviation, (B, C, h, w) each."""

Latent = tuple[Tensor, Tensor]
Item = tuple[Sample, bool, int]
"""A picture, whether it is mirrored, and which of its versions it is."""
_TOGETHER = 64
"""Batches that a process encodes before it hands them to the others."""
_FORMAT = "1"  # part of every key; raised when pixels are prepared differently


def latent_key(
    sample: Sample, *, flipped: bool, vae_key: str, precision: torch.dtype = torch.float32, variant: int = 0
) -> str:
    """Name of the latent of one version of a picture: a sha256 over all that it depends on, in hexadecimal."""
    placed, colours = sample.fit_of(variant), sample.colours_of(variant)
    top, left = placed.crop
    parts = [
        _FORMAT,
        sample.digest,
        f"{sample.bucket[0]}x{sample.bucket[1]}",
        f"{top},{left}",
        "flipped" if flipped else "plain",
        "#{:02x}{:02x}{:02x}".format(*sample.background),
        vae_key,
        str(precision),
    ]
    if placed.resized != sample.fit.resized:
        parts.append(f"resized to {placed.resized[0]}x{placed.resized[1]}")
    if colours is not None:
        parts.append(f"hue {colours.hue} gamma {colours.gamma}")
    return sha256("\n".join(parts).encode()).hexdigest()


def text_key(caption: str, *, encoder_key: str, weighted: bool, chunks: int, clip_skip: int) -> str:
    """Name of an encoded caption: a sha256 over all that it depends on, in hexadecimal.

    ``encoder_key`` names the text encoders' weights, their compute type and the tokenizer's rules.
    """
    parts = ("text", _FORMAT, encoder_key, str(weighted), str(chunks), str(clip_skip), caption)
    return sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def load_pixels(sample: Sample, *, flipped: bool, variant: int = 0, budget: MemoryBudget | None = None) -> Tensor:
    """The sample's pixels, (3, height, width) float32 in [-1, 1], mirrored left to right if ``flipped``.

    Raises DatasetError if the file was removed, damaged or replaced since the dataset was read.
    """
    image = load_picture(
        sample.path,
        bucket=sample.bucket,
        background=sample.background,
        orientation=sample.orientation,
        digest=sample.digest,
        placed=sample.fit_of(variant) if variant else None,
        budget=budget,
    )
    colours = sample.colours_of(variant)
    if colours is not None:
        image = with_colours(image, colours)
    if flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return pixels.to(torch.float32).div_(127.5).sub_(1.0).contiguous()


class TensorStore:
    """Named tensors by key: in files of ``folder``, or in memory if it is None.

    Files are checked when they are read; one that is damaged, or not what its name says, counts as absent, and its key
    is among ``damaged``. In memory at most ``max_bytes`` are kept (None: no limit); the longest unused leave first.
    """

    def __init__(self, folder: Path | None, *, max_bytes: int | None = None) -> None:
        self.folder = folder
        self.damaged: set[str] = set()
        self._max_bytes = max_bytes
        self._memory: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._bytes = 0

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of a key, None if there are none (or none that can be trusted)."""
        if self.folder is None:
            if key in self._memory:
                self._memory.move_to_end(key)
            return self._memory.get(key)
        try:
            file = open_tensors(self._path(self.folder, key))
            tensors = {name: file[name] for name in file}
            intact = file.metadata.get("key") == key and file.metadata.get("sha256") == _checksum(tensors)
        except MissingFileError:
            return None
        except (FileError, KeyError):
            intact = False
        if not intact:
            self.damaged.add(key)
            return None
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep the tensors of a key. Raises OutputError if the folder cannot be written."""
        if self.folder is None:
            self._remember(key, dict(tensors))
            return
        path = self._path(self.folder, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            hint = "choose another cache_folder"
            raise OutputError(f"cannot create {path.parent}: {error.strerror}", hint) from error
        write_tensors(path, tensors, metadata={"key": key, "sha256": _checksum(tensors)})

    def _remember(self, key: str, tensors: dict[str, Tensor]) -> None:
        self._bytes += _size(tensors) - _size(self._memory.get(key, {}))
        self._memory[key] = tensors
        while self._max_bytes is not None and self._bytes > self._max_bytes and len(self._memory) > 1:
            self._bytes -= _size(self._memory.popitem(last=False)[1])

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.safetensors"


@dataclass(frozen=True)
class Encoders:
    """The processes that fill a cache together, of which this is number ``number``, from 0.

    ``exchange``: own value in, everybody's out, in their order.
    """

    number: int = 0
    count: int = 1
    exchange: Callable[[Any], Sequence[Any]] = lambda own: [own]


ALONE = Encoders()
"""One process encodes everything."""


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
        self._store = TensorStore(folder)
        self._precision = precision
        self._budget = picture_budget()

    def prepare(
        self,
        samples: Sequence[Sample],
        flips: bool = False,
        batch_size: int = 1,
        listener: Listener = ignore,
        *,
        among: Encoders = ALONE,
        control: Control = keep_going,
    ) -> None:
        """Encode whatever is missing; with ``flips`` the mirrored pictures too (a sample's own ``flip`` decides).

        Batches are cut from all the samples, not from the missing ones, and encoded whole: a cache that was
        interrupted ends up bit-identical to one that was not. ``among`` n processes each encodes every n-th batch
        and gives it to the others. ``control`` is heeded before each batch, equally often in all of them; what is
        encoded stays.
        Raises DatasetError naming a picture that can no longer be read or whose latent is not finite; OutputError if
        the folder cannot be written.
        """
        batches = list(_batches(list(self._wanted(samples, flips)), batch_size))
        missing = self._missing(batches, listener)
        missing = missing.union(*among.exchange(missing))
        progress = _Progress(batches, listener)
        for index, batch in enumerate(batches):
            if index not in missing:
                progress.add(batch)

        with quiet_decoders(), ThreadPoolExecutor(2) as pool:
            for part in _rounds(sorted(missing), among.count):
                own = {index: batches[index] for index in part[among.number :: among.count]}
                # The last turn may not go round; those who have nothing left ask the control all the same.
                turns = -(-len(part) // among.count)
                encoded: dict[int, list[Latent]] = {}
                for index, pixels in _in_turns(_ahead(pool, own, self._budget), turns, control):
                    encoded[index] = self._keep(own[index], pixels)
                    progress.add(own[index])

                for index, latents in _joined(among.exchange(encoded)):
                    if index not in own:
                        self._receive(batches[index], latents)
                        progress.add(batches[index])

    def get(self, sample: Sample, flipped: bool = False, variant: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (C, h, w) float32 each; encoded now if they are missing."""
        found = self._read(sample, flipped, variant)
        if found is None:
            batch = [(sample, flipped, variant)]
            found = self._keep(batch, _pixels(batch, self._budget))[0]
        return found[0].float(), found[1].float()

    def _missing(self, batches: Sequence[Sequence[Item]], listener: Listener) -> set[int]:
        """Which batches are not all here, by number; ``listener`` hears of files that were damaged."""

        # Every file is looked at, behind the first that is missing too, so that all that are damaged are counted.
        missing = {i for i, batch in enumerate(batches) if sum(self._read(*item) is None for item in batch)}
        if self._store.damaged:
            count = len(self._store.damaged)
            text = f"{count} of the encoded pictures in {self._store.folder} were damaged: they are encoded again"
            listener(Notice(text, "warning"))
        return missing

    def _wanted(self, samples: Sequence[Sample], flips: bool) -> Iterator[Item]:
        """Every version of every sample; of versions that came out alike, the first."""
        seen: set[str] = set()
        for variant in range(max((sample.variation.count for sample in samples), default=1)):
            for flipped in (False, True):
                for sample in samples:
                    mirrored = flips if sample.flip is None else sample.flip
                    if variant >= sample.variation.count or (flipped and not mirrored):
                        continue

                    # Variations are drawn and may come out alike: the VAE need not encode the same picture twice.
                    if sample.variation.count > 1:
                        key = self._key(sample, flipped, variant)
                        if variant and key in seen:
                            continue
                        seen.add(key)
                    yield sample, flipped, variant

    def _key(self, sample: Sample, flipped: bool, variant: int) -> str:
        return latent_key(sample, flipped=flipped, vae_key=self._vae_key, precision=self._precision, variant=variant)

    def _read(self, sample: Sample, flipped: bool, variant: int) -> Latent | None:
        tensors = self._store.read(self._key(sample, flipped, variant))
        if tensors is None or set(tensors) != {"mean", "std"}:
            return None
        mean, std = tensors["mean"], tensors["std"]
        return (mean, std) if mean.dtype == std.dtype == self._precision else None

    def _receive(self, batch: Sequence[Item], latents: Sequence[Latent]) -> None:
        """Keep what another process encoded, unless it is here by way of a shared folder."""
        for item, (mean, std) in zip(batch, latents, strict=True):
            if self._read(*item) is None:
                self._store.write(self._key(*item), {"mean": mean, "std": std})

    def _keep(self, batch: Sequence[Item], pixels: Tensor) -> list[Latent]:
        with torch.no_grad():
            means, stds = (part.to("cpu", self._precision) for part in self._encode(pixels))
        latents = []
        for (sample, flipped, variant), mean, std in zip(batch, means, stds, strict=True):
            latent = (mean.clone(), std.clone())
            if not all(bool(torch.isfinite(part).all()) for part in latent):
                raise DatasetError(
                    f"the VAE turns {sample.path} into values that are not finite",
                    "encode in fp32 (fp16 overflows in SDXL's VAE); if other pictures work, remove this one",
                )
            self._store.write(self._key(sample, flipped, variant), {"mean": latent[0], "std": latent[1]})
            latents.append(latent)
        return latents


def _batches(wanted: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
    """Runs of at most ``batch_size`` of one bucket, in a fixed order."""
    groups: dict[tuple[int, int], list[Item]] = {}
    for item in wanted:
        groups.setdefault(item[0].bucket, []).append(item)
    for _, group in sorted(groups.items()):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


class _Progress:
    """How many of the pictures are encoded; the listener hears of it with every batch."""

    def __init__(self, batches: Sequence[Sequence[Item]], listener: Listener) -> None:
        self._done, self._total = 0, sum(len(batch) for batch in batches)
        self._listener = listener

    def add(self, batch: Sequence[Item]) -> None:
        """A batch is encoded."""
        self._done += len(batch)
        self._listener(LatentsCached(self._done, self._total))


def _rounds(missing: Sequence[int], processes: int) -> Iterator[Sequence[int]]:
    """Batches, by number, after which the processes hand one another what they encoded."""
    for start in range(0, len(missing), _TOGETHER * processes):
        yield missing[start : start + _TOGETHER * processes]


def _in_turns(items: Iterator[Turn], turns: int, control: Control) -> Iterator[Turn]:
    """The items, ``control`` heeded before each, and in turns for which there is none."""
    for _ in range(turns):
        heed(control)
        yield from islice(items, 1)


def _joined(shares: Sequence[Mapping[int, list[Latent]]]) -> Iterator[tuple[int, list[Latent]]]:
    """The batches of all processes in order."""
    return iter(sorted((pair for share in shares for pair in share.items()), key=lambda pair: pair[0]))


def _pixels(batch: Sequence[Item], budget: MemoryBudget) -> Tensor:
    return torch.stack(
        [load_pixels(sample, flipped=flipped, variant=variant, budget=budget) for sample, flipped, variant in batch]
    )


def _ahead(
    pool: ThreadPoolExecutor, batches: Mapping[int, list[Item]], budget: MemoryBudget
) -> Iterator[tuple[int, Tensor]]:
    """The pixels of each batch, by its number; the next ones are decoded while one is encoded."""
    waiting = iter(batches.items())
    pending = deque((number, pool.submit(_pixels, batch, budget)) for number, batch in islice(waiting, 2))
    while pending:
        number, future = pending.popleft()
        pending.extend((number, pool.submit(_pixels, batch, budget)) for number, batch in islice(waiting, 1))
        yield number, future.result()


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = sha256()
    for _, part in sorted(tensors.items()):
        digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
        digest.update(bytes_of(part))
    return digest.hexdigest()


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
