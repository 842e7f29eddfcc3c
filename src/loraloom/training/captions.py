"""Captions on their way to the model: which text a draw gets, how long texts are, and their encoding."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch

from loraloom.control import Control, Request, keep_going
from loraloom.data.cache import TensorStore, text_key
from loraloom.data.caption_operations import Moment
from loraloom.data.sample import Sample
from loraloom.events import Listener, Notice, ignore
from loraloom.formats.tensors import bytes_of
from loraloom.generation.prompts import parse_attention
from loraloom.models.conditioning import CHUNK_TOKENS, Conditioning, Text
from loraloom.models.loaded import LoadedModel
from loraloom.training.settings import TrainSettings

__all__ = ["CaptionEncoder", "caption_text", "needed_chunks", "parts_fingerprint", "text_of"]

_MEMORY_BYTES = 2**30
"""What encoded captions may take in memory: over a thousand of SDXL, several thousand of SD 1."""
_TOKENIZER = "clip, chunks of 75, 20 back to a comma"
_BRACKETS = frozenset("()[]\\")


def caption_text(sample: Sample, moment: Moment) -> Text:
    """The caption that the model gets when the sample is shown at ``moment``: plain text, or weighted stretches."""
    return text_of(sample.caption_at(moment), weighted=sample.captions.weighted)


def text_of(caption: str, *, weighted: bool) -> Text:
    """A caption as the encoders take it. Without brackets it stays the text it is, weighted or not."""
    if not weighted or _BRACKETS.isdisjoint(caption):
        return caption
    return tuple(parse_attention(caption))


def needed_chunks(sample: Sample, model: LoadedModel) -> int:
    """Chunks of 75 tokens that every caption this sample can have fits into.

    Tags in another order break at other commas. A full chunk gives back at most 19 tokens to the next, so n chunks
    need at least 76 + 56 (n - 2) tokens.
    """
    length = model.measure_text(text_of(sample.fullest_caption, weighted=sample.captions.weighted))
    if length.tokens <= CHUNK_TOKENS or not (sample.captions.splits or sample.captions.wildcards):
        return length.chunks
    return max(length.chunks, 2 + (length.tokens - CHUNK_TOKENS - 1) // (CHUNK_TOKENS - 19))


class CaptionEncoder:
    """Conditioning of captions: encoded once each while no text encoder is trained, else in every step.

    What was encoded is kept in memory up to a limit, and in files if ``dataset.cache_text_to_disk`` says so.
    ``listener`` hears of the first damaged files; they are written again. Once ``control`` asks for anything, nothing
    more is encoded ahead, so that the step in progress is soon over.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: TrainSettings,
        *,
        chunks: int,
        trained: bool,
        listener: Listener = ignore,
        control: Control = keep_going,
    ) -> None:
        self._model = model
        self._listener = listener
        self._control = control
        self._damage_is_told = False
        self._clip_skip = settings.clip_skip
        self._chunks = chunks
        self._trained = trained
        self._known = TensorStore(None, max_bytes=_MEMORY_BYTES)
        folder = None if trained else settings.dataset.text_folder
        self._kept = None if folder is None else TensorStore(folder)
        parts = [part.part for part in model.family.text_parts]
        self._encoder_key = ""
        if folder is not None:
            self._encoder_key = (
                f"{_TOKENIZER} {parts_fingerprint(model, parts, f'{model.compute} {settings.quantize}')}"
            )

    def __call__(self, texts: Sequence[Text], upcoming: Callable[[], Iterable[Text]] = tuple) -> Conditioning:
        """Encode the texts of a batch. Where one is missing, those that ``upcoming`` gives are encoded with it."""
        if self._trained:
            return self._model.encode_text(texts, clip_skip=self._clip_skip, max_chunks=self._chunks)
        found = {self._key(text): self._read(self._key(text)) for text in texts}
        if any(encoded is None for encoded in found.values()):
            found.update(self.remember(texts, upcoming()))
        known = [found[self._key(text)] for text in texts]
        return Conditioning.stack([encoded for encoded in known if encoded is not None]).to(self._model.device)

    def remember(self, texts: Iterable[Text], ahead: Iterable[Text] = ()) -> dict[str, Conditioning]:
        """Encode the texts that are not known yet, in one visit to the text encoder; what they are, by key.

        Those ``ahead`` are not needed yet, and may be left for another time.
        """
        needed = {self._key(text): text for text in texts}
        by_key = {**needed, **{self._key(text): text for text in ahead}}
        found = {key: self._read(key) for key in by_key}
        self._tell_damage()
        result = {key: encoded for key, encoded in found.items() if encoded is not None}

        new = [(key, text) for key, text in by_key.items() if key not in result]
        if not new:
            return result

        # Texts ahead may wait: whoever asks to stop should not wait for captions of steps that are not taken now.
        with torch.no_grad(), self._model.using("text_encoder", "text_encoder_2"):
            for key, text in new:
                if key not in needed and self._control() is not Request.GO:
                    break
                encoded = self._model.encode_text([text], clip_skip=self._clip_skip, max_chunks=self._chunks)
                result[key] = encoded.to(torch.device("cpu"))
                self._write(key, result[key])
        return result

    def _tell_damage(self) -> None:
        if self._damage_is_told or self._kept is None or not self._kept.damaged:
            return
        self._damage_is_told = True
        count = len(self._kept.damaged)
        rest = "was damaged: it is encoded again" if count == 1 else "were damaged: they are encoded again"
        self._listener(Notice(f"{count} of the encoded captions in {self._kept.folder} {rest}", "warning"))

    def _key(self, text: Text) -> str:
        weighted = not isinstance(text, str)
        caption = text if isinstance(text, str) else "\n".join(f"{part.weight!r} {part.text}" for part in text)
        return text_key(
            caption,
            encoder_key=self._encoder_key,
            weighted=weighted,
            chunks=self._chunks,
            clip_skip=self._clip_skip,
        )

    def _read(self, key: str) -> Conditioning | None:
        tensors = self._known.read(key)
        if tensors is None and self._kept is not None:
            tensors = self._kept.read(key)
            if tensors is not None:
                self._known.write(key, tensors)
        return None if tensors is None else Conditioning(tensors["context"], tensors.get("pooled"))

    def _write(self, key: str, encoded: Conditioning) -> None:
        tensors = {"context": encoded.context}
        if encoded.pooled is not None:
            tensors["pooled"] = encoded.pooled
        self._known.write(key, tensors)
        if self._kept is not None:
            self._kept.write(key, tensors)


def parts_fingerprint(model: LoadedModel, parts: Sequence[str], compute: str) -> str:
    """A hash of all weights of some parts of the checkpoint, and of the type they compute in."""
    digest = hashlib.sha256(compute.encode())
    for part in parts:
        prefix = model.prefixes[part]
        for name in sorted(name for name in model.checkpoint if name.startswith(prefix)):
            tensor = model.checkpoint[name]
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(bytes_of(tensor))
    return digest.hexdigest()
