"""A checkpoint on disk: its tensors under the checkpoint's own names, lazily, and the family it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from loraloom.diffusion.objectives import Prediction
from loraloom.errors import CheckpointError, MissingFileError
from loraloom.events import Notice
from loraloom.formats.adapter_file import loras_in
from loraloom.formats.foreign import what_it_is
from loraloom.formats.tensors import TensorFile, TensorInfo, open_tensors
from loraloom.models.diffusers_folder import FolderTensors, is_diffusers_folder
from loraloom.models.family import Family, recognise
from loraloom.models.resolution import OwnResolution, own_resolution
from loraloom.models.translated import TranslatedTensors, translated

__all__ = ["Checkpoint", "as_checkpoint", "open_checkpoint"]


_PURPOSES = {
    4: "a text-to-image checkpoint",
    5: "a depth-to-image checkpoint",
    8: "a picture-editing checkpoint (InstructPix2Pix)",
    9: "an inpainting checkpoint",
}


class TensorView(Protocol):
    """Named tensors whose types and shapes are known before their data: a file, or a Diffusers folder."""

    metadata: dict[str, str]

    def __getitem__(self, name: str) -> Tensor: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object) -> bool: ...
    def info(self, name: str) -> TensorInfo: ...
    def mapped(self, name: str) -> Tensor: ...
    def check(self, name: str) -> None: ...


class Checkpoint(Mapping[str, Tensor]):
    """Lazy mapping from checkpoint key to tensor, in the file's precision, whatever the checkpoint is kept in.

    ``checkpoint[name]`` is read into memory of its own, and checked where the file carries checksums.
    """

    def __init__(self, path: Path, source: TensorView, family: Family) -> None:
        self.path = path
        self.family = family
        self.metadata: Mapping[str, str] = dict(source.metadata)
        self._source = source

    def __getitem__(self, name: str) -> Tensor:
        return self._source[name]

    def mapped(self, name: str) -> Tensor:
        """A tensor that takes no memory where its bytes in the file can be seen as they are. It must not be changed.

        See :meth:`loraloom.formats.tensors.TensorFile.mapped`.
        """
        return self._source.mapped(name)

    def check(self, name: str) -> None:
        """Read a tensor against the checksum that the file carries for it, once; FileFormatError if it differs."""
        self._source.check(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor, without touching its data."""
        return self._source.info(name)

    @property
    def infos(self) -> dict[str, TensorInfo]:
        """Types and shapes of all tensors."""
        return {name: self._source.info(name) for name in self._source}

    @property
    def extras(self) -> Mapping[str, object]:
        """Plain values that stood beside the tensors of a ``.ckpt``, such as ``epoch`` and ``global_step``."""
        return dict(self._source.extras) if isinstance(self._source, TensorFile | TranslatedTensors) else {}

    @property
    def translated(self) -> Sequence[str]:
        """Tensors that have other names in the file, by their names here."""
        return self._source.translated if isinstance(self._source, TranslatedTensors) else ()

    def translation_notice(self) -> Notice | None:
        """The notice for tensors that are written under other names than the file has; None where the names are the
        same."""
        if not self.translated:
            return None
        return Notice(
            f"{self.path.name}: {len(self.translated)} tensors have names of other programs there and are written "
            f"under the checkpoint's own, the first is {self.translated[0]}"
        )

    @property
    def is_folder(self) -> bool:
        """Whether this is a Diffusers folder rather than a single file."""
        return self.path.is_dir()

    @property
    def input_channels(self) -> int:
        """What the U-Net reads: 4 for latents alone, more where a mask, a depth map or a picture goes with them."""
        return self.info(f"{self.family.unet_prefix}input_blocks.0.0.weight").shape[1]

    def own_resolution(self, prediction: Prediction | None) -> OwnResolution:
        """The size of the pictures that it was made for, as a model of that prediction."""
        return own_resolution(self.family, self.metadata, prediction)

    @property
    def purpose(self) -> str:
        """For people: what the checkpoint is made for, as far as the U-Net's input shows."""
        return _PURPOSES.get(self.input_channels, "a checkpoint of an unknown purpose")


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint: ``.safetensors`` or ``.ckpt`` (recognised by content), or a Diffusers folder. Reads no tensor.

    Raises CheckpointError, saying what the file is, when it is readable but of no known family; MissingFileError
    and FileFormatError as :func:`loraloom.formats.tensors.open_tensors`.
    """
    path = Path(path)
    if path.is_dir() and not is_diffusers_folder(path):
        if inside := loras_in(path):
            raise CheckpointError(f"{path} is a folder with a LoRA, not a checkpoint", f"give the LoRA: {inside[0]}")
        raise MissingFileError(
            f"{path} is a folder, but not a Diffusers folder",
            "give a .safetensors or .ckpt file, or a folder with unet, vae and text_encoder in it",
        )
    source: TensorView = FolderTensors(path) if path.is_dir() else open_tensors(path)
    checkpoint = as_checkpoint(path, source)
    if checkpoint is None:
        infos = {name: source.info(name) for name in source}
        raise CheckpointError(f"{path}: {what_it_is(infos)}", "a checkpoint of Stable Diffusion 1, 2 or XL is needed")
    return checkpoint


def as_checkpoint(path: Path, source: TensorView) -> Checkpoint | None:
    """The checkpoint that these tensors are; None if they are not one. Everything that has to know asks here.

    In a file, parts with diffusers' names are found too; see :func:`loraloom.models.translated.translated`.
    """
    view: TensorView = translated(source) if isinstance(source, TensorFile) else source
    family = recognise({name: view.info(name) for name in view})
    return None if family is None else Checkpoint(path, view, family)
