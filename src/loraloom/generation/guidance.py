"""Prompts as the sampler needs them: every text encoded once, changing from step to step, parts joined by AND."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import lcm

import torch
from torch import Tensor

from loraloom.diffusion import objectives
from loraloom.diffusion.samplers import SamplerEntry
from loraloom.generation.loras import BatchLoras
from loraloom.generation.prompts import PromptPlan, parse_attention
from loraloom.generation.settings import GenerateSettings, PromptCompatibility
from loraloom.generation.strength import Strength
from loraloom.models.conditioning import Conditioning, Segment, TextEmbedding
from loraloom.models.family import TextPart
from loraloom.models.loaded import LoadedModel

__all__ = ["Guidance", "ImagePlans", "StepCounter", "TextCache", "calls_per_step", "encoder_widths", "segments_of"]


def calls_per_step(sampler: SamplerEntry, compatibility: PromptCompatibility) -> int:
    """What the web UI counts as steps of prompt schedules: every call, for samplers that make two of them a step.

    Loraloom's rules count the steps that were asked for.
    """
    return 2 if compatibility != "none" and sampler.calls == 2 else 1


def encoder_widths(model: LoadedModel) -> dict[TextPart, int]:
    """How wide the vectors of each text encoder are."""
    return {part: model.text_encoders[part.part].sizes.width for part in model.family.text_parts}


def segments_of(text: str, settings: GenerateSettings) -> list[Segment]:
    """A text as the encoders take it, read by the rules that the settings name."""
    return parse_attention(text, emphasis=settings.emphasis, compatibility=settings.prompt_compatibility)


class TextCache:
    """Conditioning of texts, each a batch of one, encoded when it is first asked for and kept."""

    def __init__(
        self,
        model: LoadedModel,
        settings: GenerateSettings,
        embeddings: Sequence[TextEmbedding],
        size: tuple[int, int],
    ) -> None:
        self._model = model
        self._settings = settings
        self._embeddings = embeddings
        width, height = size
        # Original size, crop and target size as SDXL had them in training: the whole picture, uncropped.
        self._sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=model.device)
        self._known: dict[tuple[object, ...], Conditioning] = {}

    def positive(self, text: str, image: int, loras: BatchLoras) -> Conditioning:
        """The conditioning of a text that is wanted in an image of a batch, as that image's LoRAs make it."""
        key = text, loras.text_key(image)
        if key not in self._known:
            loras.take_text(image)
            settings = self._settings
            encoded = self._model.encode_text(
                [segments_of(text, settings)],
                clip_skip=settings.clip_skip,
                emphasis="ignore" if settings.emphasis == "none" else settings.emphasis,
                comma_backtrack=settings.comma_backtrack,
                embeddings=self._embeddings,
            )
            self._known[key] = encoded.with_sizes(self._sizes) if self._model.family.uses_sizes else encoded
        return self._known[key]

    def negative(self, text: str, image: int, loras: BatchLoras) -> Conditioning:
        """The conditioning of a text that is not wanted."""
        encoded = self.positive(text, image, loras)
        if not self._model.family.uses_sizes or text.strip() or encoded.pooled is None:
            return encoded
        # Captions were dropped as zeros in SDXL's training, not as the encoding of an empty text.
        return Conditioning(torch.zeros_like(encoded.context), torch.zeros_like(encoded.pooled), encoded.sizes)


@dataclass(frozen=True)
class ImagePlans:
    """What one image of a batch follows and avoids."""

    positive: PromptPlan
    negative: PromptPlan

    @property
    def weight(self) -> float:
        """What the weights of the prompt's parts add up to."""
        return sum(part.weight for part in self.positive.parts)

    def needs_negative(self, scale: float) -> bool:
        """Whether guidance at this scale takes anything of the negative prompt: not when all weights add up to 1."""
        return scale * self.weight != 1


class StepCounter:
    """Which step of a schedule a call of the model belongs to.

    By Loraloom's rules the step between the two noise levels that the call's lies between, whatever the sampler does
    in it. The web UI counts calls.
    """

    def __init__(self, sigmas: Tensor, compatibility: PromptCompatibility) -> None:
        self._ends = [float(sigma) * (1 + 1e-6) for sigma in sigmas[1:].tolist()]
        self._counts_calls = compatibility != "none"
        self._calls = 0

    def step(self, sigma: float) -> int:
        """The step, from 1, of the next call, which is at this noise level."""
        self._calls += 1
        if self._counts_calls:
            return self._calls
        return self._by_level(sigma)

    def progress(self, sigma: float) -> float:
        """The share of the steps that is done before the one at this noise level."""
        return (self._by_level(sigma) - 1) / len(self._ends)

    def _by_level(self, sigma: float) -> int:
        return min(1 + sum(end >= sigma for end in self._ends), len(self._ends))


@dataclass(frozen=True)
class _Pass:
    """One call of the U-Net: the row of the batch that each of its inputs is, and their conditioning."""

    images: tuple[int, ...]
    entries: tuple[int, ...]
    conditioning: Conditioning


@dataclass(frozen=True)
class _Round:
    """All calls of one step: first an entry for each image's negative prompt (if any), then those of the parts."""

    passes: tuple[_Pass, ...]
    parts: tuple[tuple[int, int, float], ...]
    """(entry, image, its weight)"""


class Guidance:
    """Classifier-free guidance (2207.12598) of a batch, by one part or several (2206.01714) for each image.

    ``output = negative + scale * sum of weight * (part - negative)``. ``one_pass`` sends all of a step through the
    U-Net together where their lengths allow it; else the negative prompts and the parts go one after another.
    ``needs_unguided``: the sampler asks for the answer to the negative prompt too, at every scale. ``channels``
    (1, C, h, w): what the U-Net of an inpainting model reads besides the latents.
    """

    def __init__(
        self,
        model: LoadedModel,
        texts: TextCache,
        plans: Sequence[ImagePlans],
        strength: Strength,
        loras: BatchLoras,
        *,
        one_pass: bool,
        needs_unguided: bool = False,
        channels: Tensor | None = None,
    ) -> None:
        self._model = model
        self._texts = texts
        self._plans = plans
        self._strength = strength
        self._loras = loras
        self._one_pass = one_pass
        self._channels = channels
        self._with_negative = needs_unguided or any(plan.needs_negative(strength.scale) for plan in plans)
        # Without a negative prompt there is nothing to be guided away from unless the parts make up a whole.
        self._may_skip = all(plan.weight > 0 for plan in plans)
        self._rounds: dict[tuple[tuple[str, ...], ...], _Round] = {}
        with model.using(*(part for part in model.parts if part.startswith("text_encoder"))):
            for image, plan in enumerate(plans):
                for text in plan.positive.texts:
                    texts.positive(text, image, loras)
                if self._with_negative:
                    for text in plan.negative.texts:
                        texts.negative(text, image, loras)

    def denoiser(self, counter: StepCounter, calls: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The function that samplers call: x (B, 4, h, w) at sigma (B,) to clean latents, with guidance and without.

        ``calls``: how many of them make the image.
        """
        model = self._model
        numbers = itertools.count()

        def denoise(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            timesteps = model.schedule.sigma_to_timestep(sigma)
            scaled = x / (1 + sigma.square()).sqrt().view(-1, 1, 1, 1)
            level = float(sigma.max())
            needed = self._strength.needs_negative(next(numbers), calls, level) or not self._may_skip
            step, with_negative = counter.step(level), self._with_negative and needed
            output, unwanted = self._guided(scaled, timesteps, step, with_negative, counter.progress(level))
            clean = objectives.denoised(model.prediction, output, x, sigma)
            return clean, clean if unwanted is None else objectives.denoised(model.prediction, unwanted, x, sigma)

        return denoise

    def _guided(
        self, scaled: Tensor, timesteps: Tensor, step: int, with_negative: bool, progress: float = 0.0
    ) -> tuple[Tensor, Tensor | None]:
        """The guided answer, and that to the negative prompts if they are asked about."""
        asked = self._round(step, with_negative)
        answers: dict[int, Tensor] = {}
        for one in asked.passes:
            rows = list(one.images)
            seen = scaled[rows]
            if self._channels is not None:
                seen = torch.cat([seen, self._channels.to(seen).expand(len(rows), -1, -1, -1)], dim=1)
            output = self._answer(rows, progress, seen, timesteps[rows], one.conditioning)
            answers.update(zip(one.entries, output, strict=True))
        if not with_negative:
            weights = [plan.weight for plan in self._plans]
            total = torch.zeros_like(scaled)
            for entry, image, weight in asked.parts:
                total[image] += weight / weights[image] * answers[entry]
            return total, None
        unwanted = torch.stack([answers[image] for image in range(len(self._plans))])
        wanted = unwanted.clone()
        for entry, image, weight in asked.parts:
            if weight == 1 == len(self._plans[image].positive.parts):
                wanted[image] = answers[entry]
            else:
                wanted[image] += weight * (answers[entry] - unwanted[image])
        return self._strength.combine(wanted, unwanted), unwanted

    def _answer(
        self, rows: list[int], progress: float, seen: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """The U-Net's answer; where LoRAs have masks, one for each of them, put together by the masks."""
        self._loras.take_unet(rows, progress)
        whole = self._model.denoise(seen, timesteps, conditioning)
        answer = whole
        for region, share in self._loras.regions(rows, whole.shape[2:]):
            self._loras.take_unet(rows, progress, region)
            inside = self._model.denoise(seen, timesteps, conditioning)
            answer = answer + share.to(whole) * (inside - whole)
        return answer

    def _round(self, step: int, with_negative: bool) -> _Round:
        positive = [plan.positive.texts_at(step) for plan in self._plans]
        negative = [plan.negative.texts_at(step) for plan in self._plans] if with_negative else []
        key = (*positive, *negative)
        if key not in self._rounds:
            self._rounds[key] = self._made_round(positive, [text for (text,) in negative])
        return self._rounds[key]

    def _made_round(self, positive: Sequence[tuple[str, ...]], negative: Sequence[str]) -> _Round:
        images: list[int] = list(range(len(negative)))
        slots: list[int] = [0] * len(negative)
        conditionings = [self._texts.negative(text, image, self._loras) for image, text in enumerate(negative)]
        parts: list[tuple[int, int, float]] = []

        for number in range(max(map(len, positive))):
            for image, texts in enumerate(positive):
                if number < len(texts):
                    parts.append((len(images), image, self._plans[image].positive.parts[number].weight))
                    images.append(image)
                    slots.append(number + 1)
                    conditionings.append(self._part(image, texts, number))

        lengths = [conditioning.context.shape[1] for conditioning in conditionings]
        joined = self._one_pass and lcm(*lengths) == max(lengths)  # else all would have to grow to share a batch
        groups: dict[tuple[int, int], list[int]] = {}
        for entry, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            group = (0, 0) if joined else (0, length) if self._one_pass else (slot, length)
            groups.setdefault(group, []).append(entry)

        passes = tuple(
            _Pass(
                tuple(images[entry] for entry in entries),
                tuple(entries),
                Conditioning.stack([conditionings[entry] for entry in entries]),
            )
            for entries in groups.values()
        )
        return _Round(passes, tuple(parts))

    def _part(self, image: int, texts: tuple[str, ...], number: int) -> Conditioning:
        """One part's conditioning; the web UI makes those of one prompt equally long, which changes them a little."""
        encoded = [self._texts.positive(text, image, self._loras) for text in texts]
        if self._plans[image].positive.compatibility == "none":
            return encoded[number]
        return encoded[number].padded(max(one.context.shape[1] for one in encoded))
