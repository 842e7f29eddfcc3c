"""Tensors of files that use other names, found under the checkpoint's own; nothing is read before it is asked for.

Diffusers' names come in folders, and in single files whose parts were put together without translating all of them:
most often the attention of the VAE (``mid.attn_1.to_q``, a matrix instead of a 1x1 convolution).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import MappingProxyType

from torch import Tensor

from loraloom.errors import FileFormatError
from loraloom.formats.tensors import TensorFile, TensorInfo
from loraloom.models.family import FAMILIES, Family, Infos
from loraloom.models.names import PartKind, checkpoint_shape, checkpoint_tensor, pairs_from_diffusers

__all__ = ["Part", "Stored", "TranslatedTensors", "translated"]

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Stored:
    """One checkpoint tensor: what it will be, and how to make it."""

    info: TensorInfo
    make: Callable[[Callable[[str], Tensor]], Tensor]
    """Given how to get the tensors of the part by name."""
    part: Part | None = None
    """Where those are; None where it is made from nothing."""
    sources: tuple[str, ...] = ()

    def load(self) -> Tensor:
        """The tensor in memory of its own."""
        return self.make(self.part.load if self.part else _nothing)

    def mapped(self) -> Tensor:
        """The tensor as a view of the file where that is possible; it must not be changed."""
        return self.make(self.part.mapped if self.part else _nothing)

    def check(self) -> None:
        """Read it against the checksums that its file carries; FileFormatError if one differs."""
        if self.part is not None:
            for source in self.sources:
                file, name = self.part.places[source]
                file.check(name)


def _nothing(name: str) -> Tensor:
    raise KeyError(name)


class Part:
    """The tensors of one part of a model: for each of their names the file, and the name in the file."""

    def __init__(self, label: str, places: Mapping[str, tuple[TensorFile, str]]) -> None:
        self.label = label
        self.places = dict(places)
        self.shapes: Shapes = {name: file.info(key).shape for name, (file, key) in self.places.items()}

    def load(self, name: str) -> Tensor:
        """A tensor in memory of its own."""
        file, key = self.places[name]
        return file[key]

    def mapped(self, name: str) -> Tensor:
        """A tensor as a view of its file; it must not be changed."""
        file, key = self.places[name]
        return file.mapped(key)

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor."""
        file, key = self.places[name]
        return file.info(key)

    def stored(self, kind: PartKind, prefix: str) -> dict[str, Stored]:
        """The part's tensors under checkpoint names. Raises FileFormatError where some of a group are missing."""
        pairs = sorted(pairs_from_diffusers(kind, self.shapes), key=lambda pair: pair.checkpoint)
        found = {}
        for name, group in groupby(pairs, key=lambda pair: pair.checkpoint):
            sources = list(group)
            if len(sources) != sources[0].count:
                raise FileFormatError(
                    f"{self.label}: tensors that make up {name} are missing, or there twice", "the model is incomplete"
                )
            info = TensorInfo(self.info(sources[0].diffusers).dtype, checkpoint_shape(sources, self.shapes))
            names = tuple(pair.diffusers for pair in sources)
            found[prefix + name] = Stored(info, partial(checkpoint_tensor, sources), self, names)
        return found


# ------------------------------------------------------------------------------------------------ single files


class TranslatedTensors(Mapping[str, Tensor]):
    """A single file seen under the checkpoint's own names; tensors that have them already are the file's own."""

    def __init__(self, file: TensorFile, made: Mapping[str, Stored], replaced: set[str]) -> None:
        self.metadata = file.metadata
        self.extras = file.extras
        self.translated = tuple(made)
        """Those that have other names in the file."""
        self._file = file
        self._made = dict(made)
        self._names = [name for name in file if name not in replaced] + list(made)
        self._known = set(self._names)

    def __getitem__(self, name: str) -> Tensor:
        return self._made[name].load() if name in self._made else self._file[self._own(name)]

    def mapped(self, name: str) -> Tensor:
        """A tensor as a view of the file where that is possible; it must not be changed."""
        return self._made[name].mapped() if name in self._made else self._file.mapped(self._own(name))

    def check(self, name: str) -> None:
        """Read a tensor against the checksum that the file carries for it; FileFormatError if it differs."""
        if name in self._made:
            self._made[name].check()
        else:
            self._file.check(self._own(name))

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor, without touching its data."""
        return self._made[name].info if name in self._made else self._file.info(self._own(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def _own(self, name: str) -> str:
        if name not in self._known:
            raise KeyError(name)
        return name


def translated(file: TensorFile) -> TensorFile | TranslatedTensors:
    """The file under the checkpoint's own names; the file itself where it has those already.

    Raises FileFormatError where a tensor is there under two names, or one of several that make up another is missing.
    """
    infos = {name: file.info(name) for name in file}
    made: dict[str, Stored] = {}
    replaced: set[str] = set()
    for kind, found, own in _foreign_parts(infos):
        places = {name.removeprefix(found): (file, name) for name in infos if name.startswith(found)}
        for name, stored in Part(str(file.path), places).stored(kind, own).items():
            sources = {found + source for source in stored.sources}
            if sources != {name}:
                made[name] = stored
                replaced |= sources
    return TranslatedTensors(file, made, replaced) if made else file


_UNET, _VAE = "model.diffusion_model.", "first_stage_model."
_OTHER_VAE_NAME = re.compile(
    r"(?:en|de)coder\.(?:mid\.attn_\d+\.(?!(?:norm|[qkv]|proj_out)\.)|mid_block|(?:down|up)_blocks)\.?"
)
# What only a whole part has: a LoRA's layers have the names of many others.
_OF_A_UNET = ("conv_in.weight", "time_embedding.linear_1.weight")
_OF_A_VAE = ("encoder.conv_in.weight", "decoder.conv_in.weight")
_TABLE = "embeddings.token_embedding.weight"
_TEXT_FOLDERS = MappingProxyType(
    {
        "text_encoder": ("text_encoder.", "text_encoders.clip_l."),
        "text_encoder_2": ("text_encoder_2.", "text_encoders.clip_g."),
    }
)


def _foreign_parts(infos: Infos) -> Iterator[tuple[PartKind, str, str]]:
    """(kind, prefix in the file, prefix in a checkpoint) of each part with names that a checkpoint does not have."""
    for prefix in (_UNET, "unet."):
        if all(prefix + name in infos for name in _OF_A_UNET):
            yield "unet", prefix, _UNET
    for prefix in (_VAE, "vae."):
        other = any(name.startswith(prefix) and _OTHER_VAE_NAME.match(name, len(prefix)) for name in infos)
        if other and any(prefix + name in infos for name in _OF_A_VAE):
            yield "vae", prefix, _VAE

    # The table of tokens is the one tensor by which a text encoder is found, however its parts are named.
    for part in _family(infos).text_parts:
        own = part.prefixes[0]
        stem = own.removesuffix("text_model.").removesuffix("transformer.").removesuffix("model.")
        for folder in (stem, *_TEXT_FOLDERS[part.part]):
            for inside in ("transformer.", "model.", ""):
                found = folder + inside
                prefixes = [found + model for model in ("text_model.", "") if found + model + _TABLE in infos]
                if prefixes and prefixes[0] not in part.prefixes:
                    yield part.encoder, found, own


def _family(infos: Infos) -> Family:
    """The family of a U-Net in either naming: only SDXL's reads sizes, and only SD 2's projects without
    convolutions."""
    start = tuple(prefix + end for prefix in (_UNET, "unet.") for end in ("label_emb.", "add_embedding."))
    if any(name.startswith(start) for name in infos):
        name = "sdxl"
    else:
        linear = any(
            name.startswith((_UNET, "unet.")) and name.endswith("proj_in.weight") and len(info.shape) == 2
            for name, info in infos.items()
        )
        name = "sd2" if linear else "sd1"
    family: Family = FAMILIES.load(name)()
    return family
