"""What a finished LoRA file carries besides its tensors: the metadata that other programs read, and the hashes."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import torch

import loraloom
from loraloom.adapters.attach import AdapterSet
from loraloom.adapters.metadata import network_args, network_metadata
from loraloom.data.sample import Dataset
from loraloom.errors import FileError, OutputError
from loraloom.events import Listener, Notice
from loraloom.folders import data_folder
from loraloom.formats.adapter_writer import write_lora
from loraloom.formats.files import make_folder, old_hash, sha256_of
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.loaded import LoadedModel
from loraloom.models.saving import save_checkpoint
from loraloom.training.lr_schedule_names import steps_of
from loraloom.training.optimizers import optimizer_title
from loraloom.training.parameter_groups import rate_metadata
from loraloom.training.record import recorded_settings
from loraloom.training.settings import TrainSettings

__all__ = [
    "FileFacts",
    "checkpoint_hashes",
    "remove_older",
    "run_metadata",
    "save_adapter",
    "save_whole",
    "write_or_rescue",
]

_FAILING_DISK = "the disk or its cable may be failing; save to another disk"
SAVE_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}


@dataclass(frozen=True)
class FileFacts:
    """What the metadata is made of."""

    settings: TrainSettings
    dataset: Dataset
    model: LoadedModel
    checkpoint_hashes: tuple[str, str] | None
    """Short and long hash of the checkpoint file, None for a folder."""
    mixed_precision: str
    max_token_length: int
    steps_per_epoch: int
    total_steps: int
    started: float
    step: int
    epoch: int
    origins: Mapping[str, str] = field(default_factory=dict)
    """Metadata about the files that the training started from."""


def write_or_rescue(path: Path, run: Path, write: Callable[[Path], None], listener: Listener) -> Path:
    """``write(path)``; where the disk does not take it, under the same name in a folder on another one, with a warning.

    Returns where it is. The folders: the user's data folder, then that for temporary files, in each one of this run's.
    Raises OutputError when none of them takes it.
    """
    try:
        write(path)
        return path
    except OutputError as error:
        for folder in _rescue_folders(run):
            other = folder / path.name
            with suppress(OutputError):
                make_folder(folder)
                write(other)
                listener(Notice(f"{error.problem}; it is in {other} instead: move it when there is room", "warning"))
                return other
        raise


def _rescue_folders(run: Path) -> Iterator[Path]:
    """Folders for what the run's own disk does not take; the number keeps runs of one name apart."""
    name = f"{run.name}-{sha256(str(run.absolute()).encode('utf-8', 'backslashreplace')).hexdigest()[:8]}"
    with suppress(RuntimeError):  # nobody knows where home is
        yield data_folder() / "rescued" / name
    with suppress(OSError):
        yield Path(tempfile.gettempdir()) / "loraloom-rescued" / name


def save_whole(path: Path, facts: FileFacts) -> None:
    """Write the model with its trained weights as a checkpoint, atomically, and see whether it reads back.

    Raises OutputError where it does not.
    """
    spec = {key: value.removesuffix("/lora") for key, value in run_metadata(facts).items() if "network" not in key}
    metadata = {**facts.model.checkpoint.metadata, **spec}
    save_checkpoint(facts.model, path, dtype=SAVE_TYPES[facts.settings.saving.precision], metadata=metadata)
    try:
        written = open_checkpoint(path)
    except FileError as error:
        raise OutputError(f"{path}: the written file cannot be read back: {error.problem}", _FAILING_DISK) from error
    if len(written) != len(facts.model.checkpoint):
        raise OutputError(f"{path}: tensors are missing in the written file", _FAILING_DISK)


def save_adapter(path: Path, adapters: AdapterSet, facts: FileFacts) -> None:
    """Write the LoRA in kohya's names with its metadata and hashes, atomically, and read it back before it is there.

    Raises OutputError when what is on the disk is not what was written.
    """
    write_lora(
        path,
        {target.name: adapter.tensors() for target, adapter in adapters.items()},
        metadata=run_metadata(facts),
        dtype=SAVE_TYPES[facts.settings.saving.precision],
        targets=adapters.targets,
    )


def remove_older(path: Path, name: str, keep: int) -> None:
    """After ``path`` was saved: of its kind (by epochs, or by steps) leave only the newest ``keep``; 0 leaves all.

    Files with a higher number than that of ``path`` are left too: they are of the same run before it was resumed.
    """
    pattern = re.compile(re.escape(name) + r"-(step)?(\d{6,})(-raw)?\.\w+")
    saved = pattern.fullmatch(path.name)
    if not keep or saved is None:
        return
    older: dict[int, list[Path]] = {}
    for other in path.parent.iterdir():
        match = pattern.fullmatch(other.name)
        if match and match[1] == saved[1] and int(match[2]) <= int(saved[2]):
            older.setdefault(int(match[2]), []).append(other)
    for number in sorted(older)[:-keep]:
        for other in older[number]:
            with suppress(OSError):
                other.unlink(missing_ok=True)


def run_metadata(facts: FileFacts) -> dict[str, str]:
    """The ``ss_*`` keys of sd-scripts and the ``modelspec.*`` keys of ModelSpec 1.0.1; every value is text."""
    told = {**_kohya_metadata(facts), **_modelspec(facts), **facts.origins}
    return {key: value for key, value in told.items() if value is not None}


def _kohya_metadata(facts: FileFacts) -> dict[str, str]:
    settings, dataset, model = facts.settings, facts.dataset, facts.model
    optimizer, adapter, data = settings.optimizer, settings.adapter, settings.dataset
    arguments = network_args(adapter) | rate_metadata(optimizer)
    short_hash, long_hash = facts.checkpoint_hashes or (None, None)
    text_rate = optimizer.text_encoder_rate
    values: dict[str, object] = {
        "session_id": int(facts.started),
        "training_started_at": facts.started,
        "training_finished_at": time.time(),
        "output_name": settings.name,
        "learning_rate": optimizer.learning_rate,
        "unet_lr": optimizer.unet_rate,
        "text_encoder_lr": list(text_rate) if isinstance(text_rate, tuple) else text_rate,
        "num_train_images": dataset.draws_per_epoch,
        "num_reg_images": len(dataset.regularization),
        "num_batches_per_epoch": facts.steps_per_epoch * settings.gradient_accumulation,
        "num_epochs": settings.epochs if settings.steps is None else -(-settings.steps // facts.steps_per_epoch),
        "gradient_checkpointing": settings.gradient_checkpointing != "none",
        "quantize": None if settings.quantize == "none" else settings.quantize,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "max_train_steps": facts.total_steps,
        "lr_warmup_steps": steps_of(settings.lr_schedule.warmup_steps, facts.total_steps),
        "lr_scheduler": settings.lr_schedule.name,
        **network_metadata(adapter),
        "network_args": json.dumps(arguments) if arguments else None,
        "mixed_precision": facts.mixed_precision,
        "full_fp16": False,
        "v2": model.family.kohya_v2,
        "base_model_version": model.family.base_model_version_for(model.prediction),
        "clip_skip": settings.clip_skip,
        "max_token_length": facts.max_token_length,
        "cache_latents": True,
        "seed": settings.seed,
        "lowram": settings.low_memory,
        "zero_terminal_snr": float(model.schedule.alphas_cumprod[-1]) == 0.0,
        "training_comment": settings.saving.comment or None,
        "optimizer": optimizer_title(optimizer),
        "max_grad_norm": optimizer.max_grad_norm,
        "prior_loss_weight": settings.prior_loss_weight,
        **_objective_metadata(settings, dataset),
        "batch_size_per_device": settings.batch_size,
        "total_batch_size": settings.batch_size,
        "resolution": "({}, {})".format(*data.size),
        "color_aug": data.color_augmentation,
        "flip_aug": data.flip,
        "random_crop": data.random_crop,
        "shuffle_caption": data.captions.shuffle,
        "keep_tokens": data.captions.keep_tokens,
        "caption_dropout_rate": data.captions.dropout,
        "caption_dropout_every_n_epochs": data.captions.dropout_every_epochs,
        "caption_tag_dropout_rate": data.captions.tag_dropout,
        "enable_bucket": data.buckets,
        "dataset_dirs": json.dumps(_folders(dataset, regularization=False)),
        "reg_dataset_dirs": json.dumps(_folders(dataset, regularization=True)),
        "tag_frequency": json.dumps(_tag_frequency(dataset)),
        "bucket_info": json.dumps(_bucket_info(dataset)),
        "sd_model_name": model.checkpoint.path.name,
        "sd_model_hash": short_hash,
        "new_sd_model_hash": long_hash,
        "steps": facts.step,
        "epoch": facts.epoch,
        "branched_from": settings.branched_from or None,
        "loraloom_settings": recorded_settings(settings),
    }
    return {f"ss_{key}": str(value) for key, value in values.items() if value is not None}


def _objective_metadata(settings: TrainSettings, dataset: Dataset) -> dict[str, object]:
    """sd-scripts' names; what is off is left out where sd-scripts says None."""
    objective = settings.objective
    bent = objective.loss_type in ("huber", "smooth_l1")
    coarse, sampling = objective.multires_noise_iterations or None, objective.timestep_sampling

    # Numbers that the chosen loss or sampling does not read would be taken for ones in use.
    return {
        "loss_type": objective.loss_type,
        "huber_schedule": objective.huber_schedule if bent else None,
        "huber_c": objective.huber_c if bent else None,
        "huber_scale": objective.huber_scale if bent else None,
        "min_snr_gamma": objective.min_snr_gamma or None,
        "debiased_estimation": objective.debiased_estimation,
        "scale_v_pred_loss_like_noise_pred": objective.scale_v_like_noise or None,
        "v_pred_like_loss": objective.v_like_loss or None,
        "min_timestep": objective.min_timestep or None,
        "max_timestep": objective.max_timestep if objective.max_timestep != 1000 else None,
        "timestep_sampling": sampling if sampling != "uniform" else None,
        "logit_mean": objective.logit_mean if sampling == "logit_normal" else None,
        "logit_std": objective.logit_std if sampling == "logit_normal" else None,
        "noise_offset": objective.noise_offset or None,
        "noise_offset_random_strength": objective.noise_offset_random_strength,
        "adaptive_noise_scale": objective.adaptive_noise_scale or None,
        "multires_noise_iterations": coarse,
        "multires_noise_discount": objective.multires_noise_discount if coarse else None,
        "ip_noise_gamma": objective.ip_noise_gamma or None,
        "ip_noise_gamma_random_strength": objective.ip_noise_gamma_random_strength,
        "masked_loss": any(sample.has_mask for sample in dataset.samples),
        "preserve_class": objective.preserve_class or None,
        "preserve_regularization": objective.preserve_regularization or None,
    }


def _modelspec(facts: FileFacts) -> dict[str, str]:
    settings, model = facts.settings, facts.model
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{model.family.modelspec_architecture_for(model.prediction)}/lora",
        "implementation": model.family.modelspec_implementation,
        "title": settings.saving.title or settings.name,
        "resolution": "{}x{}".format(*settings.dataset.size),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        "implementation_version": f"loraloom/{loraloom.__version__}",
        "prediction_type": model.prediction,
        "encoder_layer": str(settings.clip_skip),
    }
    saving = settings.saving
    told = {
        "trigger_phrase": saving.trigger,
        "description": saving.description or saving.comment,
        "author": saving.author,
        "license": saving.license,
        "tags": saving.tags,
    }
    spec |= {key: text for key, text in told.items() if text}
    return {f"modelspec.{key}": value for key, value in spec.items()}


def _folders(dataset: Dataset, *, regularization: bool) -> dict[str, dict[str, int]]:
    counts = Counter(sample.concept for sample in dataset.samples)
    return {
        concept.folder.name: {"n_repeats": concept.repeats, "img_count": counts[concept]}
        for concept in dataset.concepts
        if concept.is_regularization == regularization
    }


def _tag_frequency(dataset: Dataset) -> dict[str, dict[str, int]]:
    """``{folder: {tag: count}}`` with tags split at commas, as the web UI shows them."""
    folders: dict[str, Counter[str]] = {}
    for sample in dataset.training:
        tags = (tag.strip().lower() for tag in sample.fullest_caption.split(","))
        folders.setdefault(sample.concept.folder.name, Counter()).update(tag for tag in tags if tag)
    return {folder: dict(counts) for folder, counts in folders.items()}


def _bucket_info(dataset: Dataset) -> dict[str, object]:
    counts: Counter[tuple[int, int]] = Counter()
    for sample in dataset.samples:
        counts[sample.bucket] += sample.repeats
    buckets = {
        str(i): {"resolution": list(size), "count": count} for i, (size, count) in enumerate(sorted(counts.items()))
    }
    return {"buckets": buckets}


def checkpoint_hashes(path: Path) -> tuple[str, str] | None:
    """The short and the long hash of a checkpoint file as sd-scripts writes them; None for a Diffusers folder."""
    return (old_hash(path), sha256_of(path)) if path.is_file() else None
