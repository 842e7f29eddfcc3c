"""Textual-inversion embeddings that a prompt names: found in folders, read, and checked against the model."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from loraloom.events import Listener, Notice, ignore
from loraloom.formats.embedding_file import EmbeddingFile, Encoder, read_embedding
from loraloom.models.conditioning import TextEmbedding
from loraloom.models.family import TextPart
from loraloom.models.tokenizer import Tokenizer

__all__ = ["embedding_files", "load_embeddings"]

_SUFFIXES = (".safetensors", ".pt", ".bin")  # in the order of preference for files of one name
_ENCODERS: Mapping[str, Encoder] = {"clip": "clip_l", "open_clip": "clip_g"}


def embedding_files(folders: Sequence[Path]) -> dict[str, Path]:
    """Every embedding under the folders by its name, the file's without suffix; earlier folders win.

    A second suffix is not a part of the name: ``style.ti.pt`` is ``style``.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        paths = [path for path in folder.expanduser().rglob("*") if path.suffix.lower() in _SUFFIXES]
        for path in sorted(paths, key=lambda path: (_SUFFIXES.index(path.suffix.lower()), path.as_posix())):
            if path.is_file():
                name = path.stem.removesuffix(".ti")
                found.setdefault(unicodedata.normalize("NFC", name), path)
    return found


def load_embeddings(
    texts: Iterable[str],
    folders: Sequence[Path],
    tokenizer: Tokenizer,
    widths: Mapping[TextPart, int | None],
    listener: Listener = ignore,
    *,
    brought: Mapping[str, EmbeddingFile] | None = None,
) -> tuple[tuple[TextEmbedding, ...], dict[str, Path]]:
    """The embeddings whose names stand in one of the texts, and the file of each that has one of its own.

    No other file is opened.

    A name is found by its tokens, so case does not matter, and part of a word is not a name. ``widths``: of each text
    encoder of the model, None where any will do. ``brought``: words that LoRAs bring, which win over files of that
    name. An embedding made for other encoders causes a warning and stays text, as in the web UI; FileFormatError for a
    file that cannot be read.
    """
    own = brought or {}
    files = {**embedding_files(folders), **{word: file.path for word, file in own.items()}}
    spoken = [tokenizer.encode(text) for text in texts] if files else []
    used: list[TextEmbedding] = []
    paths: dict[str, Path] = {}

    # A folder may hold thousands of them: only those that are named are opened.
    for name, path in files.items():
        ids = tokenizer.encode(name)
        if not ids or not any(_contains(text, ids) for text in spoken):
            continue
        file = own[name] if name in own else read_embedding(path)
        fitting = _fitting(file, widths)
        if isinstance(fitting, str):
            listener(Notice(f"the embedding {name!r} ({path}) is read as text: {fitting}", "warning"))
            continue

        used.append(TextEmbedding(name, tuple(ids), fitting))
        if name not in own:
            paths[name] = path
    return tuple(used), paths


def _contains(text: list[int], ids: list[int]) -> bool:
    return any(text[start : start + len(ids)] == ids for start in range(len(text) - len(ids) + 1))


def _fitting(file: EmbeddingFile, widths: Mapping[TextPart, int | None]) -> dict[str, Tensor] | str:
    """The vectors by text encoder, or why they do not fit the model's."""
    fitting: dict[str, Tensor] = {}
    for part, width in widths.items():
        own: Encoder = _ENCODERS[part.encoder]
        vectors = file.vectors.get(own) if len(widths) > 1 or "any" not in file.vectors else file.vectors["any"]
        if vectors is not None and width in (None, vectors.shape[1]):
            fitting[part.part] = vectors
    if len(fitting) == len(widths) == len(file.vectors):
        return fitting
    made_for = " and ".join(str(vectors.shape[1]) for vectors in file.vectors.values())
    return f"its vectors are {made_for} wide, the model's {' and '.join(map(str, widths.values()))}"
