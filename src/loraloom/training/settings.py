"""Every knob of training on one page. No torch here: the command line reads this file to print help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from loraloom.adapters.settings import AdapterSettings
from loraloom.data.settings import DatasetSettings
from loraloom.settings import Kohya, Settings

__all__ = ["LrScheduleSettings", "OptimizerSettings", "PreviewSettings", "SavingSettings", "TrainSettings"]


class OptimizerSettings(Settings):
    """How the adapter's tensors are updated."""

    name: Annotated[str, Kohya("optimizer_type")] = "adamw"
    """Optimizer, a name of the registry."""
    lr: Annotated[float, Kohya("learning_rate"), Field(ge=0)] = 1e-4
    """Learning rate of every part that has none of its own. 1e-4 suits most LoRAs; see docs/training.md."""
    unet_lr: Annotated[float | None, Kohya("unet_lr"), Field(ge=0)] = None
    """Learning rate of the U-Net. Unset: optimizer.lr."""
    text_encoder_lr: Annotated[float | None, Kohya("text_encoder_lr"), Field(ge=0)] = None
    """Learning rate of the text encoder(s). Unset: optimizer.lr; half of it is a common choice."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the running averages of the gradient and of its square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator of the update."""
    max_grad_norm: Annotated[float, Kohya("max_grad_norm"), Field(ge=0)] = 1.0
    """Gradients longer than this are shortened to it. 0: never."""


class LrScheduleSettings(Settings):
    """How the learning rates change over the run."""

    name: Annotated[str, Kohya("lr_scheduler", "scheduler")] = "cosine"
    """constant, constant_with_warmup, linear, cosine, cosine_with_restarts or polynomial."""
    warmup_steps: Annotated[int, Kohya("lr_warmup_steps"), Field(ge=0)] = 0
    """Steps over which the rate rises from zero (not used by constant)."""
    cycles: Annotated[int, Kohya("lr_scheduler_num_cycles"), Field(ge=1)] = 1
    """Number of restarts of cosine_with_restarts."""
    power: Annotated[float, Kohya("lr_scheduler_power"), Field(gt=0)] = 1.0
    """Power of polynomial."""


class SavingSettings(Settings):
    """When and how LoRA files are written. One is always written at the end."""

    every_epochs: Annotated[int, Kohya("save_every_n_epochs"), Field(ge=0)] = 1
    """Save every so many epochs. 0: only at the end."""
    every_steps: Annotated[int, Kohya("save_every_n_steps"), Field(ge=0)] = 0
    """Save every so many steps. 0: never by steps."""
    precision: Annotated[Literal["fp16", "bf16", "float"], Kohya("save_precision")] = "fp16"
    """Type of the tensors in the file. fp16 loads everywhere."""
    title: Annotated[str, Kohya("metadata_title")] = ""
    """Title in the file's metadata. Empty: the run's name."""
    trigger: Annotated[str, Kohya("metadata_trigger_phrase")] = ""
    """Trigger words in the file's metadata."""
    comment: Annotated[str, Kohya("training_comment")] = ""
    """Free text in the file's metadata."""


class PreviewSettings(Settings):
    """Images painted while the run goes on, with the same seeds each time."""

    prompts: Annotated[tuple[str, ...], Kohya("sample_prompts")] = ()
    """What to paint. Empty: no previews."""
    negative_prompt: str = ""
    """What to avoid."""
    every_epochs: Annotated[int, Kohya("sample_every_n_epochs"), Field(ge=1)] = 1
    """Paint every so many epochs (and always at the end)."""
    at_start: Annotated[bool, Kohya("sample_at_first")] = True
    """Paint before the first step too, to see what the checkpoint makes of the prompts."""
    steps: Annotated[int, Field(ge=1)] = 20
    """Sampler steps."""
    cfg_scale: Annotated[float, Field(ge=0)] = 7.0
    """Guidance."""
    sampler: Annotated[str, Kohya("sample_sampler")] = "DPM++ 2M Karras"
    """Sampler, a name of the registry."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the first prompt; the next prompt has the next seed."""
    size: Annotated[tuple[int, int] | None, Field()] = None
    """Width and height in pixels. Unset: the training resolution."""


class TrainSettings(Settings):
    """One training run."""

    checkpoint: Annotated[Path, Kohya("pretrained_model_name_or_path", "ckpt")]
    """The Stable Diffusion checkpoint to learn on: .safetensors, .ckpt or a Diffusers folder (family: detected)."""
    name: Annotated[str, Kohya("output_name"), Field(min_length=1, pattern=r"^[^/\\:*?\"<>|]+$")] = "lora"
    """Name of the run and of its LoRA files."""
    output: Annotated[Path, Kohya("output_dir")] = Path("runs")
    """Folder that holds the run folders."""
    epochs: Annotated[int, Kohya("num_epochs", "max_train_epochs"), Field(ge=1)] = 10
    """How often the whole dataset is gone through."""
    steps: Annotated[int | None, Kohya("max_train_steps"), Field(ge=1)] = None
    """Number of optimizer steps. Set: it decides and epochs is not used."""
    batch_size: Annotated[int, Kohya("train_batch_size"), Field(ge=1)] = 1
    """Images per forward pass. Larger ones usually want a higher learning rate."""
    gradient_accumulation: Annotated[int, Kohya("gradient_accumulation_steps"), Field(ge=1)] = 1
    """Forward passes per optimizer step."""
    gradient_checkpointing: Annotated[bool, Kohya("gradient_checkpointing")] = False
    """Compute activations again in the backward pass: much less memory, about a third more time."""
    mixed_precision: Annotated[Literal["auto", "no", "fp16", "bf16"], Kohya("mixed_precision")] = "auto"
    """Type that the checkpoint computes in; the adapter itself stays in fp32. auto: bf16 or fp16 on a GPU, else no."""
    keep_file_precision: bool = False
    """Keep the checkpoint's weights mapped as stored and convert each as it is used: less memory, more time."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    low_memory: Annotated[bool, Kohya("lowram")] = False
    """Keep each part of the model on the device only while it is used."""
    max_token_length: Annotated[int | None, Kohya("max_token_length"), Field(ge=75, multiple_of=75)] = None
    """Longest caption in tokens: 75, 150, 225 or more. Unset: what the dataset's longest caption needs."""
    clip_skip: Annotated[int, Kohya("clip_skip"), Field(ge=1, le=12)] = 1
    """Layer of the text encoder to use, counted from the end: 1 for most checkpoints, 2 for NAI-based ones."""
    prediction: Literal["auto", "epsilon", "v"] = "auto"
    """What the checkpoint predicts. auto: detected."""
    zero_terminal_snr: Annotated[bool | None, Kohya("zero_terminal_snr")] = None
    """Noise schedule that ends in pure noise. Unset: detected."""
    prior_loss_weight: Annotated[float, Kohya("prior_loss_weight"), Field(ge=0)] = 1.0
    """Weight of the loss of regularization images."""
    seed: Annotated[int, Kohya("seed"), Field(ge=0)] = 0
    """Every random choice of the run follows from it."""
    dataset: DatasetSettings
    """What to learn from."""
    adapter: AdapterSettings = AdapterSettings()
    """What is trained."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """How it is updated."""
    lr_schedule: LrScheduleSettings = LrScheduleSettings()
    """How the learning rates change."""
    saving: SavingSettings = SavingSettings()
    """When and how LoRA files are written."""
    preview: PreviewSettings = PreviewSettings()
    """Images painted while the run goes on."""

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        from loraloom.errors import UnknownNameError
        from loraloom.training.lr_schedules import LR_SCHEDULES
        from loraloom.training.optimizers import OPTIMIZERS

        for key, registry, name in (
            ("optimizer.name", OPTIMIZERS, self.optimizer.name),
            ("lr_schedule.name", LR_SCHEDULES, self.lr_schedule.name),
        ):
            try:
                registry[name]
            except UnknownNameError as error:
                raise ValueError(f"{key}: {error.problem}; {error.hint}") from error
        return self
