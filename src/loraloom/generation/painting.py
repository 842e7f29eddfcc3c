"""The images of some settings, planned once: what each is painted from, and the passes that all of them take."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraloom.events import Listener, Notice
from loraloom.generation.init_image import InitImage, prepare_init_image
from loraloom.generation.live_merge import LiveMerge, merges
from loraloom.generation.loras import AppliedLora, BatchLoras, LoraStore
from loraloom.generation.noise import ImageSeed
from loraloom.generation.passes import Pass, Step, hires_settings, hires_size, plan_passes, sample, steps_taken
from loraloom.generation.prompts import ImagePrompt, LoraTag, PromptReader
from loraloom.generation.sampling import image_seeds, plan_of
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.without_effect import without_effect
from loraloom.models.loaded import LoadedModel

__all__ = ["Job", "Painting", "Wanted", "image_size", "plan_painting", "with_seeds"]

Wanted = tuple[str, str, int]
"""Prompt, negative prompt and seed of an image."""


@dataclass(frozen=True)
class Job:
    """One image to be made: for each pass its prompts and its LoRAs, and its seed."""

    prompts: tuple[ImagePrompt, ...]
    loras: tuple[tuple[AppliedLora, ...], ...]
    seed: ImageSeed

    @property
    def prompt(self) -> ImagePrompt:
        """The prompts that are written into the image: those of the first pass."""
        return self.prompts[0]

    def loras_of_all(self) -> list[AppliedLora]:
        """The LoRAs of the first pass, then those that only a later one has."""
        first, *later = self.loras
        return [*first, *(lora for loras in later for lora in loras if lora not in first)]


@dataclass(frozen=True)
class Painting:
    """Everything that is known before the first step."""

    model: LoadedModel
    settings: tuple[GenerateSettings, ...]
    """Of each pass."""
    size: tuple[int, int]
    """Width and height in pixels of the first pass."""
    jobs: tuple[Job, ...]
    init: InitImage | None
    store: LoraStore

    @property
    def steps(self) -> int:
        """Steps of an image in all passes."""
        return sum(map(steps_taken, self.settings))

    def batches(self) -> Iterator[tuple[int, Sequence[Job]]]:
        """The images made at once, and the number of the first of them."""
        one_at_a_time = any(plan_of(settings).entry.one_at_a_time for settings in self.settings)
        size = 1 if one_at_a_time else self.settings[0].batch_size
        for first in range(0, len(self.jobs), size):
            yield first, self.jobs[first : first + size]

    @contextmanager
    def merged(self, listener: Listener) -> Iterator[bool]:
        """LoRAs in the weights for as long as all images take, where that is asked for or pays; whether they are."""
        settings = self.settings[0]
        images = [loras for job in self.jobs for loras in job.loras]
        in_weights, reason = merges(self.model, settings, images, self.steps * len(self.jobs))
        if reason and settings.lora_mode == "merge":
            listener(Notice(f"lora_mode=merge: LoRAs act beside the weights, because {reason}", "warning"))
        if not in_weights:
            yield False
            return

        listener(Notice("LoRAs are merged into the weights, in memory, until the last image (lora_mode)"))
        with LiveMerge(self.model).on(images[0]):
            yield True

    def passes(self, listener: Listener) -> tuple[Pass, ...]:
        """The passes that all images take, with their prompts planned. Raises FileError for embeddings."""
        each = []
        for number, settings in enumerate(self.settings):
            prompts = [job.prompts[number] for job in self.jobs]
            each.append((settings, prompts, [lora for job in self.jobs for lora in job.loras[number]]))
        return plan_passes(self.model, each, self.size, self.init, listener)

    @torch.no_grad()
    def paint(
        self, batch: Sequence[Job], passes: Sequence[Pass], step: Step, listener: Listener, *, in_weights: bool
    ) -> Tensor:
        """Latents (B, 4, h, w) of a batch after all passes; ``step`` counts the steps of all of them."""
        latents: Tensor | None = None
        taken = 0
        for number, one in enumerate(passes):
            # What is in the weights already must not act beside them too.
            loras = [() if in_weights else job.loras[number] for job in batch]
            beside = BatchLoras(self.model, loras, self.store)

            seeds = [job.seed if latents is None else replace(job.seed, resize_from=None) for job in batch]
            start = one.start(self.model, seeds, latents, listener)
            told = [(job.prompts[number], seed) for job, seed in zip(batch, seeds, strict=True)]
            with beside.on():
                latents = sample(self.model, one, told, beside, start, _counting_on(step, taken))
            taken += one.steps
        assert latents is not None
        return latents


def plan_painting(
    model: LoadedModel,
    settings: GenerateSettings,
    wanted: Sequence[Wanted],
    loras: Sequence[AppliedLora],
    store: LoraStore,
    listener: Listener,
) -> Painting:
    """Plan the images ``wanted``, or those of ``settings`` where none are named.

    ``loras`` are used besides those of the prompts, which are found in ``settings.lora_folders``, each once. Raises
    PromptError, FileError (styles, wildcards, LoRAs, pictures), AdapterError, and CheckpointError for a model that
    cannot start from the picture.
    """
    settings = with_seeds(settings)
    size = image_size(model, settings)
    each = (settings, *([hires_settings(settings, hires_size(settings, size))] if settings.has_hires else []))
    read = [_read_alone(each, *one) for one in wanted] if wanted else _read_all(each)

    # What a person should know before it takes time; then what takes time.
    if any(prompts[0].ignored_loras for prompts, _ in read):
        listener(Notice("LoRA tags in the negative prompt do nothing: a LoRA works on the whole image", "warning"))
    for line in without_effect(settings):
        listener(Notice(line, "warning"))
    with torch.no_grad():
        init = prepare_init_image(model, settings, size)
    found = _found_loras(model, settings, [prompt for prompts, _ in read for prompt in prompts], store, listener)

    jobs = tuple(
        Job(prompts, tuple((*loras, *(found[tag] for tag in prompt.loras)) for prompt in prompts), seed)
        for prompts, seed in read
    )
    return Painting(model, each, size, jobs, init, store)


def _found_loras(
    model: LoadedModel,
    settings: GenerateSettings,
    prompts: Sequence[ImagePrompt],
    store: LoraStore,
    listener: Listener,
) -> Mapping[LoraTag, AppliedLora]:
    """The LoRAs of all prompts by their tags; each file is looked at once."""
    tags = dict.fromkeys(tag for prompt in prompts for tag in prompt.loras)
    return {tag: store.load(tag, settings.lora_folders, model, listener) for tag in tags}


_Read = tuple[tuple[ImagePrompt, ...], ImageSeed]
"""The prompts of an image in each pass, and its seed."""


def _read_all(each: Sequence[GenerateSettings]) -> list[_Read]:
    """The prompts of all images of some settings; ``each``: those of each pass."""
    first = each[0]
    readers = [PromptReader(settings) for settings in each]
    seeds = image_seeds(first, first.seed, first.variation_seed)
    return [(tuple(reader.read(first.seed + index) for reader in readers), seed) for index, seed in enumerate(seeds)]


def _read_alone(each: Sequence[GenerateSettings], prompt: str, negative: str, seed: int) -> _Read:
    """One image with prompts and a seed of its own; a later pass with prompts of its own keeps those."""
    own = {"prompt": prompt, "negative_prompt": negative, "seed": seed, "count": 1}
    first = with_seeds(each[0].model_copy(update=own))
    size = first.width or 0, first.height or 0
    passes = [first, *(hires_settings(first, size) for _ in each[1:])]
    prompts = tuple(PromptReader(settings).read(first.seed) for settings in passes)
    return prompts, image_seeds(first, first.seed, first.variation_seed)[0]


def _counting_on(step: Step, taken: int) -> Step:
    """``step`` for a later pass: it counts on from the ``taken`` steps of the passes before."""
    return lambda number, clean: step(taken + number, clean)


def with_seeds(settings: GenerateSettings) -> GenerateSettings:
    """The settings with seeds: random ones where -1 asks for them."""
    names = ["seed", *(["variation_seed"] if settings.variation_strength > 0 else [])]
    update = {name: random.SystemRandom().randrange(2**32) for name in names if getattr(settings, name) < 0}
    return settings.model_copy(update=update)


def image_size(model: LoadedModel, settings: GenerateSettings) -> tuple[int, int]:
    """(width, height) in pixels of the first pass: as set, else the checkpoint's own."""
    own = model.checkpoint.own_resolution(model.prediction)
    return settings.width or own.width, settings.height or own.height
