"""The training run: prepare everything, then one short loop. Events are the only way out."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from loraloom.adapters.attach import AdapterSet, Attachment, attach, create_adapters
from loraloom.data.batches import Draw, plan_epoch
from loraloom.data.cache import LatentCache
from loraloom.data.dataset import Dataset, Sample, load_dataset
from loraloom.errors import NotFiniteError
from loraloom.events import (
    Event,
    Listener,
    Notice,
    RunFinished,
    RunStarted,
    StepFinished,
    WeightsSaved,
    ignore,
)
from loraloom.generation.loras import find_lora
from loraloom.generation.prompts import extract_loras
from loraloom.generation.settings import GenerateSettings
from loraloom.hardware import (
    Precision,
    choose_device,
    choose_precision,
    explained_memory_errors,
    keep_freed_memory,
)
from loraloom.models.checkpoint import Checkpoint, open_checkpoint
from loraloom.models.conditioning import Conditioning
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.prediction import read_signs
from loraloom.randomness import normal
from loraloom.training.lr_schedules import lr_factor
from loraloom.training.optimizers import create_optimizer
from loraloom.training.previews import paint_previews
from loraloom.training.saving import RunFacts, checkpoint_hashes, save_adapter
from loraloom.training.settings import TrainSettings
from loraloom.training.step import Batch, Objective, training_loss

__all__ = ["TrainingRun", "train"]

MAX_SKIPPED_STEPS = 20
"""fp16 steps in a row whose gradients may overflow before the run is called broken; each halves the loss scale."""
TOLD_REMARKS = ("layout", "regularization", "folder-name")
"""Kinds of remarks on a dataset that change what is trained, so they are said even though nothing is wrong."""


def train(
    settings: TrainSettings,
    folder: Path,
    *,
    listener: Listener = ignore,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train as ``settings`` say; LoRA files go to ``folder/weights``, previews to ``folder/previews``.

    ``stop`` is asked after every step; when it says yes the run saves and ends cleanly. Returns the final LoRA file.
    """
    with explained_memory_errors("loading the checkpoint and encoding the images"):
        run = TrainingRun.prepare(settings, folder, listener, stop)
    try:
        with explained_memory_errors(f"training on {run.model.device}"):
            return run.loop(stop)
    finally:
        run.attachment.detach()


class CaptionEncoder:
    """Conditioning of captions: encoded once each while no text encoder is trained, else in every step."""

    def __init__(self, model: LoadedModel, settings: TrainSettings, *, chunks: int, trained: bool) -> None:
        self._model = model
        self._clip_skip = settings.clip_skip
        self._chunks = chunks
        self._trained = trained
        self._known: dict[str, Conditioning] = {}

    def __call__(self, captions: Sequence[str]) -> Conditioning:
        if self._trained:
            return self._model.encode_text(captions, clip_skip=self._clip_skip, max_chunks=self._chunks)
        self.remember(captions)
        known = [self._known[caption] for caption in captions]
        return Conditioning.stack(known).to(self._model.device)

    def remember(self, captions: Sequence[str]) -> None:
        """Encode the captions that are not known yet, in one visit to the text encoder."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if not new:
            return
        with torch.no_grad(), self._model.using("text_encoder", "text_encoder_2"):
            for caption in new:
                encoded = self._model.encode_text([caption], clip_skip=self._clip_skip, max_chunks=self._chunks)
                self._known[caption] = encoded.to(torch.device("cpu"))


@dataclass
class TrainingRun:
    """Everything a run holds; ``step`` counts finished optimizer steps."""

    settings: TrainSettings
    folder: Path
    listener: Listener
    dataset: Dataset
    model: LoadedModel
    precision: Precision
    adapters: AdapterSet
    attachment: Attachment
    cache: LatentCache
    encode: CaptionEncoder
    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    max_token_length: int
    step: int = 0
    started: float = 0.0

    @classmethod
    def prepare(
        cls,
        settings: TrainSettings,
        folder: Path,
        listener: Listener,
        stop: Callable[[], bool] = lambda: False,
    ) -> TrainingRun:
        """Read the dataset, load the checkpoint, cache latents, put a new LoRA on the model.

        Raises KeyboardInterrupt when ``stop`` says yes while images are encoded: there is nothing to save yet.
        """
        started = time.time()
        device = choose_device(settings.device)
        precision = choose_precision(device, settings.mixed_precision)
        if device.type == "cpu":
            keep_freed_memory()
        checkpoint = open_checkpoint(settings.checkpoint)
        _check_preview_prompts(settings)
        settings = _with_resolution(settings, checkpoint, listener)
        dataset = load_dataset(settings.dataset)
        for problem in dataset.problems:
            if problem.severity != "info" or problem.kind in TOLD_REMARKS:
                listener(Notice(str(problem), "info" if problem.severity == "info" else "warning"))
        model = load_model(
            checkpoint,
            device=device,
            compute=precision.compute,
            keep_file_precision=settings.keep_file_precision,
            prediction=settings.prediction,
            zero_terminal_snr=settings.zero_terminal_snr,
            offload=settings.low_memory,
            listener=listener,
        )
        listener(
            Notice(
                f"{settings.checkpoint.name} is {model.family.title}, predicts {model.prediction}; "
                f"training on {device} with mixed precision {precision.name}"
            )
        )
        model.check_clip_skip(settings.clip_skip)
        if settings.lr_schedule.name == "constant" and settings.lr_schedule.warmup_steps:
            hint = "lr_schedule.warmup_steps has no effect with constant; constant_with_warmup uses it"
            listener(Notice(hint, "warning"))
        max_token_length = _max_token_length(settings, dataset, model, listener)
        cache = LatentCache(model.encode_images, vae_key=vae_fingerprint(model), folder=settings.dataset.latent_folder)
        with model.using("vae"):
            batch_size = 1 if device.type == "cpu" else 4
            cache.prepare(dataset.samples, settings.dataset.flip, batch_size, _interruptible(listener, stop))

        adapters = create_adapters(settings.adapter, model.targets, seed=settings.seed).to(device)
        layers = {target.name: model.layer(target) for target in model.targets}
        trained_text = any(part != "unet" for part in adapters.parts())
        for part, module in model.parts.items():
            if part != "vae" and settings.gradient_checkpointing:
                module.gradient_checkpointing = True  # type: ignore[assignment]
        return cls(
            settings=settings,
            folder=folder,
            listener=listener,
            dataset=dataset,
            model=model,
            precision=precision,
            adapters=adapters,
            attachment=attach(adapters, layers),
            cache=cache,
            encode=CaptionEncoder(model, settings, chunks=max_token_length // 75, trained=trained_text),
            objective=Objective(model.schedule, model.prediction, settings.seed),
            optimizer=create_optimizer(_parameter_groups(adapters, settings), settings.optimizer),
            scaler=torch.amp.GradScaler(device.type, enabled=precision.needs_loss_scaling),
            max_token_length=max_token_length,
            started=started,
        )

    # -- the plan ----------------------------------------------------------------------------------------------

    def epoch_batches(self, epoch: int) -> list[list[list[Draw]]]:
        """The epoch's optimizer steps, each a list of batches, each a list of draws."""
        batches = plan_epoch(
            self.dataset,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            epoch=epoch,
            flip=self.settings.dataset.flip,
        )
        size = self.settings.gradient_accumulation
        return [batches[start : start + size] for start in range(0, len(batches), size)]

    @cached_property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of the first epoch (the others differ by regularization images at most)."""
        return len(self.epoch_batches(0))

    @cached_property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.settings.steps is not None:
            return self.settings.steps
        return sum(len(self.epoch_batches(epoch)) for epoch in range(self.settings.epochs))

    def _steps(self, total: int) -> Iterator[tuple[int, bool, list[list[Draw]]]]:
        """(epoch, whether it ends with this step, batches) of every step of the run."""
        epoch, done = 0, 0
        while done < total:
            steps = self.epoch_batches(epoch)[: total - done]
            for index, batches in enumerate(steps):
                yield epoch, index == len(steps) - 1, batches
            epoch, done = epoch + 1, done + len(steps)

    @cached_property
    def checkpoint_hashes(self) -> tuple[str, str] | None:
        """Read from the whole file, so only when something is saved."""
        return checkpoint_hashes(self.model.checkpoint.path)

    # -- the loop ----------------------------------------------------------------------------------------------

    def loop(self, stop: Callable[[], bool]) -> Path:
        """All steps, with previews and saves between them. Returns the final LoRA file."""
        # Every step needs these parts: with low_memory they would else travel to the device and back each time.
        with self.model.using(*{"unet", *self.adapters.parts()}):
            return self._all_steps(stop)

    def _all_steps(self, stop: Callable[[], bool]) -> Path:
        total = self.total_steps
        settings, losses = self.settings, deque[float](maxlen=max(self.steps_per_epoch, 1))
        self.listener(
            RunStarted(
                folder=str(self.folder),
                total_steps=total,
                steps_per_epoch=self.steps_per_epoch,
                epochs=math.ceil(total / self.steps_per_epoch),
                images=len(self.dataset.samples),
                trainable_parameters=sum(parameter.numel() for parameter in self.adapters.parameters()),
            )
        )
        began = time.monotonic()
        if settings.preview.at_start:
            self._preview(epoch=0)
        epoch, stopped, previewed, skipped = 0, False, -1, 0
        for epoch, ends_epoch, batches in self._steps(total):
            tick = time.monotonic()
            rates = self._set_learning_rates(total)
            loss, applied = self._optimizer_step(epoch, batches)
            skipped = 0 if applied else skipped + 1
            if skipped > MAX_SKIPPED_STEPS:
                raise self._not_finite(f"the gradients overflowed fp16 in {skipped} steps in a row")
            self.step += 1
            losses.append(loss)
            average = sum(losses) / len(losses)
            seconds = time.monotonic() - tick
            self.listener(StepFinished(self.step, epoch + 1, loss, average, rates, seconds))
            stopped = stop() and self.step < total
            if stopped or self.step == total:
                break
            if ends_epoch and settings.saving.every_epochs and (epoch + 1) % settings.saving.every_epochs == 0:
                self.save(f"{settings.name}-{epoch + 1:06d}", epoch + 1)
            if settings.saving.every_steps and self.step % settings.saving.every_steps == 0:
                self.save(f"{settings.name}-step{self.step:08d}", epoch + 1)
            if ends_epoch and (epoch + 1) % settings.preview.every_epochs == 0:
                self._preview(epoch=epoch + 1)
                previewed = self.step
        final = self.save(settings.name, epoch + 1, final=True)
        if previewed != self.step and not stopped:
            self._preview(epoch=epoch + 1)
        average = sum(losses) / max(len(losses), 1)
        self.listener(RunFinished(self.step, time.monotonic() - began, stopped, average))
        return final

    def _optimizer_step(self, epoch: int, batches: list[list[Draw]]) -> tuple[float, bool]:
        """One update from one or several batches: the mean loss of its images, and whether it was applied.

        Every image counts alike: a short last batch weighs as little as it has images.
        """
        settings = self.settings
        self.adapters.train()
        full = settings.batch_size * settings.gradient_accumulation
        sums: list[Tensor] = []
        for index, draws in enumerate(batches):
            self.adapters.seed_step(settings.seed, self.step, index)
            batch = self._batch(epoch, draws)
            losses = training_loss(self.model, batch, self.objective) * batch.weights
            self.scaler.scale(losses.sum() / full).backward()  # type: ignore[no-untyped-call]
            sums.append(losses.detach().sum())
        loss = float(torch.stack(sums).sum()) / sum(len(draws) for draws in batches)
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss of step {self.step + 1} is {loss}")
        self.scaler.unscale_(self.optimizer)
        limit = settings.optimizer.max_grad_norm or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.adapters.parameters(), limit))
        finite = math.isfinite(norm)
        if not finite and not self.scaler.is_enabled():
            raise self._not_finite(f"the gradient of step {self.step + 1} is not finite")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, finite

    def _batch(self, epoch: int, draws: list[Draw]) -> Batch:
        seed, device = self.settings.seed, self.model.device
        keys = [(epoch, draw.sample.identity, draw.occurrence) for draw in draws]
        latents = []
        for draw, key in zip(draws, keys, strict=True):
            mean, std = self.cache.get(draw.sample, draw.flipped)
            latents.append(mean + std * normal(mean.shape, seed, "posterior", *key))
        conditioning = self.encode([draw.sample.caption for draw in draws])
        sizes = torch.tensor([_size_conditioning(draw.sample) for draw in draws], dtype=torch.float32, device=device)
        weight = self.settings.prior_loss_weight
        weights = [weight if draw.sample.is_regularization else 1.0 for draw in draws]
        return Batch(
            latents=torch.stack(latents).to(device),
            conditioning=conditioning.with_sizes(sizes),
            weights=torch.tensor(weights, device=device),
            keys=keys,
        )

    def _set_learning_rates(self, total: int) -> dict[str, float]:
        schedule = self.settings.lr_schedule
        factor = lr_factor(
            schedule.name,
            self.step,
            total,
            warmup=schedule.warmup_steps,
            cycles=schedule.cycles,
            power=schedule.power,
        )
        rates = {}
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
            rates[group["name"]] = group["lr"]
        return rates

    def _not_finite(self, problem: str) -> NotFiniteError:
        """Save what was good and explain. The weights are those before the bad step, so they are sound."""
        path = self.save(f"{self.settings.name}-last-good-step{self.step:08d}", 0)
        causes = ["lower optimizer.lr"]
        if self.precision.name == "fp16":
            causes.append("set mixed_precision=bf16 or no")
        return NotFiniteError(
            f"{problem}: NaN or infinity would destroy the LoRA, so the run stopped",
            f"{' or '.join(causes)}; the weights before that step are in {path}",
        )

    # -- what is written ---------------------------------------------------------------------------------------

    def save(self, name: str, epoch: int, *, final: bool = False) -> Path:
        """Write the LoRA as it is now to ``weights/<name>.safetensors``."""
        path = self.folder / "weights" / f"{name}.safetensors"
        facts = RunFacts(
            settings=self.settings,
            dataset=self.dataset,
            model=self.model,
            checkpoint_hashes=self.checkpoint_hashes,
            mixed_precision=self.precision.name,
            max_token_length=self.max_token_length,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            started=self.started,
            step=self.step,
            epoch=epoch,
        )
        save_adapter(path, self.adapters, facts)
        self.listener(WeightsSaved(path=str(path), step=self.step, epoch=epoch, final=final))
        return path

    def _preview(self, *, epoch: int) -> None:
        if not self.settings.preview.prompts:
            return
        with torch.no_grad():
            paint_previews(
                self.model,
                self.adapters,
                self.settings,
                self.folder / "previews",
                epoch=epoch,
                step=self.step,
                size=self.settings.dataset.size,
                listener=self.listener,
            )


def _with_resolution(settings: TrainSettings, checkpoint: Checkpoint, listener: Listener) -> TrainSettings:
    """The settings with the family's own resolution where none was set."""
    if "resolution" in settings.dataset.model_fields_set:
        return settings
    signs = read_signs(checkpoint, checkpoint.metadata, checkpoint.path, prediction=settings.prediction)
    resolution = checkpoint.family.default_resolution_for(signs.prediction or "epsilon")
    listener(Notice(f"dataset.resolution = {resolution}: what {checkpoint.family.title} was trained at"))
    return settings.model_copy(update={"dataset": settings.dataset.model_copy(update={"resolution": resolution})})


def _interruptible(listener: Listener, stop: Callable[[], bool]) -> Listener:
    def listen(event: Event) -> None:
        listener(event)
        if stop():
            raise KeyboardInterrupt

    return listen


def _check_preview_prompts(settings: TrainSettings) -> None:
    """A LoRA tag in a preview prompt must be found now, not after hours of training."""
    for prompt in settings.preview.prompts:
        for tag in extract_loras(prompt)[1]:
            find_lora(tag.name, GenerateSettings().lora_folders)


def vae_fingerprint(model: LoadedModel) -> str:
    """A hash of the VAE's weights and of the type it computes in: what cached latents depend on."""
    digest = hashlib.sha256(str(model.vae_compute).encode())
    prefix = model.prefixes["vae"]
    for name in sorted(name for name in model.checkpoint if name.startswith(prefix)):
        tensor = model.checkpoint[name].contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parameter_groups(adapters: AdapterSet, settings: TrainSettings) -> list[dict[str, object]]:
    optimizer = settings.optimizer
    groups: list[dict[str, object]] = []
    for part in adapters.parts():
        own = optimizer.unet_lr if part == "unet" else optimizer.text_encoder_lr
        rate = optimizer.lr if own is None else own
        groups.append({"params": adapters.part_parameters(part), "lr": rate, "base_lr": rate, "name": part})
    return groups


def _max_token_length(settings: TrainSettings, dataset: Dataset, model: LoadedModel, listener: Listener) -> int:
    chunks = max((model.measure_text(sample.caption).chunks for sample in dataset.samples), default=1)
    needed = 75 * max(chunks, 1)
    if settings.max_token_length is None:
        if needed > 75:
            listener(Notice(f"max_token_length = {needed}: the longest caption needs it"))
        return needed
    if settings.max_token_length < needed:
        text = f"captions longer than max_token_length = {settings.max_token_length} are cut; {needed} would keep all"
        listener(Notice(text, "warning"))
    return settings.max_token_length


def _size_conditioning(sample: Sample) -> tuple[int, int, int, int, int, int]:
    """SDXL's (original height, width, crop top, left, target height, width); Podell et al., arXiv:2307.01952."""
    (width, height), (target_width, target_height), (top, left) = sample.size, sample.bucket, sample.crop
    return height, width, top, left, target_height, target_width
