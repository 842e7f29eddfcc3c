"""What a finished LoRA file carries besides its tensors: the metadata that other programs read, and the hashes."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

import loraloom
from loraloom.adapters.attach import AdapterSet
from loraloom.data.dataset import Dataset
from loraloom.formats.adapter_file import write_adapter_file
from loraloom.formats.files import sha256_of
from loraloom.models.loaded import LoadedModel
from loraloom.training.settings import TrainSettings

__all__ = ["RunFacts", "checkpoint_hashes", "run_metadata", "save_adapter"]

SAVE_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}


@dataclass(frozen=True)
class RunFacts:
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


def save_adapter(path: Path, adapters: AdapterSet, facts: RunFacts) -> None:
    """Write the LoRA in kohya's names with its metadata and hashes, atomically."""
    dtype = SAVE_TYPES[facts.settings.saving.precision]
    write_adapter_file(path, adapters.file_tensors(), metadata=run_metadata(facts), dtype=dtype)


def run_metadata(facts: RunFacts) -> dict[str, str]:
    """The ``ss_*`` keys of sd-scripts and the ``modelspec.*`` keys of ModelSpec 1.0.1; every value is text."""
    return {key: value for key, value in {**_kohya_metadata(facts), **_modelspec(facts)}.items() if value is not None}


def _kohya_metadata(facts: RunFacts) -> dict[str, str]:
    settings, dataset, model = facts.settings, facts.dataset, facts.model
    optimizer, adapter, data = settings.optimizer, settings.adapter, settings.dataset
    network_args = {}
    if adapter.conv_rank:
        network_args = {"conv_dim": adapter.conv_rank, "conv_alpha": adapter.conv_alpha or adapter.conv_rank}
    short_hash, long_hash = facts.checkpoint_hashes or (None, None)
    values: dict[str, object] = {
        "session_id": int(facts.started),
        "training_started_at": facts.started,
        "training_finished_at": time.time(),
        "output_name": settings.name,
        "learning_rate": optimizer.lr,
        "unet_lr": optimizer.lr if optimizer.unet_lr is None else optimizer.unet_lr,
        "text_encoder_lr": optimizer.lr if optimizer.text_encoder_lr is None else optimizer.text_encoder_lr,
        "num_train_images": dataset.draws_per_epoch,
        "num_reg_images": len(dataset.regularization),
        "num_batches_per_epoch": facts.steps_per_epoch * settings.gradient_accumulation,
        "num_epochs": settings.epochs if settings.steps is None else -(-settings.steps // facts.steps_per_epoch),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "max_train_steps": facts.total_steps,
        "lr_warmup_steps": settings.lr_schedule.warmup_steps,
        "lr_scheduler": settings.lr_schedule.name,
        "network_module": "networks.lora",
        "network_dim": adapter.rank,
        "network_alpha": adapter.alpha or float(adapter.rank),
        "network_dropout": adapter.dropout,
        "network_args": json.dumps(network_args) if network_args else None,
        "mixed_precision": facts.mixed_precision,
        "full_fp16": False,
        "v2": model.family.name == "sd2",
        "base_model_version": model.family.base_model_version_for(model.prediction),
        "clip_skip": settings.clip_skip,
        "max_token_length": facts.max_token_length,
        "cache_latents": True,
        "seed": settings.seed,
        "lowram": settings.low_memory,
        "zero_terminal_snr": float(model.schedule.alphas_cumprod[-1]) == 0.0,
        "training_comment": settings.saving.comment or None,
        "optimizer": optimizer.name,
        "max_grad_norm": optimizer.max_grad_norm,
        "prior_loss_weight": settings.prior_loss_weight,
        "loss_type": "l2",
        "batch_size_per_device": settings.batch_size,
        "total_batch_size": settings.batch_size,
        "resolution": "({}, {})".format(*data.size),
        "color_aug": False,
        "flip_aug": data.flip,
        "random_crop": False,
        "shuffle_caption": False,
        "keep_tokens": 0,
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
    }
    return {f"ss_{key}": str(value) for key, value in values.items() if value is not None}


def _modelspec(facts: RunFacts) -> dict[str, str]:
    settings, model = facts.settings, facts.model
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{model.family.modelspec_architecture_for(model.prediction)}/lora",
        "implementation": (
            "https://github.com/Stability-AI/generative-models" if model.family.name == "sdxl" else "diffusers"
        ),
        "title": settings.saving.title or settings.name,
        "resolution": "{}x{}".format(*settings.dataset.size),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()),
        "implementation_version": f"loraloom/{loraloom.__version__}",
        "prediction_type": model.prediction,
        "encoder_layer": str(settings.clip_skip),
    }
    if settings.saving.trigger:
        spec["trigger_phrase"] = settings.saving.trigger
    if settings.saving.comment:
        spec["description"] = settings.saving.comment
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
        tags = (tag.strip().lower() for tag in sample.caption.split(","))
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
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(0x100000)
        short = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
    return short, sha256_of(path)
