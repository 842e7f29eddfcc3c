"""Textual-inversion embeddings in files: vectors that a text encoder reads in the place of a word.

Known layouts: the web UI's ``.pt`` (``string_to_param``) and ``.safetensors`` (``emb_params``, for SDXL ``clip_l`` and
``clip_g``), diffusers' and cloneofsimo's dictionaries of token to vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from loraloom.errors import FileFormatError
from loraloom.formats.entries import show
from loraloom.formats.tensors import open_tensors

__all__ = ["EmbeddingFile", "Encoder", "embedding_of", "read_embedding"]

Encoder = Literal["any", "clip_l", "clip_g"]
_MOST_VECTORS = 75
_MOST_NAMES = 1000
_LEARNED = "string_to_param."
_FORMS = "expected a textual-inversion embedding: string_to_param, emb_params, clip_l with clip_g, or token to vector"


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """Vectors (n, C) in float32 for each text encoder; ``any`` where the file does not say for which."""

    path: Path
    vectors: Mapping[Encoder, Tensor]


def read_embedding(path: Path) -> EmbeddingFile:
    """Read an embedding. Several tokens of one file (cloneofsimo's) are put one after another.

    Raises MissingFileError, FileFormatError (damaged, no embedding, more than 75 vectors) or UnsafeFileError.
    """
    with open_tensors(path) as file:
        if len(file) > _MOST_NAMES:
            raise FileFormatError(f"{path}: holds {len(file)} tensors", _FORMS)
        names = list(file)

        # SDXL's files name their encoders; all others have one table of vectors, whose width says where it belongs.
        if "clip_l" in file or "clip_g" in file:
            vectors: dict[Encoder, Tensor] = {}
            for encoder in ("clip_l", "clip_g"):
                if encoder in file:
                    vectors[encoder] = _vectors(path, encoder, file[encoder])
        else:
            learned = [name for name in names if name.startswith(_LEARNED)]
            chosen = learned[:1] or (["emb_params"] if "emb_params" in file else names)
            vectors = {"any": _joined(path, [_vectors(path, name, file[name]) for name in chosen])}
    return _checked(path, vectors)


def embedding_of(path: Path, word: str, places: Mapping[str, Tensor]) -> EmbeddingFile:
    """One word's vectors by encoder, found in another file (a LoRA's). Raises FileFormatError as reading does."""
    encoders: tuple[Encoder, ...] = ("any", "clip_l", "clip_g")
    return _checked(path, {encoder: _vectors(path, word, places[encoder]) for encoder in encoders if encoder in places})


def _checked(path: Path, vectors: Mapping[Encoder, Tensor]) -> EmbeddingFile:
    if len({len(tensor) for tensor in vectors.values()}) != 1:
        raise FileFormatError(f"{path}: has a different number of vectors for its two text encoders", _FORMS)
    return EmbeddingFile(path, vectors)


def _vectors(path: Path, name: str, tensor: Tensor) -> Tensor:
    rows = tensor[None] if tensor.ndim == 1 else tensor
    if rows.ndim != 2 or not rows.numel() or not rows.is_floating_point():
        raise FileFormatError(f"{path}: {show(name)} is {tensor.dtype} {tuple(tensor.shape)}, no vectors", _FORMS)
    rows = rows.to(torch.float32, copy=True)
    if len(rows) > _MOST_VECTORS:
        raise FileFormatError(f"{path}: has {len(rows)} vectors, a chunk of text holds {_MOST_VECTORS}", _FORMS)
    if not bool(torch.isfinite(rows).all()):
        raise FileFormatError(f"{path}: {show(name)} holds NaN or infinite values", "the embedding is damaged")
    return rows


def _joined(path: Path, tensors: list[Tensor]) -> Tensor:
    if len({tensor.shape[1] for tensor in tensors}) != 1 or sum(map(len, tensors)) > _MOST_VECTORS:
        raise FileFormatError(f"{path}: its tensors are not the vectors of one embedding", _FORMS)
    return torch.cat(tensors)
