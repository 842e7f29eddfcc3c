"""LoRAs that a prompt asks for: found by name or path, read, and put on the model for as long as an image takes."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from loraloom.adapters.active import ActiveLoras
from loraloom.adapters.attach import AdapterSet, read_adapters
from loraloom.adapters.strength import FULL, LoraStrength
from loraloom.errors import FileError, PromptError, nearest
from loraloom.events import Listener, ignore
from loraloom.formats.cloneofsimo import companions
from loraloom.formats.embedding_file import EmbeddingFile, embedding_of
from loraloom.formats.file_hashes import file_hashes
from loraloom.formats.pictures import grey_picture
from loraloom.generation.prompts import LoraTag
from loraloom.generation.prompts.tags import WeightCurve
from loraloom.models.loaded import LoadedModel

__all__ = ["AppliedLora", "BatchLoras", "LoraStore", "attached", "find_lora", "load_lora", "lora_files", "other_loras"]

_SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")  # in the order of preference for files of one name
_HINT = "write its path: <lora:./path/to/file.safetensors:0.8>"


@dataclass(frozen=True)
class AppliedLora:
    """A LoRA in use: its adapters and how strongly each part is applied."""

    name: str
    adapters: AdapterSet
    strength: LoraStrength = FULL
    """With the numbers of the family's blocks, where it has weights by block."""
    hash: str | None = None
    """The first 12 digits of the hash of the file's content (AutoV3), computed and never taken from its metadata."""
    path: Path | None = None
    """The file, where it is known."""
    curve: WeightCurve | None = None
    """The U-Net's weight where it changes over the steps."""
    mask: Tensor | None = field(default=None, compare=False)
    """(1, 1, H, W), 1 where the U-Net's part acts, stretched over the picture; None: everywhere."""

    def words(self) -> dict[str, EmbeddingFile]:
        """Textual-inversion words that the file brings along."""
        path = self.path or Path(self.name)
        return {word: embedding_of(path, word, places) for word, places in self.adapters.words.items()}

    def unet_at(self, progress: float) -> float:
        """The U-Net's weight when this share of the steps is done."""
        return self.strength.unet if self.curve is None else self.curve.at(progress)


class BatchLoras:
    """The LoRAs of a batch of images, each image with some of them at weights of its own, all in one pass."""

    def __init__(self, model: LoadedModel, images: Sequence[Sequence[AppliedLora]], known: LoraStore) -> None:
        self._images = images
        self.used = list({id(lora.adapters): lora for image in images for lora in image}.values())
        self._active = known.active(model, self.used)

    @contextmanager
    def on(self) -> Iterator[None]:
        """The model with these LoRAs on it; without them again afterwards, whatever happened."""
        with self._active.on() if self._active is not None else nullcontext():
            yield

    def regions(self, images: Sequence[int], size: Sequence[int]) -> list[tuple[Region, Tensor]]:
        """Masked LoRAs of the rows' images, with the share (B, 1, h, w) that each has in the answer.

        Where masks overlap their shares add up to 1.
        """
        shares: dict[Region, Tensor] = {}
        for row, image in enumerate(images):
            for lora in self._images[image]:
                if lora.mask is not None:
                    share = shares.setdefault(_region(lora), torch.zeros(len(images), 1, *size))
                    share[row] = F.interpolate(lora.mask, size=tuple(size), mode="area")[0]
        total = sum(shares.values(), torch.zeros(())).clamp(min=1)
        return [(region, share / total) for region, share in shares.items()]

    def take_unet(self, images: Sequence[int], progress: float, region: Region | None = None) -> None:
        """The rows of the U-Net's next call are of these images, when this share of the steps is done.

        Of LoRAs with a mask only that of the ``region`` acts.
        """

        def weight(lora: AppliedLora) -> float:
            return lora.unet_at(progress) if lora.mask is None or _region(lora) == region else 0.0

        if self._active is not None:
            self._active.weigh_unet([self._row(image, weight) for image in images])

    def take_text(self, image: int) -> None:
        """The next text is one of this image's."""
        if self._active is not None:
            self._active.weigh_text(self._row(image, lambda lora: lora.strength.text_encoder))

    def text_key(self, image: int) -> tuple[object, ...]:
        """What this image's LoRAs make of a text depends on this and nothing else."""
        row = self._row(image, lambda lora: lora.strength.text_encoder)
        return tuple(
            (id(lora.adapters), weight)
            for lora, weight in zip(self.used, row, strict=True)
            if weight and any(part != "unet" for part in lora.adapters.parts())
        )

    def _row(self, image: int, weight: Callable[[AppliedLora], float]) -> list[float]:
        weights = {id(lora.adapters): 0.0 for lora in self.used}
        for lora in self._images[image]:
            weights[id(lora.adapters)] += weight(lora)
        return list(weights.values())


Region = tuple[int, int]
"""A masked LoRA: the identity of its adapters and of its mask."""


def _region(lora: AppliedLora) -> Region:
    return id(lora.adapters), id(lora.mask)


LARGEST_KEPT = 4 << 30
"""Bytes of LoRAs that a store keeps for later: those used last."""


class LoraStore:
    """LoRAs that were read for a model, found again by name as long as their files do not change.

    A name is looked for once; :meth:`look_again` is called between two jobs, which must not find what only an earlier
    one has named.
    """

    def __init__(self) -> None:
        self._paths: dict[tuple[str, tuple[Path, ...]], Path] = {}
        self._read: dict[tuple[str, tuple[int, ...]], AppliedLora] = {}
        self._weighted: dict[tuple[tuple[str, tuple[int, ...]], str], AdapterSet] = {}
        self._masks: dict[tuple[str, int], Tensor] = {}
        self._active: tuple[tuple[AdapterSet, ...], ActiveLoras] | None = None

    def look_again(self) -> None:
        """From now on names are looked for anew, and what was not used for long is read again."""
        self._paths.clear()
        self._masks.clear()
        size = 0
        for key in reversed(list(self._read)):
            size += sum(tensor.nbytes for tensor in self._read[key].adapters.state_dict().values())
            if size > LARGEST_KEPT:
                del self._read[key]
        self._weighted = {blocks: kept for blocks, kept in self._weighted.items() if blocks[0] in self._read}
        self._active = None

    def load(
        self, tag: LoraTag, folders: Sequence[Path], model: LoadedModel, listener: Listener = ignore
    ) -> AppliedLora:
        """The LoRA of a tag with the tag's weights; read again, with notices about what is odd in it, when the file has
        changed."""
        asked = tag.name, tuple(folders)
        path = self._paths.get(asked)
        if path is None or not path.is_file():
            path = self._paths[asked] = find_lora(tag.name, folders)

        states = [file.stat() for file in (path, *companions(path))]
        key = str(path.resolve()), tuple(number for state in states for number in (state.st_mtime_ns, state.st_size))
        if key not in self._read:
            self._read = {other: lora for other, lora in self._read.items() if other[0] != key[0]}
            lora = load_lora(replace(tag, name=str(path)), (), model, listener)
            self._read[key] = replace(lora, adapters=lora.adapters.to(model.device))
        lora = self._read[key] = self._read.pop(key)  # the last one used is the last one

        strength = tag.strength.listed(model.family.preset_blocks)
        if strength.blocks is not None:
            blocks = key, strength.blocks.text
            if blocks not in self._weighted:
                self._weighted = {other: kept for other, kept in self._weighted.items() if other[0] in self._read}
                self._weighted[blocks] = lora.adapters.in_blocks(strength)
            lora = replace(lora, adapters=self._weighted[blocks])

        mask = None if tag.mask is None else self._mask(Path(tag.mask).expanduser())
        return replace(lora, name=tag.name, strength=strength, curve=tag.curve, mask=mask)

    def _mask(self, path: Path) -> Tensor:
        """The picture as (1, 1, H, W) in [0, 1]."""
        try:
            key = str(path.resolve()), path.stat().st_mtime_ns
        except (OSError, ValueError, RuntimeError) as error:
            raise _unreadable_mask(path, getattr(error, "strerror", None) or str(error)) from error
        if key not in self._masks:
            try:
                values = np.array(grey_picture(path), np.float32) / 255
            except FileError as error:
                raise _unreadable_mask(path, error.problem.removeprefix(f"{path}: ")) from error
            self._masks[key] = torch.from_numpy(values)[None, None]
        return self._masks[key]

    def active(self, model: LoadedModel, loras: Sequence[AppliedLora]) -> ActiveLoras | None:
        """The side branches of these LoRAs, those of the call before where they are the same."""
        if not loras:
            return None
        sets = tuple(lora.adapters for lora in loras)
        kept = () if self._active is None else self._active[0]
        if self._active is None or [id(one) for one in kept] != [id(one) for one in sets]:
            layers = {target.name: model.layer(target) for target in model.file_targets}
            parts = [(lora.adapters.to(model.device), lora.strength) for lora in loras]
            self._active = sets, ActiveLoras(parts, layers)
        return self._active[1]


def find_lora(name: str, folders: Sequence[Path]) -> Path:
    """The file that ``name`` means: a path, or a name (or path, with or without suffix) under one of the folders.

    What is written as a path (``./ada``, ``~/loras/ada``, an absolute one) is that path and nothing else. Any other
    name is looked for in the folders, earlier ones first, and only then from the working folder. PromptError when
    nothing fits, when two files of one folder fit equally well, or when ``people/ada`` is a file in a folder and
    another one from the working folder.
    """
    if _is_path(name):
        if (path := _at_path(name)) is None:
            raise PromptError(f"there is no LoRA {name!r}: it is written as a path, and there is no such file", _HINT)
        return path
    here = _at_path(name)

    # The folders come first, so that a file that happens to lie in the working folder changes no prompt.
    for folder in folders:
        if (found := _matching(_plain(name), folder, lora_files(folder))) is not None:
            if here is not None and "/" in _plain(name) and not _is_same(here, found):
                raise PromptError(
                    f"the LoRA {name!r} means two files: {found} and {Path.cwd() / here}",
                    f"write <lora:./{_plain(name)}:1> for the one in the current folder, or the other's full path",
                )
            return found
    if here is not None:
        return here

    known = [_plain(file.stem) for folder in folders for file in lora_files(folder)]
    searched = ", ".join(str(folder) for folder in folders) or "no folder"
    close = nearest(_plain(name), known)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    raise PromptError(f"there is no LoRA {name!r} (searched: {searched})", f"{suggestion}set lora_folders, or {_HINT}")


def other_loras(name: str, folders: Sequence[Path]) -> tuple[Path, ...]:
    """Files that have the name of a LoRA too and are not meant by it: in later folders, or in the working folder."""
    if _is_path(name):
        return ()
    meant = find_lora(name, folders)
    found = [path for folder in folders for path in _fitting(_plain(name), folder, lora_files(folder))]
    here = _at_path(name)
    place = meant.parent.resolve(), meant.stem
    others: list[Path] = []
    for path in found if here is None else [*found, here]:
        is_twin = (path.parent.resolve(), path.stem) == place  # the same LoRA in another format
        if not is_twin and not any(_is_same(path, other) for other in (meant, *others)):
            others.append(path)
    return tuple(others)


def load_lora(tag: LoraTag, folders: Sequence[Path], model: LoadedModel, listener: Listener = ignore) -> AppliedLora:
    """Find and read the LoRA of a tag for this model; AdapterError when it belongs to another family."""
    path = find_lora(tag.name, folders)
    adapters = read_adapters(path, model.file_targets, listener=listener)
    digits = file_hashes(path).content[:12]
    strength = tag.strength.listed(model.family.preset_blocks)
    return AppliedLora(tag.name, adapters, strength, digits, path, tag.curve)


@contextmanager
def attached(model: LoadedModel, loras: Sequence[AppliedLora]) -> Iterator[None]:
    """The model with these LoRAs on it for any use; without them again afterwards, whatever happened."""
    batch = BatchLoras(model, [loras], LoraStore())
    batch.take_unet([0], 0.0)
    batch.take_text(0)
    with batch.on():
        yield


def _unreadable_mask(path: Path, reason: str) -> PromptError:
    hint = "a mask is a picture that is white where the LoRA acts"
    return PromptError(f"the mask {path} cannot be read: {reason}", hint)


def lora_files(folder: Path) -> list[Path]:
    """LoRA files under a folder, those of preferred formats first."""
    found = [path for path in folder.expanduser().rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()]
    return sorted(found, key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path.as_posix()))


def _is_path(name: str) -> bool:
    """Whether a name says itself that it is a path."""
    plain = _plain(name)
    return plain.startswith(("./", "../", "~/", "/")) or bool(PureWindowsPath(name).drive)


def _at_path(name: str) -> Path | None:
    """The file at a path that may lack its suffix, seen from the working folder."""
    for candidate in (name, *(f"{name}{suffix}" for suffix in _SUFFIXES)):
        # A name too long for the file system is not a path, and neither is one in the home of an unknown user.
        with suppress(OSError, ValueError, RuntimeError):
            path = Path(candidate).expanduser() if candidate.startswith("~/") else Path(candidate)
            if path.is_file():
                return path
    return None


def _is_same(one: Path, other: Path) -> bool:
    with suppress(OSError):
        return one.samefile(other)
    return False


def _matching(name: str, folder: Path, files: Sequence[Path]) -> Path | None:
    """The one file that fits best; PromptError when several fit equally well."""
    fitting = _fitting(name, folder, files)
    if len({path.with_suffix("") for path in fitting}) > 1:
        listed = ", ".join(sorted(path.relative_to(folder.expanduser()).as_posix() for path in fitting))
        raise PromptError(f"several LoRAs are called {name!r}: {listed}", f"write its path under {folder}")
    return fitting[0] if fitting else None


def _fitting(name: str, folder: Path, files: Sequence[Path]) -> list[Path]:
    """The files that fit best: by the path in the folder, then by their own name, then in any case."""
    root = folder.expanduser()

    def spellings(path: Path) -> tuple[str, ...]:
        inside = path.relative_to(root)
        spelt = (inside.as_posix(), inside.with_suffix("").as_posix(), path.name, path.stem)
        return tuple(_plain(text) for text in (*spelt, path.stem.casefold()))

    for kind, wanted in enumerate((name, name, name, name, name.casefold())):
        if fitting := [path for path in files if spellings(path)[kind] == wanted]:
            return fitting
    return []


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).replace("\\", "/")
