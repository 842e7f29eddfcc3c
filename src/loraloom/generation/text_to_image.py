"""From text (and a picture, if one is given) to images."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from loraloom.control import Control, heed, keep_going
from loraloom.errors import CheckpointError, HardwareError
from loraloom.events import Listener, Notice, SamplerStepped, ignore
from loraloom.generation.decoding import decode, image_of
from loraloom.generation.infotext import infotext_of
from loraloom.generation.init_image import InitImage, inpainting_channels, prepare_init_image
from loraloom.generation.live_merge import LiveMerge, merges
from loraloom.generation.loras import AppliedLora, BatchLoras, LoraStore
from loraloom.generation.noise import LATENT_CHANNELS, ImageSeed
from loraloom.generation.passes import (
    PlannedPrompts,
    Start,
    Step,
    enlarged,
    hires_settings,
    hires_size,
    plan_prompts,
    sample,
    steps_taken,
)
from loraloom.generation.prompts import ImagePrompt, PromptReader
from loraloom.generation.sampling import ignored_settings, image_seeds, plan_of
from loraloom.generation.settings import GenerateSettings
from loraloom.models.loaded import LoadedModel

__all__ = ["GeneratedImage", "Watch", "image_size", "paint", "paint_each", "text_to_image", "with_seeds"]

Watch = Callable[[int, Callable[[], Image.Image]], None]
"""Called after each step with its number (from 1) and a function that shows how the first image of the batch looks."""


@dataclass(frozen=True)
class GeneratedImage:
    """One image: its pixels, its latents (4, h, w) in float32 on the CPU, its parameters as text, its prompts."""

    image: Image.Image
    latent: Tensor
    infotext: str
    prompt: ImagePrompt
    seed: int
    """The seed of its noise."""


def text_to_image(
    model: LoadedModel,
    settings: GenerateSettings,
    loras: Sequence[AppliedLora] = (),
    *,
    listener: Listener = ignore,
    model_hash: str | None = None,
    control: Control = keep_going,
) -> list[GeneratedImage]:
    """All images of :func:`paint` at once."""
    return list(paint(model, settings, loras, listener=listener, model_hash=model_hash, control=control))


def paint(
    model: LoadedModel,
    settings: GenerateSettings,
    loras: Sequence[AppliedLora] = (),
    *,
    listener: Listener = ignore,
    model_hash: str | None = None,
    watch: Watch | None = None,
    store: LoraStore | None = None,
    control: Control = keep_going,
) -> Iterator[GeneratedImage]:
    """Images one after another, batch by batch; image i has seed + i (with variations: variation seed + i) and does
    not depend on its batch.

    The LoRAs of the prompt's tags are found in ``settings.lora_folders`` and used besides ``loras``; they are off the
    model again when the last image is out: between images too, or, merged into its weights (``lora_mode``), at the end,
    when the weights are read from the file again (so it must be side for a model that has other weights than its file).
    Adapters that a caller has attached stay.
    Images of one batch may have different LoRAs, at different weights. ``store`` keeps LoRAs from one call to the
    next; ``control`` is heeded between two steps.
    Raises PromptError, FileError (styles, wildcards, embeddings, pictures), AdapterError, CheckpointError (an editing
    model; NaN), HardwareError (memory, NaN in half precision).
    """
    _refuse_editing(model)
    painter = _Painter(
        model, with_seeds(settings), loras, listener, model_hash, watch, store or LoraStore(), control=control
    )
    yield from painter.images_or_error()


def paint_each(
    model: LoadedModel,
    settings: GenerateSettings,
    wanted: Sequence[tuple[str, str, int]],
    *,
    listener: Listener = ignore,
    model_hash: str | None = None,
    store: LoraStore | None = None,
    control: Control = keep_going,
) -> Iterator[GeneratedImage]:
    """An image for each (prompt, negative prompt, seed), as :func:`paint` makes it; those of ``settings`` do not count.

    ``store`` keeps LoRAs from one call to the next; ``control`` is heeded between two steps.
    """
    _refuse_editing(model)
    settings = settings.model_copy(update={"count": len(wanted)})
    painter = _Painter(
        model, with_seeds(settings), (), listener, model_hash, None, store or LoraStore(), wanted, control
    )
    yield from painter.images_or_error()


def with_seeds(settings: GenerateSettings) -> GenerateSettings:
    """The settings with seeds: random ones where -1 asks for them."""
    names = ["seed", *(["variation_seed"] if settings.variation_strength > 0 else [])]
    update = {name: random.SystemRandom().randrange(2**32) for name in names if getattr(settings, name) < 0}
    return settings.model_copy(update=update)


def image_size(model: LoadedModel, settings: GenerateSettings) -> tuple[int, int]:
    """(width, height) in pixels of the first pass: as set, else the checkpoint's own."""
    own = model.checkpoint.own_resolution(model.prediction)
    return settings.width or own.width, settings.height or own.height


@dataclass(frozen=True)
class _Job:
    """One image to be made: its prompts in both passes, its seed."""

    prompt: ImagePrompt
    hires_prompt: ImagePrompt
    seed: ImageSeed


class _Painter:
    """Makes the images of some settings, batch by batch; texts are planned and encoded once for all of them."""

    def __init__(
        self,
        model: LoadedModel,
        settings: GenerateSettings,
        loras: Sequence[AppliedLora],
        listener: Listener,
        model_hash: str | None,
        watch: Watch | None,
        store: LoraStore,
        wanted: Sequence[tuple[str, str, int]] = (),
        control: Control = keep_going,
    ) -> None:
        self._wanted, self._control = wanted, control
        self._model, self._settings, self._loras = model, settings, tuple(loras)
        self._listener, self._model_hash, self._watch = listener, model_hash, watch
        self.size = image_size(model, settings)
        self._hires: GenerateSettings | None = None
        if settings.has_hires:
            self._hires = hires_settings(settings, hires_size(settings, self.size))
        self._store = store
        self._in_weights = False
        self._planned: PlannedPrompts | None = None
        self._planned_again: PlannedPrompts | None = None

    def images_or_error(self) -> Iterator[GeneratedImage]:
        """The images; HardwareError with advice where memory ends."""
        try:
            yield from self.images()
        except torch.OutOfMemoryError as error:
            width, height = self.size
            raise HardwareError(
                f"out of memory on {self._model.device} at {width} x {height} pixels",
                "set low_memory=true, keep_file_precision=true, batch_size=1 or a smaller size",
            ) from error

    def images(self) -> Iterator[GeneratedImage]:
        settings, listener = self._settings, self._listener
        jobs = self._jobs()
        if any(job.prompt.ignored_loras for job in jobs):
            listener(Notice("LoRA tags in the negative prompt do nothing: a LoRA works on the whole image", "warning"))
        for line in ignored_settings(settings):
            listener(Notice(line, "warning"))
        with torch.no_grad():
            init = prepare_init_image(self._model, settings, self.size)
        passes = [one for one in (settings, self._hires) if one is not None]
        plans = [plan_of(one) for one in passes]
        batch_size = 1 if any(plan.entry.one_at_a_time for plan in plans) else settings.batch_size
        with self._merged(jobs, sum(steps_taken(settings) if one is settings else one.steps for one in passes)):
            for first in range(0, len(jobs), batch_size):
                heed(self._control)
                batch = jobs[first : first + batch_size]
                with torch.no_grad():  # not around the yield: what a caller does between images is not ours
                    images = self._batch(batch, jobs, init, first)
                yield from images

    @contextmanager
    def _merged(self, jobs: Sequence[_Job], steps: int) -> Iterator[None]:
        """LoRAs in the weights for as long as all images take, where that is asked for or pays."""
        images = [self._loras_of(prompt) for job in jobs for prompt in (job.prompt, job.hires_prompt)]
        self._in_weights, reason = merges(self._model, self._settings, images, steps * len(jobs))
        if reason and self._settings.lora_mode == "merge":
            self._listener(Notice(f"lora_mode=merge: LoRAs act beside the weights, because {reason}", "warning"))
        if not self._in_weights:
            yield
            return
        self._listener(Notice("LoRAs are merged into the weights, in memory, until the last image (lora_mode)"))
        with LiveMerge(self._model).on(images[0]):
            yield

    def _jobs(self) -> list[_Job]:
        settings = self._settings
        if self._wanted:
            return [self._job_of(*wanted) for wanted in self._wanted]
        readers = PromptReader(settings), PromptReader(self._hires or settings)
        seeds = image_seeds(settings, settings.seed, settings.variation_seed)
        return [
            _Job(readers[0].read(settings.seed + index), readers[1].read(settings.seed + index), seed)
            for index, seed in enumerate(seeds)
        ]

    def _job_of(self, prompt: str, negative: str, seed: int) -> _Job:
        own = {"prompt": prompt, "negative_prompt": negative, "seed": seed, "count": 1}
        settings = with_seeds(self._settings.model_copy(update=own))
        read = PromptReader(settings).read(settings.seed)
        again = read
        if self._hires is not None:
            again = PromptReader(hires_settings(settings, self.size)).read(settings.seed)
        return _Job(read, again, image_seeds(settings, settings.seed, settings.variation_seed)[0])

    def _batch(
        self, batch: Sequence[_Job], jobs: Sequence[_Job], init: InitImage | None, done: int
    ) -> list[GeneratedImage]:
        used = [self._loras_of(job.prompt) for job in batch]
        latents = self._first_pass(batch, jobs, init, done, self._beside(used))
        if self._hires is not None:
            again = [self._loras_of(job.hires_prompt) for job in batch]
            latents = self._second_pass(batch, jobs, self._hires, latents, done, self._beside(again))
            for first, more in zip(used, again, strict=True):
                first += [lora for lora in more if lora not in first]
        tiling = self._settings.vae_tiling
        images = []
        for job, loras_used, latent in zip(batch, used, latents, strict=True):
            pixels = decode(self._model, latent[None], tiling=tiling, listener=self._listener)[0]
            image = image_of(pixels)
            infotext = infotext_of(
                self._model,
                self._settings,
                loras_used,
                self._loras,
                job.prompt,
                job.seed,
                self.size,
                model_hash=self._model_hash,
                embedding_hashes=self._planned.embedding_hashes if self._planned else None,
            )
            finished = image if init is None else init.finished(image)
            images.append(GeneratedImage(finished, latent.cpu(), infotext, job.prompt, job.seed.seed))
        return images

    def _first_pass(
        self, batch: Sequence[_Job], jobs: Sequence[_Job], init: InitImage | None, done: int, loras: BatchLoras
    ) -> Tensor:
        model, settings = self._model, self._settings
        if self._planned is None:
            prompts = [job.prompt for job in jobs]
            brought = [lora for prompt in prompts for lora in self._loras_of(prompt)]
            self._planned = plan_prompts(model, settings, prompts, self.size, self._listener, loras=brought)
        start = None
        if init is not None:
            latents = init.latents([job.seed for job in batch])
            start = Start(latents, settings.denoising_strength, settings.all_steps, init.painted)
        with loras.on():
            return sample(
                model,
                settings,
                self._planned,
                [(job.prompt, job.seed) for job in batch],
                loras,
                self.size,
                self._report(done, 0),
                start=start,
                channels=inpainting_channels(model, init, self.size),
            )

    def _second_pass(
        self,
        batch: Sequence[_Job],
        jobs: Sequence[_Job],
        hires: GenerateSettings,
        latents: Tensor,
        done: int,
        loras: BatchLoras,
    ) -> Tensor:
        model, size = self._model, image_size(self._model, hires)
        if self._planned_again is None:
            prompts, before = [job.hires_prompt for job in jobs], self._settings.steps
            brought = [lora for prompt in prompts for lora in self._loras_of(prompt)]
            self._planned_again = plan_prompts(
                model, hires, prompts, size, self._listener, earlier_steps=before, loras=brought
            )
        start = Start(enlarged(model, self._settings, latents, size, self._listener), hires.denoising_strength, True)
        with loras.on():
            return sample(
                model,
                hires,
                self._planned_again,
                [(job.hires_prompt, replace(job.seed, resize_from=None)) for job in batch],
                loras,
                size,
                self._report(done, steps_taken(self._settings)),
                start=start,
                channels=inpainting_channels(model, None, size),
            )

    def _beside(self, images: Sequence[Sequence[AppliedLora]]) -> BatchLoras:
        """The LoRAs of a batch that act beside the weights."""
        return BatchLoras(self._model, [() if self._in_weights else loras for loras in images], self._store)

    def _loras_of(self, prompt: ImagePrompt) -> list[AppliedLora]:
        folders = self._settings.lora_folders
        found = (self._store.load(tag, folders, self._model, self._listener) for tag in prompt.loras)
        return [*self._loras, *found]

    def _report(self, done: int, before: int) -> Step:
        """Tell of the steps of a batch of which ``before`` are already taken."""
        total = steps_taken(self._settings) + (0 if self._hires is None else self._hires.steps)

        def step(number: int, clean: Tensor) -> None:
            taken = min(before + number + 1, total)
            self._listener(SamplerStepped(taken, total, done + 1, self._settings.count))
            if self._watch is not None:
                self._watch(taken, lambda: image_of(decode(self._model, clean[:1])[0]))
            heed(self._control)

        return step


def _refuse_editing(model: LoadedModel) -> None:
    channels = model.unet.in_channels
    if channels not in (LATENT_CHANNELS, 9):
        raise CheckpointError(
            f"{model.checkpoint.path} is {model.checkpoint.purpose}: its U-Net takes {channels} channels",
            f"images need a checkpoint whose U-Net takes {LATENT_CHANNELS}, or 9 for inpainting",
        )
