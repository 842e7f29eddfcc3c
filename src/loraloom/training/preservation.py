"""Keeping what the checkpoint knows: which images of a batch are to be answered as the checkpoint alone would.

Two ways. For a regularization image the target is the checkpoint's own answer instead of the noise. For a training
image the model is asked once more, with the class in place of the trigger word, and that answer is to stay what it
was; no regularization images are needed (the idea is from ai-toolkit, there "differential output preservation").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from loraloom.errors import SettingsError
from loraloom.models.conditioning import Conditioning, Text
from loraloom.models.loaded import LoadedModel
from loraloom.training.captions import text_of
from loraloom.training.settings import TrainSettings
from loraloom.training.step import Batch, Preserved, without_adapters
from loraloom.training.trained import View

__all__ = ["Preservation", "check_trigger", "class_caption", "class_chunks"]


def class_caption(caption: str, trigger: str, name: str) -> str | None:
    """The caption with the class ``name`` in place of every ``trigger``; None when the trigger is not in it.

    Whole words only, in any case: ``cat`` is not found in ``category``.
    """
    pattern = re.compile(rf"(?<!\w){re.escape(trigger.strip())}(?!\w)", re.IGNORECASE)
    changed, count = pattern.subn(lambda _: name, caption)
    return changed if count else None


def check_trigger(settings: TrainSettings, captions: Sequence[str]) -> list[str]:
    """Notices about captions of training images in which ``objective.preserve_class`` finds no trigger word.

    SettingsError when no caption has it.
    """
    objective = settings.objective
    if not objective.preserve_class:
        return []
    trigger = _trigger(settings)
    without = [caption for caption in captions if class_caption(caption, trigger, objective.preserve_class) is None]
    if captions and len(without) == len(captions):
        raise SettingsError(
            [f"objective.preserve_class: no caption has the trigger word {trigger!r} (the first is {captions[0]!r})"],
            "set objective.preserve_trigger to the word that is in the captions",
        )
    if not without:
        return []
    return [
        f"{len(without)} of {len(captions)} captions do not have the trigger word {trigger!r}: "
        f"objective.preserve_class does nothing for them (the first is {without[0]!r})"
    ]


def class_chunks(settings: TrainSettings, captions: Sequence[str], model: LoadedModel) -> int:
    """Chunks of 75 tokens that the longest caption needs with the class in place of the trigger word; 0 without any."""
    name = settings.objective.preserve_class
    texts = [class_caption(caption, _trigger(settings), name) for caption in captions] if name else []
    return max((model.measure_text(text).chunks for text in texts if text is not None), default=0)


@dataclass(frozen=True)
class Preservation:
    """Adds to batches what the checkpoint alone is to be asked."""

    settings: TrainSettings
    encode: Callable[[Sequence[Text]], Conditioning]
    """Texts to conditioning, on the model as it is at the moment."""
    attachment: View
    text_is_trained: bool

    def add_to(
        self,
        batch: Batch,
        captions: Sequence[str],
        is_regularization: Sequence[bool],
        *,
        is_weighted: Sequence[bool] = (),
    ) -> Batch:
        """The batch with the questions that its images call for; the batch itself when there are none.

        ``is_weighted``: whose captions may hold ``(emphasis:1.2)``; nobody's when it is empty.
        """
        objective = self.settings.objective
        weighted = list(is_weighted) or [False] * len(captions)

        if objective.preserve_regularization:
            rows = [row for row, regularization in enumerate(is_regularization) if regularization]
            if rows:
                texts = [text_of(captions[row], weighted=weighted[row]) for row in rows]
                batch = replace(batch, regularization=self._preserved(batch, rows, texts, again=False))

        # A regularization image is of the class already: there is no trigger in its caption to be replaced.
        if objective.preserve_class:
            changed = [class_caption(text, _trigger(self.settings), objective.preserve_class) for text in captions]
            pairs = [
                (row, text)
                for row, (text, regularization) in enumerate(zip(changed, is_regularization, strict=True))
                if text is not None and not regularization
            ]
            if pairs:
                rows = [row for row, _ in pairs]
                texts = [text_of(text, weighted=weighted[row]) for row, text in pairs]
                batch = replace(batch, preserved=self._preserved(batch, rows, texts, again=True))
        return batch

    def _preserved(self, batch: Batch, rows: list[int], texts: list[Text], *, again: bool) -> Preserved:
        """``again``: the texts are new ones, to be asked of the adapted model too."""
        asked = _with_sizes_of(self.encode(texts), batch, rows) if again else _rows(batch.conditioning, rows)
        if not self.text_is_trained:
            return Preserved(rows, asked, asked)
        with torch.no_grad(), without_adapters(self.attachment):
            return Preserved(rows, asked, _with_sizes_of(self.encode(texts), batch, rows))


def _trigger(settings: TrainSettings) -> str:
    return settings.objective.preserve_trigger or settings.saving.trigger


def _rows(conditioning: Conditioning, rows: list[int]) -> Conditioning:
    return Conditioning(
        conditioning.context[rows],
        None if conditioning.pooled is None else conditioning.pooled[rows],
        None if conditioning.sizes is None else conditioning.sizes[rows],
    )


def _with_sizes_of(conditioning: Conditioning, batch: Batch, rows: list[int]) -> Conditioning:
    sizes = batch.conditioning.sizes
    return conditioning if sizes is None else conditioning.with_sizes(sizes[rows])
