"""Every knob of training on one page. No torch here: the command line reads this file to print help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from loraloom.adapters.settings import AdapterSettings
from loraloom.data.settings import DatasetSettings
from loraloom.diffusion.samplers import SAMPLERS
from loraloom.errors import UnknownNameError
from loraloom.file_names import check_name
from loraloom.setting_marks import ClassPath, ForBeginners, Kohya, MayChange, Offers, Unit
from loraloom.settings import Settings
from loraloom.training.block_lr_settings import BlockLrSettings
from loraloom.training.lr_schedule_names import LR_SCHEDULES, check_values, find_schedule
from loraloom.training.objective_settings import ObjectiveSettings
from loraloom.training.optimizer_names import OPTIMIZERS, find_optimizer, is_adaptive

__all__ = [
    "EmaSettings",
    "LrScheduleSettings",
    "NotifySettings",
    "ObjectiveSettings",
    "OptimizerSettings",
    "PreviewSettings",
    "SavingSettings",
    "TrainSettings",
    "ValidationSettings",
]


def _known(find: Callable[[str], str], name: str) -> str:
    """The name as it was given; ValueError, which pydantic reports with all the others, where nothing has it."""
    try:
        find(name)
    except UnknownNameError as error:
        raise ValueError(f"{error.problem}; {error.hint}") from error
    return name


OPTIMIZER_LIBRARIES = (
    "torch.optim",
    "pytorch_optimizer",
    "bitsandbytes.optim",
    "dadaptation",
    "dadaptation.experimental",
    "prodigyplus",
)
"""Modules whose classes the registry of optimizers and the tables of other programs' names are made of."""
USUAL_RATE = 1e-4
"""What an unset optimizer.lr means."""
ADAPTIVE_RATE = 1.0
"""What it means for optimizers that find the rate themselves: a factor on what they found."""
OptimizerArgument = bool | int | float | str | tuple[float, ...]


class OptimizerSettings(Settings):
    """How the adapter's tensors are updated."""

    name: Annotated[str, Kohya("optimizer_type"), ClassPath(*OPTIMIZER_LIBRARIES), Offers(OPTIMIZERS)] = "adamw"
    """Optimizer: a name of the registry (docs/optimizers.md lists them), or the path of a class: torch.optim.RAdam. The
    class's module is run, so name only one that you know."""
    lr: Annotated[float | None, Kohya("learning_rate"), Field(ge=0), ForBeginners()] = None
    """Learning rate of every part that has none of its own. Unset: 1e-4, which suits most LoRAs (see docs/training.md),
    and 1 for the optimizers that find the rate themselves (prodigy, dadapt_*)."""
    unet_lr: Annotated[float | None, Kohya("unet_lr"), Field(ge=0)] = None
    """Learning rate of the U-Net. Unset: optimizer.lr."""
    text_encoder_lr: Annotated[
        Annotated[float, Field(ge=0)] | tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] | None,
        Kohya("text_encoder_lr"),
        ForBeginners(),
    ] = None
    """Learning rate of the text encoder(s); two values for the two of SDXL. Unset: optimizer.lr; half of it is a common
    choice."""
    text_encoder_stop: Annotated[int | float | None, Kohya("stop_text_encoder_training"), Field(ge=0)] = None
    """When the text encoder(s) stop learning: a share of the run (up to 1) or a number of steps. Unset: at the end."""
    loraplus_ratio: Annotated[float | None, Kohya("loraplus_lr_ratio"), Field(gt=0)] = None
    """LoRA+: the up matrices learn this many times as fast as the down matrices. 16 is the paper's choice. Unset: 1."""
    loraplus_unet_ratio: Annotated[float | None, Kohya("loraplus_unet_lr_ratio"), Field(gt=0)] = None
    """LoRA+ in the U-Net. Unset: optimizer.loraplus_ratio."""
    loraplus_text_encoder_ratio: Annotated[float | None, Kohya("loraplus_text_encoder_lr_ratio"), Field(gt=0)] = None
    """LoRA+ in the text encoder(s). Unset: optimizer.loraplus_ratio."""
    weight_decay: Annotated[float | None, Field(ge=0)] = None
    """Weight decay. Unset: the optimizer's own (adamw: 0.01)."""
    betas: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...] | None, Field(min_length=2, max_length=3)] = None
    """Decay rates of the running averages of the gradient and of its square. Unset: the optimizer's own (adamw: 0.9 and
    0.999)."""
    eps: Annotated[float | None, Field(gt=0)] = None
    """Added to the denominator of the update. Unset: the optimizer's own (adamw: 1e-8)."""
    max_grad_norm: Annotated[float, Kohya("max_grad_norm"), Field(ge=0)] = 1.0
    """Gradients whose norm is above this are scaled down to it. 0: never."""
    args: dict[str, OptimizerArgument] = Field(default_factory=dict)
    """Any other argument of the optimizer's class by its own name: optimizer.args.d_coef=2."""
    block_lr: BlockLrSettings = BlockLrSettings()
    """Learning rates of the U-Net's blocks."""

    @field_validator("name")
    @classmethod
    def _name_exists(cls, value: str) -> str:
        return _known(find_optimizer, value)

    @field_validator("text_encoder_stop")
    @classmethod
    def _share_or_steps(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value != int(value):
            raise ValueError("a share of the run is at most 1, a number of steps is whole")
        return value

    @property
    def learning_rate(self) -> float:
        """The rate of every part that has none of its own: ``lr``, or what leaving it unset means."""
        if self.lr is not None:
            return self.lr
        return ADAPTIVE_RATE if is_adaptive(self.name) else USUAL_RATE

    @property
    def unet_rate(self) -> float:
        """The rate of the U-Net."""
        return self.learning_rate if self.unet_lr is None else self.unet_lr

    @property
    def text_encoder_rate(self) -> float | tuple[float, float]:
        """The rate of the text encoder, or those of the two of SDXL."""
        return self.learning_rate if self.text_encoder_lr is None else self.text_encoder_lr


class LrScheduleSettings(Settings):
    """How the learning rates change over the run."""

    name: Annotated[
        str,
        Kohya("lr_scheduler", "scheduler"),
        ClassPath("torch.optim.lr_scheduler"),
        Offers(LR_SCHEDULES),
        ForBeginners(),
    ] = "cosine"
    """constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial, inverse_sqrt,
    cosine_with_min_lr, warmup_stable_decay, rex, piecewise_constant, or the path of a class in
    torch.optim.lr_scheduler."""
    warmup_steps: Annotated[int | float, Kohya("lr_warmup_steps"), Field(ge=0)] = 0
    """Steps over which the rate rises from zero, or below 1 their share of the run (not used by constant)."""
    decay_steps: Annotated[int | float | None, Kohya("lr_decay_steps"), Field(gt=0)] = None
    """Steps at the end over which warmup_stable_decay falls, or below 1 their share. Unset: a fifth of the run."""
    cycles: Annotated[int, Kohya("lr_scheduler_num_cycles"), Field(ge=1)] = 1
    """Number of restarts of cosine_with_restarts."""
    power: Annotated[float, Kohya("lr_scheduler_power"), Field(gt=0)] = 1.0
    """Power of polynomial."""
    timescale: Annotated[int | None, Kohya("lr_scheduler_timescale"), Field(ge=1), Unit("steps")] = None
    """Steps until inverse_sqrt begins to fall noticeably. Unset: the warm-up, 10000 without one."""
    min_lr_ratio: Annotated[float, Kohya("lr_scheduler_min_lr_ratio"), Field(ge=0, lt=1)] = 0.0
    """The rate falls to this share of itself instead of to zero (every schedule that falls to zero)."""
    rules: str = ""
    """For piecewise_constant: factor:step up to which it holds, the last factor without a step: 1:100,0.1:200,0.01."""
    args: Annotated[dict[str, OptimizerArgument], Kohya("lr_scheduler_args")] = Field(default_factory=dict)
    """Arguments of the class when name is the path of one; rates in them are factors on the learning rate."""

    @field_validator("name")
    @classmethod
    def _name_exists(cls, value: str) -> str:
        return _known(find_schedule, value)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_values(
            self.name,
            rules=self.rules,
            min_lr_ratio=self.min_lr_ratio,
            warmup_steps=self.warmup_steps,
            decay_steps=self.decay_steps,
        )
        return self


class SavingSettings(Settings):
    """When and how LoRA files are written. One is always written at the end."""

    every_epochs: Annotated[int, Kohya("save_every_n_epochs"), Field(ge=0), Unit("epochs"), ForBeginners()] = 1
    """Save every N epochs. 0: only at the end."""
    every_steps: Annotated[int, Kohya("save_every_n_steps"), Field(ge=0), Unit("steps")] = 0
    """Save every N steps. 0: never by steps."""
    files_per_run: Annotated[int, Kohya("save_n_epoch_ratio"), Field(ge=0)] = 0
    """Save at the ends of epochs, often enough for the run to leave at least this many files, evenly spread. Above 0 it
    takes the place of saving.every_epochs."""
    keep_last: Annotated[int, Kohya("save_last_n_epochs"), Field(ge=0)] = 0
    """Keep only this many of the newest files saved by epochs, and as many of those saved by steps. 0: keep all."""
    format: Annotated[Literal["safetensors", "ckpt", "pt"], Kohya("save_model_as")] = "safetensors"
    """Format of the LoRA files. Every current program reads safetensors."""
    precision: Annotated[Literal["fp16", "bf16", "float"], Kohya("save_precision")] = "fp16"
    """Type of the tensors in the file. fp16 loads everywhere."""
    read_back: bool = True
    """If diffusers is installed, let it read every saved file in a separate process: it must find a layer for each
    tensor. There is a warning if it cannot use all of a file."""
    title: Annotated[str, Kohya("metadata_title")] = ""
    """Title in the file's metadata. Empty: the run's name."""
    trigger: Annotated[str, Kohya("metadata_trigger_phrase"), ForBeginners()] = ""
    """Trigger words in the file's metadata."""
    comment: Annotated[str, Kohya("training_comment")] = ""
    """Free text in the file's metadata."""
    author: Annotated[str, Kohya("metadata_author")] = ""
    """Who made it, in the file's metadata."""
    description: Annotated[str, Kohya("metadata_description")] = ""
    """What it is for, in the file's metadata. Empty: the comment."""
    license: Annotated[str, Kohya("metadata_license")] = ""
    """Terms of use in the file's metadata."""
    tags: Annotated[str, Kohya("metadata_tags")] = ""
    """Words to find it by in the file's metadata, with commas between them."""
    state: Annotated[bool, Kohya("save_state", "save_state_on_train_end")] = True
    """Keep what is needed to resume the run exactly, as if it had never ended: written with every LoRA file, and when
    the run is paused, stops or fails. About six times the size of an fp16 LoRA file with AdamW."""
    state_every_steps: Annotated[int, Field(ge=0), Unit("steps")] = 0
    """Write the state every N steps too. 0: not by steps."""
    state_every_minutes: Annotated[float, Field(ge=0), Unit("minutes")] = 5.0
    """Write the state when the last one is older than this: what a power cut can cost. 0: not by time."""
    keep_states: Annotated[int, Kohya("save_last_n_epochs_state"), Field(ge=0)] = 2
    """Keep this many of the newest states, any of which a new run can branch from. 0: keep all."""


class EmaSettings(Settings):
    """A running average of the LoRA over the steps: smoother than the LoRA of any one step."""

    enabled: bool = False
    """Keep the average; LoRA files and previews are then made from it."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999
    """Share of the average that stays at each step: 0.999 looks back over about the last thousand steps."""
    warmup: bool = True
    """Begin with a smaller decay, (1 + n) / (10 + n) at the n-th update, so that the first steps are soon forgotten."""
    every: Annotated[int, Field(ge=1), Unit("steps")] = 1
    """Update every N steps, with the decay to that power: less work for the same reach."""
    save: Annotated[Literal["ema", "both"], MayChange()] = "ema"
    """What LoRA files hold: the average, or (both) the average and beside it NAME-raw with the LoRA as trained."""


class PreviewSettings(Settings):
    """Images painted while the run goes on, with the same seeds each time."""

    prompts: Annotated[tuple[str, ...], Kohya("sample_prompts"), ForBeginners()] = ()
    """What to paint; each may end in options as in preview.file. Empty, and no preview.file: no previews."""
    file: Path | None = None
    """A text file with a prompt in each line, painted after preview.prompts. Options may follow a prompt: --n negative
    prompt, --w width, --h height, --d seed, --s steps, --l guidance, --ss sampler. Lines beginning with # are left
    out."""
    negative_prompt: Annotated[str, ForBeginners()] = ""
    """What to avoid."""
    every_epochs: Annotated[int, Kohya("sample_every_n_epochs"), Field(ge=0), Unit("epochs"), ForBeginners()] = 1
    """Paint every N epochs (and always at the end). 0: not by epochs."""
    every_steps: Annotated[int, Kohya("sample_every_n_steps"), Field(ge=0), Unit("steps")] = 0
    """Paint every N steps. 0: not by steps."""
    weights: Annotated[tuple[Annotated[float, Field(ge=-10, le=10)], ...], Field(min_length=1)] = (1.0,)
    """Weights of the LoRA to paint each prompt with; 0 shows the checkpoint without it, and is painted once."""
    sheet: bool = True
    """Keep previews/sheet.png: all prompts against all epochs on one labelled page."""
    at_start: Annotated[bool, Kohya("sample_at_first")] = True
    """Paint before the first step too, to see what the checkpoint makes of the prompts."""
    steps: Annotated[int, Field(ge=1)] = 20
    """Sampler steps."""
    cfg_scale: Annotated[float, Field(ge=0)] = 7.0
    """Guidance."""
    sampler: Annotated[str, Kohya("sample_sampler"), Offers(SAMPLERS)] = "DPM++ 2M Karras"
    """Sampler, a name of the registry."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the first prompt; the next prompt has the next seed."""
    size: Annotated[tuple[int, int] | None, Unit("pixels")] = None
    """Width and height in pixels. Unset: the training resolution."""

    @property
    def has_prompts(self) -> bool:
        """Whether there is something to paint, unless the file of the prompts is empty."""
        return bool(self.prompts) or self.file is not None


class ValidationSettings(Settings):
    """The loss on pictures that are not trained on: it shows when a run has learned enough, and which epoch is best."""

    folder: Path | None = None
    """Pictures with captions to measure on, a folder like that of the dataset. Unset: validation.share decides."""
    share: Annotated[float, Kohya("validation_split"), Field(ge=0, lt=1)] = 0.0
    """Share of the training pictures that is held out for measuring. 0: none is."""
    every_epochs: Annotated[int, Kohya("validate_every_n_epochs"), Field(ge=1), MayChange(), Unit("epochs")] = 1
    """Measure every N epochs (and before the first step and at the end)."""
    every_steps: Annotated[int, Kohya("validate_every_n_steps"), Field(ge=0), MayChange(), Unit("steps")] = 0
    """Measure every N steps instead of at the ends of epochs. 0: at the ends of epochs."""
    timesteps: Annotated[int, Field(ge=1, le=100)] = 4
    """Number of timesteps, evenly spread, at which each picture is measured."""
    draws: Annotated[int, Field(ge=1, le=100)] = 1
    """Noise samples for each picture and timestep: more make the measurement more precise and slower."""
    seed: Annotated[int, Kohya("validation_seed"), Field(ge=0)] = 0
    """Decides the noise and which pictures are held out. Keep it to compare runs."""
    patience: Annotated[int, Field(ge=0), MayChange(), Unit("measurements")] = 0
    """Stop the run after this many measurements without a better loss. 0: never."""
    save_best: Annotated[bool, MayChange()] = True
    """Keep the LoRA with the best loss so far as NAME-best beside the others."""
    image_losses: Annotated[bool, MayChange()] = False
    """At the end, measure every training picture with and without the LoRA and write image-losses.csv: which picture
    was never learned, which was memorised."""

    @property
    def has_pictures(self) -> bool:
        """Whether there is anything to measure on."""
        return self.folder is not None or self.share > 0

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.folder is not None and self.share:
            raise ValueError("folder and share are two ways to choose the pictures: set one of them")
        if self.patience and not self.has_pictures:
            raise ValueError("patience needs pictures to measure on: set folder or share")
        return self


class NotifySettings(Settings):
    """A message to an address of yours when something happens. Nothing is sent unless the address is set."""

    url: Annotated[str, Field(pattern=r"^(https?://\S+)?$")] = ""
    """Where to send it: an HTTP(S) address, for example a webhook of Discord. Empty: nowhere."""
    form: Literal["auto", "json", "discord"] = "auto"
    """json: the event as in events.jsonl; discord: a line of text and the preview. auto: discord for its addresses."""
    on: tuple[Literal["end", "failure", "preview"], ...] = ("end", "failure")
    """When to send a message: at the end of a run, when it fails, for every preview."""


def _named_recomputation(value: object) -> object:
    """Other trainers have a switch here."""
    return {True: "full", False: "none"}[value] if isinstance(value, bool) else value


class TrainSettings(Settings):
    """One training run."""

    method: Literal["adapter", "full"] = "adapter"
    """What is trained: a LoRA (or another adapter) beside the frozen checkpoint, or (full) the checkpoint's own
    weights, as DreamBooth does. full leaves a whole checkpoint, needs several times the memory, and wants a learning
    rate of 1e-6 to 5e-6; adapter.unet and adapter.text_encoder say which parts."""
    checkpoint: Annotated[
        Path, Kohya("pretrained_model_name_or_path", "ckpt"), MayChange(on_a_machine=True), ForBeginners()
    ]
    """The Stable Diffusion checkpoint to learn on: .safetensors, .ckpt or a Diffusers folder (family: detected)."""
    name: Annotated[str, Kohya("output_name"), AfterValidator(check_name), MayChange(), ForBeginners()] = "lora"
    """Name of the run and of its LoRA files."""
    output: Annotated[Path, Kohya("output_dir"), MayChange(on_a_machine=True)] = Path("runs")
    """Folder that holds the run folders."""
    epochs: Annotated[int, Kohya("num_epochs", "max_train_epochs"), Field(ge=1), MayChange(), ForBeginners()] = 10
    """Passes through the whole dataset."""
    steps: Annotated[int | None, Kohya("max_train_steps"), Field(ge=1), MayChange(), Unit("steps")] = None
    """Number of optimizer steps. If set, epochs is not used."""
    batch_size: Annotated[int, Kohya("train_batch_size"), Field(ge=1), Unit("images"), ForBeginners()] = 1
    """Images per forward pass, of all processes together. Larger ones usually want a higher learning rate."""
    gradient_accumulation: Annotated[int, Kohya("gradient_accumulation_steps"), Field(ge=1)] = 1
    """Forward passes per optimizer step."""
    gradient_checkpointing: Annotated[
        Literal["none", "selective", "full"],
        Kohya("gradient_checkpointing"),
        BeforeValidator(_named_recomputation),
        MayChange(by_rounding=True),
    ] = "none"
    """What the backward pass computes again instead of keeping it: selective (norms and activations: a quarter less
    is kept, for next to no time) or full (whole blocks: a fifth is kept, 40 % more time). true is full, false none."""
    mixed_precision: Annotated[Literal["auto", "no", "fp16", "bf16"], Kohya("mixed_precision")] = "auto"
    """Type that the checkpoint computes in; the adapter itself stays in fp32. auto: bf16 or fp16 on a GPU, else no."""
    keep_file_precision: Annotated[bool, MayChange(by_rounding=True, on_a_machine=True)] = False
    """Keep the checkpoint's weights mapped as stored and convert each as it is used: less memory, more time."""
    quantize: Literal["none", "int8", "nf4"] = "none"
    """Keep the frozen weights of U-Net and text encoders in 8 or 4 bits: a quarter of the memory of fp32 or less, and
    predictions of the checkpoint that are off by about 1 % (int8) or 10 % (nf4). The LoRA itself stays in fp32."""
    device: Annotated[str, MayChange(by_rounding=True, on_a_machine=True)] = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    low_memory: Annotated[bool, Kohya("lowram"), MayChange(by_rounding=True, on_a_machine=True)] = False
    """Keep each part of the model on the device only while it is used."""
    max_token_length: Annotated[int | None, Kohya("max_token_length"), Field(ge=75, multiple_of=75), Unit("tokens")] = (
        None
    )
    """Longest caption in tokens: 75, 150, 225 or more. Unset: what the dataset's longest caption needs."""
    clip_skip: Annotated[int, Kohya("clip_skip"), Field(ge=1, le=12), ForBeginners()] = 1
    """Layer of the text encoder to use, counted from the end: 1 for most checkpoints, 2 for NAI-based ones."""
    prediction: Annotated[Literal["auto", "epsilon", "v"], Kohya("v_parameterization")] = "auto"
    """What the checkpoint predicts. auto: detected."""
    zero_terminal_snr: Annotated[bool | None, Kohya("zero_terminal_snr")] = None
    """Noise schedule that ends in pure noise. Unset: detected."""
    prior_loss_weight: Annotated[float, Kohya("prior_loss_weight"), Field(ge=0)] = 1.0
    """Weight of the loss of regularization images."""
    seed: Annotated[int, Kohya("seed"), Field(ge=0)] = 0
    """Decides every random choice of the run."""
    branched_from: Annotated[str, MayChange()] = ""
    """The run and step that this run went on from; written when a run branches off."""
    dataset: DatasetSettings
    """What to learn from."""
    adapter: AdapterSettings = AdapterSettings()
    """What is trained."""
    optimizer: OptimizerSettings = OptimizerSettings()
    """How it is updated."""
    lr_schedule: LrScheduleSettings = LrScheduleSettings()
    """How the learning rates change."""
    objective: ObjectiveSettings = ObjectiveSettings()
    """What the model is asked and how its answer is judged."""
    ema: EmaSettings = EmaSettings()
    """A running average of the LoRA."""
    notify: NotifySettings = NotifySettings()
    """A message when something happens."""
    tensorboard: Annotated[bool, MayChange(on_a_machine=True)] = False
    """Write losses, learning rates and previews for TensorBoard into the run folder (needs the package)."""
    validation: ValidationSettings = ValidationSettings()
    """The loss on pictures that are not trained on."""
    saving: Annotated[SavingSettings, MayChange(on_a_machine=True)] = SavingSettings()
    """When and how LoRA files are written."""
    preview: Annotated[PreviewSettings, MayChange(on_a_machine=True)] = PreviewSettings()
    """Images painted while the run goes on."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = []
        if self.objective.preserve_class and not (self.objective.preserve_trigger or self.saving.trigger):
            problems.append(
                "objective.preserve_class takes the place of the trigger word in the captions: set saving.trigger "
                "(or objective.preserve_trigger)"
            )
        if self.optimizer.text_encoder_stop not in (None, 1) and not self.adapter.unet:
            problems.append("optimizer.text_encoder_stop: nothing would be trained afterwards, adapter.unet is false")
        if problems:
            raise ValueError("; ".join(problems))
        return self
