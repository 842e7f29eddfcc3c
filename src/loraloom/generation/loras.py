"""LoRAs that a prompt asks for: found by name or path, read, and put on the model for as long as an image takes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loraloom.adapters.attach import AdapterSet, attach, read_adapters
from loraloom.errors import PromptError, nearest
from loraloom.formats.adapter_file import content_hash
from loraloom.generation.prompts import LoraTag
from loraloom.models.loaded import LoadedModel

__all__ = ["AppliedLora", "attached", "find_lora", "load_lora", "lora_files"]

_SUFFIXES = (".safetensors", ".pt", ".ckpt", ".bin")  # in the order of preference for files of one name


@dataclass(frozen=True)
class AppliedLora:
    """A LoRA in use: its adapters and how strongly each part is applied."""

    name: str
    adapters: AdapterSet
    text_encoder: float = 1.0
    unet: float = 1.0
    hash: str | None = None
    """The first 12 digits of the hash that other programs show for the file."""


def find_lora(name: str, folders: Sequence[Path]) -> Path:
    """The file that ``name`` means: a path, or a name (or path, with or without suffix) under one of the folders.

    Earlier folders win. PromptError when nothing fits, or when two files of one folder fit equally well.
    """
    for candidate in (name, *(f"{name}{suffix}" for suffix in _SUFFIXES)):
        path = Path(candidate).expanduser()
        with suppress(OSError):  # a name too long for the file system is no path
            if path.is_file():
                return path
    known: list[str] = []
    for folder in folders:
        files = lora_files(folder)
        known.extend(_plain(file.stem) for file in files)
        found = _matching(_plain(name), folder, files)
        if found:
            return found
    searched = ", ".join(str(folder) for folder in folders) or "no folder"
    close = nearest(_plain(name), known)
    suggestion = f"did you mean {close[0]!r}? " if close else ""
    raise PromptError(
        f"there is no LoRA {name!r} (searched: {searched})",
        f"{suggestion}set lora_folders, or write its path: <lora:path/to/file.safetensors:0.8>",
    )


def load_lora(tag: LoraTag, folders: Sequence[Path], model: LoadedModel) -> AppliedLora:
    """Find and read the LoRA of a tag for this model; AdapterError when it belongs to another family."""
    path = find_lora(tag.name, folders)
    adapters = read_adapters(path, model.file_targets)
    return AppliedLora(tag.name, adapters, tag.text_encoder, tag.unet, _content_hash(path, adapters)[:12])


@contextmanager
def attached(model: LoadedModel, loras: Sequence[AppliedLora]) -> Iterator[None]:
    """The model with these LoRAs on it; without them again afterwards, whatever happened."""
    layers = {target.name: model.layer(target) for target in model.file_targets} if loras else {}
    with ExitStack() as stack:
        for lora in loras:
            adapters = lora.adapters.to(model.device)
            stack.enter_context(attach(adapters, layers, unet=lora.unet, text_encoder=lora.text_encoder))
        yield


def lora_files(folder: Path) -> list[Path]:
    """LoRA files under a folder, those of preferred formats first."""
    found = [path for path in folder.expanduser().rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()]
    return sorted(found, key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path.as_posix()))


def _matching(name: str, folder: Path, files: Sequence[Path]) -> Path | None:
    """The one file that fits best: its path in the folder, then its own name; case counts unless nothing fits."""
    root = folder.expanduser()

    def spellings(path: Path) -> tuple[str, ...]:
        inside = path.relative_to(root)
        spelt = (inside.as_posix(), inside.with_suffix("").as_posix(), path.name, path.stem)
        return tuple(_plain(text) for text in (*spelt, path.stem.casefold()))

    for kind, wanted in enumerate((name, name, name, name, name.casefold())):
        fitting = [path for path in files if spellings(path)[kind] == wanted]
        if len({path.with_suffix("") for path in fitting}) > 1:
            listed = ", ".join(sorted(path.relative_to(root).as_posix() for path in fitting))
            raise PromptError(f"several LoRAs are called {name!r}: {listed}", f"write its path under {folder}")
        if fitting:
            return fitting[0]
    return None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).replace("\\", "/")


def _content_hash(path: Path, adapters: AdapterSet) -> str:
    """What the web UI shows as a LoRA's hash: kohya's ``sshs_model_hash``, or the same computed from the file."""
    stored = adapters.metadata.get("sshs_model_hash", "")
    return stored if len(stored) == 64 else content_hash(path)
