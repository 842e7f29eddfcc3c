"""From text (and a picture, if one is given) to images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from loraloom.control import Control, heed, keep_going
from loraloom.errors import CheckpointError, HardwareError
from loraloom.events import Listener, SamplerStepped, ignore
from loraloom.generation.decoding import decode, image_of
from loraloom.generation.infotext import infotext_of
from loraloom.generation.loras import AppliedLora, LoraStore
from loraloom.generation.noise import LATENT_CHANNELS
from loraloom.generation.painting import Job, Painting, Wanted, image_size, plan_painting
from loraloom.generation.passes import Pass, Step
from loraloom.generation.prompts import ImagePrompt
from loraloom.generation.settings import GenerateSettings
from loraloom.models.loaded import LoadedModel

__all__ = ["GeneratedImage", "Watch", "paint", "paint_each", "text_to_image"]

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
    when the weights are read from the file again. That is why ``lora_mode`` must be ``side`` for a model whose weights
    are not those of its file. Adapters that a caller has attached stay. Images of one batch may have different LoRAs,
    at different weights. ``store`` keeps LoRAs from one call to the next; ``control`` is heeded between two steps.
    Raises PromptError, FileError (styles, wildcards, embeddings, pictures), AdapterError, CheckpointError (an editing
    model; NaN), HardwareError (memory, NaN in half precision).
    """
    asked = _Asked(
        model=model,
        settings=settings,
        loras=tuple(loras),
        store=store or LoraStore(),
        listener=listener,
        control=control,
        model_hash=model_hash,
        watch=watch,
    )
    yield from asked.images()


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
    settings = settings.model_copy(update={"count": len(wanted)})
    asked = _Asked(
        model=model,
        settings=settings,
        wanted=tuple(wanted),
        store=store or LoraStore(),
        listener=listener,
        control=control,
        model_hash=model_hash,
    )
    yield from asked.images()


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What :func:`paint` and :func:`paint_each` were asked for."""

    model: LoadedModel
    settings: GenerateSettings
    wanted: tuple[Wanted, ...] = ()
    """Images with prompts and seeds of their own; empty for those of the settings."""
    loras: tuple[AppliedLora, ...] = ()
    store: LoraStore
    listener: Listener
    control: Control
    model_hash: str | None
    watch: Watch | None = None

    def images(self) -> Iterator[GeneratedImage]:
        """The images one after another; HardwareError with advice where memory ends."""
        _refuse_editing(self.model)
        try:
            painting = plan_painting(self.model, self.settings, self.wanted, self.loras, self.store, self.listener)
            yield from self._painted(painting)
        except torch.OutOfMemoryError as error:
            width, height = image_size(self.model, self.settings)
            raise HardwareError(
                f"out of memory on {self.model.device} at {width} x {height} pixels",
                "set low_memory=true, keep_file_precision=true, batch_size=1 or a smaller size",
            ) from error

    def _painted(self, painting: Painting) -> Iterator[GeneratedImage]:
        with painting.merged(self.listener) as in_weights:
            passes = painting.passes(self.listener)
            for first, batch in painting.batches():
                heed(self.control)
                step = self._report(first, painting.steps)
                latents = painting.paint(batch, passes, step, self.listener, in_weights=in_weights)
                finished = zip(batch, latents, strict=True)
                images = [self._finished(painting, passes[0], job, latent) for job, latent in finished]
                yield from images

    @torch.no_grad()  # not around the yield: what a caller does between images is not ours
    def _finished(self, painting: Painting, first: Pass, job: Job, latent: Tensor) -> GeneratedImage:
        """The image of some latents (4, h, w), with its parameters as text."""
        pixels = decode(self.model, latent[None], tiling=self.settings.vae_tiling, listener=self.listener)[0]
        image = image_of(pixels)
        infotext = infotext_of(
            self.model,
            first.settings,
            job.loras_of_all(),
            self.loras,
            job.prompt,
            job.seed,
            painting.size,
            model_hash=self.model_hash,
            embedding_hashes=first.embedding_hashes,
        )
        finished = image if painting.init is None else painting.init.finished(image)
        return GeneratedImage(finished, latent.cpu(), infotext, job.prompt, job.seed.seed)

    def _report(self, done: int, total: int) -> Step:
        """Tell of the steps of a batch, of which there are ``total``, after ``done`` images."""

        def step(number: int, clean: Tensor) -> None:
            taken = min(number + 1, total)
            self.listener(SamplerStepped(taken, total, done + 1, self.settings.count))
            if self.watch is not None:
                self.watch(taken, lambda: image_of(decode(self.model, clean[:1])[0]))
            heed(self.control)

        return step


def _refuse_editing(model: LoadedModel) -> None:
    channels = model.unet.in_channels
    if channels not in (LATENT_CHANNELS, 9):
        raise CheckpointError(
            f"{model.checkpoint.path} is {model.checkpoint.purpose}: its U-Net takes {channels} channels",
            f"images need a checkpoint whose U-Net takes {LATENT_CHANNELS}, or 9 for inpainting",
        )
