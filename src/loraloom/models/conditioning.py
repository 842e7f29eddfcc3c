"""Text as the U-Net sees it: chunks of 75 tokens, their weights, and the tensors the text encoders make of them.

Training and generation cut text in the same way, the way of the AUTOMATIC1111 web UI: every 75 tokens are wrapped
in begin and end (77), each chunk is encoded alone, and the results are joined along the token axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import TYPE_CHECKING, Literal

import torch

from loraloom.models.tokenizer import BOS, COMMA, EOS, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BREAK",
    "CHUNK_IDS",
    "CHUNK_TOKENS",
    "Chunk",
    "Conditioning",
    "Emphasis",
    "Segment",
    "Text",
    "TextEmbedding",
    "TextLength",
    "apply_emphasis",
    "measure",
    "tokenise",
]

CHUNK_TOKENS = 75
"""Tokens of text in one chunk."""
CHUNK_IDS = 77
"""Ids of one chunk: begin, 75, end."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a prompt and how much it counts (1 is normal)."""

    text: str
    weight: float = 1.0


BREAK = Segment("BREAK", -1.0)
"""Closes the chunk that it is in; what follows begins a new one."""

Text = str | Sequence[Segment]
"""What can be encoded: a caption, or a prompt parsed into weighted segments."""


Emphasis = Literal["original", "no_norm", "comfy", "ignore"]
"""How the weights of a text act, see :func:`apply_emphasis`."""


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """A textual-inversion embedding: vectors that replace its name in a text."""

    name: str
    ids: tuple[int, ...]
    """The tokens of its name, as they occur in a text."""
    vectors: Mapping[str, Tensor]
    """(n, C) for each text encoder, by part name; n is the same for all of them."""

    @property
    def length(self) -> int:
        """Tokens that it takes in a chunk."""
        return len(next(iter(self.vectors.values())))


@dataclass(frozen=True)
class Chunk:
    """77 ids (begin, up to 75 tokens, end, padding) and the weight of each."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    embeddings: tuple[tuple[int, TextEmbedding], ...] = ()
    """Embeddings and the place of the first vector of each; the ids there mean nothing."""

    @property
    def length(self) -> int:
        """How many of its 75 places are used."""
        return self.ids.index(EOS) - 1

    @property
    def emphasised(self) -> bool:
        """Whether any weight differs from 1."""
        return any(weight != 1.0 for weight in self.weights)

    def padded_with(self, pad: int) -> Chunk:
        """The same chunk with everything after its first end id replaced by ``pad``.

        CLIP-L pads with the end id itself, the OpenCLIP encoders with 0. It is done on ids because 0 is also the
        id of a ``!`` inside a word.
        """
        used = self.ids.index(EOS) + 1
        return replace(self, ids=self.ids[:used] + (pad,) * (len(self.ids) - used))


@dataclass(frozen=True)
class TextLength:
    """How long a text is for the encoders."""

    tokens: int
    """Tokens of the text itself (no begin, end or padding)."""
    chunks: int
    """Chunks of 75 needed to hold them (at least one)."""
    dropped: int
    """Tokens that do not fit into the chunks that are allowed."""


_Piece = tuple[int, float, "TextEmbedding | None"]
"""A token, its weight, and the embedding that begins with it."""


class _ChunkBuilder:
    """Fills chunks token by token. Words are kept together with their phrase: see :func:`tokenise`."""

    def __init__(self, comma_backtrack: int) -> None:
        self.comma_backtrack = comma_backtrack
        self.finished: list[list[_Piece]] = []
        self.current: list[_Piece] = []
        self.after_comma = 0

    def add(self, token: int, weight: float) -> None:
        if len(self.current) == CHUNK_TOKENS:
            self._begin_next(token)
        self.current.append((token, weight, None))
        if token == COMMA:
            self.after_comma = len(self.current)

    def add_embedding(self, embedding: TextEmbedding, weight: float) -> None:
        """All vectors go into one chunk, a new one where this one has too few places."""
        if len(self.current) + embedding.length > CHUNK_TOKENS:
            self.close()
        self.current.append((_PLACE_ID, weight, embedding))
        self.current.extend([(_PLACE_ID, weight, None)] * (embedding.length - 1))

    def _begin_next(self, token: int) -> None:
        """Close a full chunk; a phrase begun at most ``comma_backtrack`` tokens ago moves on to the next one."""
        carried: list[_Piece] = []
        begun = CHUNK_TOKENS - self.after_comma
        if token != COMMA and self.after_comma and begun < self.comma_backtrack:
            carried = self.current[self.after_comma :]
            self.current = self.current[: self.after_comma]
        self.close()
        self.current = carried

    def close(self) -> None:
        self.finished.append(self.current)
        self.current = []
        self.after_comma = 0


_PLACE_ID = 0
"""The id at the places that an embedding's vectors take."""


def tokenise(
    text: Text, tokenizer: Tokenizer, *, comma_backtrack: int = 20, embeddings: Sequence[TextEmbedding] = ()
) -> list[Chunk]:
    """Cut a text into chunks of 77 ids, at least one, padded with the end id.

    A chunk that is full in the middle of a phrase gives back the words after its last comma when that comma is
    at most ``comma_backtrack`` tokens from its end (0: never). Where the tokens of an embedding's name stand in one
    segment, its vectors are put in their place (the longest name that fits); they are never split.
    """
    builder = _ChunkBuilder(comma_backtrack)
    by_start: dict[int, list[TextEmbedding]] = {}
    # Longest first: of two names that begin alike the longer one is meant where it fits.
    for embedding in sorted(embeddings, key=lambda embedding: -len(embedding.ids)):
        by_start.setdefault(embedding.ids[0], []).append(embedding)

    for segment in _segments(text):
        if segment == BREAK:
            builder.close()
            continue
        ids = tuple(tokenizer.encode(segment.text))
        place = 0
        while place < len(ids):
            known = by_start.get(ids[place], ())
            fitting = next((item for item in known if ids[place : place + len(item.ids)] == item.ids), None)
            if fitting is None:
                builder.add(ids[place], segment.weight)
            else:
                builder.add_embedding(fitting, segment.weight)
            place += 1 if fitting is None else len(fitting.ids)

    # An empty text is a chunk of padding, since the U-Net needs something to attend to.
    if builder.current or not builder.finished:
        builder.close()
    return [_chunk(pieces) for pieces in builder.finished]


def _segments(text: Text) -> Iterator[Segment]:
    if isinstance(text, str):
        yield Segment(text)
    else:
        yield from text


def _chunk(pieces: list[_Piece]) -> Chunk:
    padding = CHUNK_TOKENS - len(pieces) + 1
    ids = (BOS, *(token for token, _, _ in pieces), *(EOS,) * padding)
    weights = (1.0, *(weight for _, weight, _ in pieces), *(1.0,) * padding)
    embeddings = tuple((place, embedding) for place, (_, _, embedding) in enumerate(pieces, start=1) if embedding)
    return Chunk(ids, weights, embeddings)


def measure(text: Text, tokenizer: Tokenizer, *, max_chunks: int | None = None) -> TextLength:
    """How many tokens and chunks a text needs, and what is lost when only ``max_chunks`` are allowed."""
    used = [chunk.length for chunk in tokenise(text, tokenizer)]
    dropped = sum(used[max_chunks:]) if max_chunks is not None else 0
    return TextLength(tokens=sum(used), chunks=len(used), dropped=dropped)


def apply_emphasis(
    hidden: Tensor, weights: Tensor, emphasis: Emphasis = "original", empty: Tensor | None = None
) -> Tensor:
    """Make each token's vector count by its weight.

    ``hidden`` is (N, 77, C), ``weights`` (N, 77); each of the N chunks is treated alone, so that a prompt gives the
    same tensor no matter what else is in the batch. ``original``, the web UI's for a single prompt, multiplies and then
    restores the mean of the chunk; ``no_norm`` only multiplies; ``comfy``, ComfyUI's, multiplies the difference from
    the encoding of an empty text, ``empty`` (1, 77, C); ``ignore`` leaves everything as it is.
    """
    if emphasis == "ignore":
        return hidden
    weights = weights.to(hidden.device)
    if emphasis == "comfy":
        if empty is None:
            raise ValueError("this emphasis needs the encoding of an empty text")
        moved = empty + weights[:, :, None].to(hidden.dtype) * (hidden - empty)
        return torch.where((weights != 1.0)[:, :, None], moved, hidden)
    weighted = hidden * weights[:, :, None].to(hidden.dtype)
    if emphasis == "no_norm":
        return weighted
    before = hidden.float().mean(dim=(1, 2), keepdim=True)
    after = weighted.float().mean(dim=(1, 2), keepdim=True)
    restored = weighted * (before / torch.where(after == 0, torch.ones_like(after), after)).to(hidden.dtype)
    return torch.where((weights != 1.0).any(dim=1)[:, None, None], restored, hidden)


@dataclass(frozen=True)
class Conditioning:
    """Encoded text of a batch, and for SDXL the picture sizes that go with it."""

    context: Tensor
    """(B, 77 * chunks, C), what cross-attention reads."""
    pooled: Tensor | None = None
    """(B, D), SDXL: the projected end-of-text vector of the second encoder, from the first chunk."""
    sizes: Tensor | None = None
    """(B, 6) float32, SDXL: original height and width, crop top and left, target height and width, in pixels."""

    def __len__(self) -> int:
        return self.context.shape[0]

    def __getitem__(self, index: int | slice) -> Conditioning:
        """The given samples, still as a batch."""
        rows = slice(index, index + 1 or None) if isinstance(index, int) else index
        return Conditioning(
            self.context[rows],
            None if self.pooled is None else self.pooled[rows],
            None if self.sizes is None else self.sizes[rows],
        )

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Conditioning:
        """On another device, context and pooled in another type (sizes stay float32)."""
        return Conditioning(
            self.context.to(device=device, dtype=dtype),
            None if self.pooled is None else self.pooled.to(device=device, dtype=dtype),
            None if self.sizes is None else self.sizes.to(device=device),
        )

    def padded(self, length: int) -> Conditioning:
        """The context made ``length`` tokens long by repeating its last vector, as the web UI does within a prompt.

        Unlike :meth:`stack`, this changes what the text does a little.
        """
        missing = length - self.context.shape[1]
        return replace(self, context=torch.cat([self.context, self.context[:, -1:].repeat(1, missing, 1)], dim=1))

    def with_sizes(self, sizes: Tensor) -> Conditioning:
        """The same text with SDXL's picture sizes, (B, 6)."""
        return replace(self, sizes=sizes)

    @staticmethod
    def stack(items: Sequence[Conditioning]) -> Conditioning:
        """Join batches. Contexts of different length are repeated, whole, up to a common length.

        A repeated context gives exactly the attention result of the single one (softmax averages equal entries), so a
        caption means the same no matter what else is in the batch. Cutting or padding with blanks would not.
        """
        length = lcm(*(item.context.shape[1] for item in items))
        pooled = [item.pooled for item in items if item.pooled is not None]
        sizes = [item.sizes for item in items if item.sizes is not None]

        # Rows without them would have to be filled with something that the model takes for a size.
        if len(pooled) not in (0, len(items)) or len(sizes) not in (0, len(items)):
            raise ValueError("conditionings with and without pooled vectors or sizes cannot share a batch")
        return Conditioning(
            torch.cat([item.context.repeat(1, length // item.context.shape[1], 1) for item in items]),
            torch.cat(pooled) if pooled else None,
            torch.cat(sizes) if sizes else None,
        )
