"""How long a prompt is for the text encoders, counted by the code that paints with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraloom.errors import MissingFileError, nearest
from loraloom.events import Listener, ignore
from loraloom.generation.embeddings import load_embeddings
from loraloom.generation.guidance import segments_of
from loraloom.generation.prompts import PromptReader, plan_prompt
from loraloom.generation.settings import GenerateSettings
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.conditioning import BREAK, CHUNK_TOKENS, Chunk, tokenise
from loraloom.models.family import FAMILIES, TextPart
from loraloom.models.tokenizer import Tokenizer, clip_tokenizer

__all__ = ["TextTokens", "count_tokens", "longest"]


@dataclass(frozen=True)
class TextTokens:
    """One text that a prompt is for some of the steps."""

    is_negative: bool
    part: int
    """Which of the parts joined by AND, from 1."""
    weight: float
    steps: tuple[int, int]
    """The first and the last step that it counts for."""
    used: int
    """Tokens, with the places that BREAK or an embedding leaves empty, as the web UI counts them."""
    room: int
    """Tokens that its chunks hold: 75 each."""
    chunks: tuple[str, ...]
    """What each chunk says, as the encoders read it; an embedding as ``<name>``."""


def count_tokens(model: str, settings: GenerateSettings, *, listener: Listener = ignore) -> list[TextTokens]:
    """The texts of the settings' prompts with their lengths; the negative prompt's after the prompt's.

    ``model``: the path of a checkpoint or the name of a family (embeddings are then taken whatever their width).
    What is drawn at random is drawn for ``settings.seed`` (0 for -1).
    """
    prompt = PromptReader(settings).read(max(settings.seed, 0))
    rules = settings.prompt_compatibility
    plans = [
        plan_prompt(text, settings.steps, is_negative=is_negative, compatibility=rules)
        for text, is_negative in ((prompt.text, False), (prompt.negative_text, True))
    ]
    tokenizer = clip_tokenizer()
    texts = [text for plan in plans for text in plan.texts]
    embeddings, _ = load_embeddings(texts, settings.embedding_folders, tokenizer, _widths(model), listener)
    found = []
    for plan, is_negative in zip(plans, (False, True), strict=True):
        for number, part in enumerate(plan.parts, start=1):
            first = 1
            for state in part.states:
                segments = segments_of(state.text, settings)
                chunks = tokenise(segments, tokenizer, comma_backtrack=settings.comma_backtrack, embeddings=embeddings)
                room = CHUNK_TOKENS * len(chunks)
                used = room if segments[-1] == BREAK else room - CHUNK_TOKENS + chunks[-1].length
                said = tuple(_said(chunk, tokenizer) for chunk in chunks)
                steps = (first, state.end)
                found.append(TextTokens(is_negative, number, part.weight, steps, used, room, said))
                first = state.end + 1
    return found


def _widths(model: str) -> dict[TextPart, int | None]:
    if model in FAMILIES:
        family = FAMILIES.load(model)()
        return dict.fromkeys(family.text_parts)
    path = Path(model)
    if not path.exists():
        close = nearest(model, FAMILIES)
        known = ", ".join(FAMILIES)
        raise MissingFileError(
            f"{model} is neither a checkpoint nor a family",
            f"did you mean {close[0]!r}?" if close else f"give a path, or one of {known}",
        )
    checkpoint = open_checkpoint(path)
    infos = checkpoint.infos
    return {part: part.width(infos) for part in checkpoint.family.text_parts}


def _said(chunk: Chunk, tokenizer: Tokenizer) -> str:
    pieces: list[str] = []
    start = 1
    for place, embedding in chunk.embeddings:
        pieces += [tokenizer.decode(chunk.ids[start:place]), f"<{embedding.name}>"]
        start = place + embedding.length
    pieces.append(tokenizer.decode(chunk.ids[start : 1 + chunk.length]))
    return " ".join(piece for piece in pieces if piece)


def longest(texts: Sequence[TextTokens]) -> TextTokens:
    """The text that needs most."""
    return max(texts, key=lambda text: (text.room, text.used))
