"""From draws to a batch: latents sampled from the cache, captions as they are at that moment, weights, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from loraloom.adapters.adapter import Rows
from loraloom.data.batches import Draw
from loraloom.data.cache import LatentCache
from loraloom.data.caption_operations import Moment
from loraloom.data.masks import MaskCache
from loraloom.models.conditioning import Text
from loraloom.models.loaded import LoadedModel
from loraloom.randomness import normal
from loraloom.training.captions import CaptionEncoder, caption_text, text_of
from loraloom.training.preservation import Preservation
from loraloom.training.settings import TrainSettings
from loraloom.training.step import Batch, Part, prior_weight
from loraloom.training.steps import Share, StepPlan

__all__ = ["BatchMaker", "size_conditioning"]

UPCOMING_BATCHES = 64
"""Batches whose captions are encoded together where the text encoder has to be fetched for it."""


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batches of a run; all that is random in one follows from the seed and the draw."""

    settings: TrainSettings
    model: LoadedModel
    cache: LatentCache
    encode: CaptionEncoder
    preservation: Preservation
    plan: StepPlan
    chunks: int
    """Of 75 tokens, at most, of a caption."""
    masks: MaskCache = field(default_factory=MaskCache)

    def batch(self, epoch: int, draws: Sequence[Draw], step: int, rows: Sequence[int] | None = None) -> Batch:
        """The batch of these draws (of one bucket) in the ``step``-th step, from 0, of this epoch, from 0.

        ``rows``: only those of the draws, with whatever they would have got in the whole batch.
        """
        seed, device, whole = self.settings.seed, self.model.device, draws
        if rows is not None:
            draws = [whole[row] for row in rows]

        # Draws are keyed by picture and epoch, not by place: an image gets the same noise whatever is beside it.
        keys = _keys(epoch, draws)
        latents = []
        for draw, key in zip(draws, keys, strict=True):
            mean, std = self.cache.get(draw.sample, draw.flipped, draw.variant)
            latents.append(mean + std * normal(mean.shape, seed, "posterior", *key))

        captions = [draw.sample.caption_at(self._moment(epoch, draw, step)) for draw in draws]
        texts = [text_of(c, weighted=d.sample.captions.weighted) for c, d in zip(captions, draws, strict=True)]
        conditioning = self.encode(texts, lambda: self._upcoming_texts(epoch, whole, step))
        sizes = torch.tensor([size_conditioning(draw) for draw in draws], dtype=torch.float32, device=device)
        weight = prior_weight(self.settings, step, self.plan.total_steps)
        regularization = [draw.sample.is_regularization for draw in draws]
        weights = [
            draw.sample.concept.loss_weight * (weight if draw.sample.is_regularization else 1.0) for draw in draws
        ]

        batch = Batch(
            latents=torch.stack(latents).to(device),
            conditioning=conditioning.with_sizes(sizes),
            weights=torch.tensor(weights, device=device),
            keys=keys,
            masks=self._masks(draws, latents),
            part=None if rows is None or len(rows) == len(whole) else Part(_keys(epoch, whole), tuple(rows)),
        )
        weighted = [draw.sample.captions.weighted for draw in draws]
        return self.preservation.add_to(batch, captions, regularization, is_weighted=weighted)

    def dropout_rows(self, epoch: int, share: Share, step: int) -> tuple[Rows | None, Rows | None]:
        """Where the rows of a part of a batch are in the whole: those of the U-Net, and those of the text encoders.

        A text encoder has a row for each chunk of 75 tokens. None where nothing depends on it.
        """
        adapter = self.settings.adapter
        if share.is_whole or not (adapter.dropout or adapter.rank_dropout):
            return None, None
        chosen = Rows(share.rows, len(share.batch))
        if not self.preservation.text_is_trained:
            return chosen, None
        texts = [caption_text(draw.sample, self._moment(epoch, draw, step)) for draw in share.batch]
        counts = [min(self.model.measure_text(text).chunks, self.chunks) for text in texts]
        firsts = list(accumulate(counts, initial=0))
        chunks = [chunk for row in share.rows for chunk in range(firsts[row], firsts[row + 1])]
        return chosen, Rows(tuple(chunks), firsts[-1])

    def _moment(self, epoch: int, draw: Draw, step: int) -> Moment:
        return Moment(
            self.settings.seed,
            epoch=epoch,
            occurrence=draw.occurrence,
            step=step,
            total_steps=self.plan.total_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
        )

    def _upcoming_texts(self, epoch: int, draws: Sequence[Draw], step: int) -> list[Text]:
        """Captions that come next. With low_memory the text encoder travels to the device, so it is used for many."""
        if not self.settings.low_memory:
            return []
        batches = [batch for batches in self.plan.epoch_batches(epoch) for batch in batches]
        here = next(index for index, batch in enumerate(batches) if draws[0] in batch)
        coming = [draw for batch in batches[here : here + UPCOMING_BATCHES] for draw in batch]
        return [caption_text(draw.sample, self._moment(epoch, draw, step)) for draw in coming]

    def _masks(self, draws: Sequence[Draw], latents: Sequence[Tensor]) -> Tensor | None:
        """(B, 1, h, w), None where every picture of the batch is learned whole."""
        if not any(draw.sample.has_mask for draw in draws):
            return None
        height, width = latents[0].shape[-2:]
        masks = [
            self.masks.get(draw.sample, flipped=draw.flipped, variant=draw.variant, size=(height, width))
            for draw in draws
        ]
        return torch.stack(masks)[:, None].to(self.model.device)


def _keys(epoch: int, draws: Sequence[Draw]) -> list[tuple[int | str, ...]]:
    return [(epoch, draw.sample.identity, draw.occurrence) for draw in draws]


def size_conditioning(draw: Draw) -> tuple[int, int, int, int, int, int]:
    """SDXL's (original height, width, crop top, left, target height, width); Podell et al., arXiv:2307.01952."""
    sample, (top, left) = draw.sample, draw.sample.fit_of(draw.variant).crop
    (width, height), (target_width, target_height) = sample.size, sample.bucket
    return height, width, top, left, target_height, target_width
