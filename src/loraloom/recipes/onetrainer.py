"""OneTrainer's configuration: the JSON that its window exports and its scripts take, with concepts and samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.errors import FileFormatError
from loraloom.recipes import onetrainer_network as network
from loraloom.recipes import onetrainer_pictures as pictures
from loraloom.recipes import onetrainer_running as running
from loraloom.recipes.names import unknown
from loraloom.recipes.onetrainer_file import OneTrainerFile, open_file
from loraloom.recipes.onetrainer_names import DEFAULTS, OPTIONS, OTHER_PARTS, PARTS
from loraloom.recipes.recipe import Item, Recipe, is_nothing
from loraloom.recipes.rows import Reading, Row, by_key, says_nothing, together, unless, without_setting

__all__ = ["TABLE", "is_onetrainer", "take_onetrainer"]


def is_onetrainer(data: Any) -> bool:
    """Whether parsed JSON is a configuration of OneTrainer (a preset has no ``__version`` below its first keys)."""
    return isinstance(data, Mapping) and "training_method" in data and ("__version" in data or "model_type" in data)


def take_onetrainer(data: Mapping[str, Any], recipe: Recipe) -> None:
    """Translate a configuration into ``recipe``, and the files of concepts and samples that it names.

    Raises FileFormatError for a model of another family, and for files of the versions 0 and 1 (of 2023), whose keys
    mean other things.
    """
    file = open_file(data, recipe)
    written = frozenset(file.left)
    if not isinstance(file.said.get("optimizer", {}), Mapping) or "train_unet" in file.left:
        raise FileFormatError(
            f"{recipe.source} was saved by a OneTrainer of 2023, whose keys meant other things",
            "open it in a newer OneTrainer and save it again",
        )
    file.walk(_MODEL)
    _write_down_defaults(file)
    file.walk(_FIRST)
    file.rest(*(key for key in list(file.left) if _is_detected(key)))
    file.walk(_THEN)
    _finish(file)

    told = {*(entry.key for entry in recipe.mapped), *dict(recipe.changed), *dict(recipe.unmapped)}
    recipe.idle[:] = [key for key in dict.fromkeys(recipe.idle) if key in written - told]


def _write_down_defaults(file: OneTrainerFile) -> None:
    """A preset holds only what it changes: what OneTrainer takes for the rest is written down."""
    for key, value in DEFAULTS.items():
        if key not in file.left:
            file.left[key] = Item(key, value)
            file.recipe.change(f"({key})", f"not given: {value}, as in OneTrainer")


def _is_detected(key: str) -> bool:
    """What is left of the sections of parts is found in the checkpoint, or is not trained."""
    is_of_texts = key.startswith(("text_encoder.", "text_encoder_2.")) and not key.endswith("dropout_probability")
    return is_of_texts or key.startswith("vae.")


def _finish(file: OneTrainerFile) -> None:
    """The keys that stand for themselves, in the order of the file."""
    rows = by_key(_ALONE)
    for key in list(file.left):
        if key in rows:
            rows[key].how(rows[key], file)
        else:
            file.recipe.skip(key, unknown(key))
            file.recipe.unknown.append(key)


# -- what several rows do ------------------------------------------------------------------------------------------


def _where(is_used: Callable[[OneTrainerFile], object], how: Callable[[Row, Any], None]) -> Callable[[Row, Any], None]:
    """A field that counts only beside another one."""

    def take(row: Row, file: OneTrainerFile) -> None:
        if is_used(file):
            how(row, file)
        else:
            file.rest(row.key)

    return take


def _no_setting(*quiet: Any) -> Callable[[Row, Reading], None]:
    """No setting, for the reason in the row; empty, off and ``quiet`` ask for nothing."""

    def take(row: Row, file: Reading) -> None:
        value = file.left[row.key].value
        if not value or is_nothing(value) or value in quiet:
            file.rest(row.key)
        else:
            file.skip(row.key, row.remark)

    return take


def _is_masked(file: OneTrainerFile) -> bool:
    return bool(file.said.get("masked_training"))


_given = unless()
_lora_only = _where(lambda file: not file.full, unless())
_averaged = _where(lambda file: file.recipe.get("ema.enabled"), _given)
_masked = _where(_is_masked, _given)
_kept = _where(lambda file: file.said.get("rolling_backup"), _given)

_ALIKE = "noise is offset alike at all timesteps; see objective.noise_offset"
_CHOSEN = "chosen by the program"
_CURVES = "the curves are drawn into curves.png; tensorboard=true writes them for TensorBoard too"
_DISTURBED = (
    "there the target is disturbed with the noise, which only makes it stronger; "
    "objective.ip_noise_gamma disturbs what the model sees"
)
_EMBEDDING = "embeddings are not trained"
_GPUS = Sentence("several GPUs: ", Action.LAUNCH_TOGETHER)
_IN_FP32 = "what is trained stays in fp32; mixed_precision decides the rest"
_OFFLOADED = "not offered; gradient_checkpointing=full keeps fewest activations"
_OUTSIDE = "the checkpoint's own prediction outside of masks is not used"
_SCALED = "an image's loss counts alike in every batch; a factor on all of it changes nothing for Adam"


# -- the table: what each key is here ------------------------------------------------------------------------------

_MODEL = (
    *without_setting("a version of the file", "__version", says_nothing),
    *(Row(f"{part}.__version", "", says_nothing) for part in (*PARTS, "optimizer")),
    Row("model_type", "", network.family, "the family is detected from the checkpoint", always=True),
    Row("training_method", "method", network.method, "LORA or FINE_TUNE", always=True),
    *(Row(key, "", says_nothing, "a section for models of other families") for key in OTHER_PARTS),
    Row("base_model_name", "checkpoint", network.base_model),
    Row("output_model_destination", "name", network.run_name, "the run's name; its folder is in output"),
    Row(
        "output_model_format",
        "",
        network.file_format,
        Sentence("files are written as sd-scripts does; ", Action.CONVERT_LORA, " makes others"),
    ),
)

_FIRST = (
    # The adapter.
    Row("peft_type", "adapter.kind", network.kind, "LORA, LOHA or LOKR"),
    Row("lora_decompose", "adapter.kind", network.decompose, "dora"),
    Row("lora_decompose_output_axis", "adapter.dora_axis", network.output_axis, "output"),
    Row("lokr_dim", "adapter.rank", network.of_lokr(None)),
    Row("lokr_decompose_both", "adapter.lokr_decompose_both", network.of_lokr(False)),
    Row("lokr_decompose_factor", "adapter.lokr_factor", network.of_lokr(-1)),
    Row("lokr_full_matrix", "adapter.lokr_full_matrix", network.of_lokr(False)),
    Row("lora_rank", "adapter.rank", network.rank),
    Row("lora_alpha", "adapter.alpha", network.alpha),
    *together(
        network.layers,
        "adapter.include",
        "layer_filter_preset",
        "layer_filter",
        "layer_filter_regex",
        remark="a preset, else the names; full: adapter.conv_rank too",
    ),
    # What is trained, and how fast.
    Row("learning_rate_scaler", "", network.scaler, "every rate is multiplied"),
    Row("learning_rate", "optimizer.lr", network.rate),
    Row("unet.train", "adapter.unet", network.unet),
    *together(network.text_encoders, "adapter.text_encoder", "text_encoder.train", "text_encoder_2.train"),
    Row("unet.learning_rate", "optimizer.unet_lr", network.unet_rate),
    *together(
        network.text_rates,
        "optimizer.text_encoder_lr",
        "text_encoder.learning_rate",
        "text_encoder_2.learning_rate",
    ),
    *together(network.stops("unet"), "", "unet.stop_training_after", "unet.stop_training_after_unit"),
    *together(
        network.stops("text_encoder"),
        "optimizer.text_encoder_stop",
        "text_encoder.stop_training_after",
        "text_encoder.stop_training_after_unit",
    ),
    *together(
        network.stops("text_encoder_2"),
        "",
        "text_encoder_2.stop_training_after",
        "text_encoder_2.stop_training_after_unit",
    ),
    # The optimizer: one section with the options of all of them.
    Row("optimizer.optimizer", "optimizer.name", running.optimizer, always=True),
    Row("optimizer.is_paged", "optimizer.name", running.optimizer, "a paged optimizer, where there is one"),
    *(Row(f"optimizer.beta{number}", "optimizer.betas", running.optimizer) for number in (1, 2, 3)),
    Row("optimizer.weight_decay", "optimizer.weight_decay", running.optimizer),
    Row("optimizer.eps", "optimizer.eps", running.optimizer),
    Row("optimizer.eps2", "optimizer.args", running.optimizer, "the second of a pair of eps"),
    *(Row(f"optimizer.{name}", "optimizer.args", running.optimizer, f"of {them}") for name, them in OPTIONS.items()),
    # The lr schedule.
    *together(
        running.schedule,
        "lr_schedule.name",
        "learning_rate_scheduler",
        "custom_learning_rate_scheduler",
        "scheduler_params",
    ),
    Row("learning_rate_warmup_steps", "lr_schedule.warmup_steps", running.warmup, "steps of one batch, or a share"),
    Row("learning_rate_cycles", "lr_schedule.cycles", running.cycles, always=True),
    Row("learning_rate_min_factor", "lr_schedule.min_lr_ratio", running.floor),
    # Precision and memory.
    Row("train_dtype", "mixed_precision", running.precision("no")),
    Row("output_dtype", "saving.precision", running.precision("float")),
    Row("clip_grad_norm", "optimizer.max_grad_norm", running.max_norm, "1 if not given", always=True),
    Row("ema", "ema.enabled", running.ema),
    *together(running.checkpointing, "gradient_checkpointing", "gradient_checkpointing", "unet.gradient_checkpointing"),
    Row("weight_dtype", "quantize", running.quantize),
    Row("unet.weight_dtype", "quantize", running.quantize),
)

_THEN = (
    *without_setting(
        "detected from the checkpoint, or for other families",
        "unet.model_name unet.include unet.train_embedding unet.attention_mask unet.guidance_scale "
        "unet.dropout_probability",
        says_nothing,
    ),
    Row("text_encoder_layer_skip", "clip_skip", running.clip_skip, "one more"),
    *without_setting(
        "clip_skip holds for both, or it is for other families",
        "text_encoder_2_layer_skip text_encoder_3_layer_skip text_encoder_4_layer_skip",
        says_nothing,
    ),
    # Noise and loss.
    Row("force_v_prediction", "prediction", running.forced("v")),
    Row("force_epsilon_prediction", "prediction", running.forced("epsilon")),
    Row("min_noising_strength", "objective.min_timestep", running.noising(0.0), "times 1000"),
    Row("max_noising_strength", "objective.max_timestep", running.noising(1.0), "times 1000"),
    *together(
        running.timesteps, "objective.timestep_sampling", "timestep_distribution", "noising_weight", "noising_bias"
    ),
    Row("mse_strength", "objective.loss_type", running.losses, "the strongest of the four counts", always=True),
    *together(
        running.losses, "objective.loss_type", "mae_strength", "huber_strength", "log_cosh_strength", "huber_delta"
    ),
    *together(running.loss_weight, "objective.min_snr_gamma", "loss_weight_fn", "loss_weight_strength"),
    # Pictures.
    *together(
        pictures.caption_dropout,
        "dataset.captions.dropout",
        "text_encoder.dropout_probability",
        "text_encoder_2.dropout_probability",
        remark="the whole caption is left out",
    ),
    Row("resolution", "dataset.resolution", pictures.resolution, "several: dataset.resolutions"),
    Row("masked_training", "dataset.masks", pictures.masks, "beside"),
    *together(pictures.concepts, "dataset.concepts", "concepts", "concept_file_name", "validation"),
    # What comes out meanwhile.
    *together(pictures.samples, "preview.prompts", "samples", "sample_definition_file_name"),
    Row("sample_after", "preview.every_epochs", pictures.how_often("preview", "previews"), always=True),
    Row("sample_after_unit", "preview.every_epochs", pictures.how_often("preview", "previews")),
    Row("save_every", "saving.every_epochs", pictures.how_often("saving", "files"), always=True),
    Row("save_every_unit", "saving.every_epochs", pictures.how_often("saving", "files")),
    Row("validate_after", "validation.every_epochs", pictures.how_often("validation", "measuring")),
    Row("validate_after_unit", "validation.every_epochs", pictures.how_often("validation", "measuring")),
    *together(pictures.backup, "saving.state_every_minutes", "backup_after", "backup_after_unit"),
    Row("rolling_backup", "", says_nothing, "see saving.keep_states"),
    # The same there and here.
    Row("epochs", "epochs", _given),
    Row("batch_size", "batch_size", _given),
    Row("gradient_accumulation_steps", "gradient_accumulation", _given),
    Row("ema_decay", "ema.decay", _averaged),
    Row("ema_update_step_interval", "ema.every", _averaged),
    Row("dropout_probability", "adapter.dropout", _where(lambda file: not file.full, unless(0))),
    Row("offset_noise_weight", "objective.noise_offset", _given),
    Row("rescale_noise_scheduler_to_zero_terminal_snr", "zero_terminal_snr", _given),
    Row("normalize_masked_area_loss", "objective.masked_loss_normalized", _masked),
    Row("unmasked_weight", "objective.mask_floor", _masked),
    Row("aspect_ratio_bucketing", "dataset.buckets", _given),
    Row("lora_model_name", "adapter.start_from", _lora_only),
    Row("rolling_backup_count", "saving.keep_states", _kept),
)

_ALONE = (
    # No settings, with the reason why; in brackets what asks for nothing, beside what is empty or off.
    Row("compile", "", _no_setting(), _CHOSEN),
    Row("continue_last_backup", "", _no_setting(), Sentence("a run goes on from its own folder: ", Action.TRAIN_ON)),
    Row("custom_conditioning_image", "", _no_setting(), "pictures for conditioning are not used in training"),
    Row("debug_mode", "", _no_setting(), Sentence(Action.CHECK_DATASET, " shows what a dataset is made of")),
    Row("device_indexes", "", _no_setting(), _GPUS),
    Row("dynamic_timestep_shifting", "", _no_setting(), "not for Stable Diffusion"),
    Row("embedding_learning_rate", "", _no_setting(), _EMBEDDING),
    Row("preserve_embedding_norm", "", _no_setting(), _EMBEDDING),
    Row("force_circular_padding", "", _no_setting(), "pictures without seams are not trained for"),
    Row("generalized_offset_noise", "", _no_setting(), _ALIKE),
    Row("include_train_config", "", _no_setting("NONE"), "always done: a LoRA file records every setting"),
    Row("lokr_use_tucker", "", _no_setting(), "the Tucker form is not offered"),
    Row("lokr_weight_decompose", "", _no_setting(), "LoKr with DoRA is not offered"),
    Row("lora_weight_dtype", "", _no_setting("FLOAT_32"), _IN_FP32),
    Row("loss_scaler", "", _no_setting("NONE"), _SCALED),
    Row("masked_prior_preservation_weight", "", _no_setting(0), _OUTSIDE),
    Row("multi_gpu", "", _no_setting(), _GPUS),
    Row("only_cache", "", _no_setting(), "encoded pictures are made when a run starts"),
    Row("perturbation_noise_weight", "", _no_setting(0), _DISTURBED),
    Row("prevent_overwrites", "", _no_setting(), "nothing is ever written over"),
    Row("sample_skip_first", "", _no_setting(), "previews begin with the first time that is due"),
    Row("save_filename_prefix", "", _no_setting(), "files have the run's name"),
    Row("save_skip_first", "", _no_setting(), "files are saved from the first time that is due"),
    Row("tensorboard", "", _no_setting(), _CURVES),
    Row("tensorboard_always_on", "", _no_setting(), "only while a run writes them"),
    Row("tensorboard_expose", "", _no_setting(), "the curves are files; start TensorBoard on their folder"),
    Row("timestep_shift", "", _no_setting(1), "timesteps are not shifted; see objective.timestep_sampling"),
    Row("unmasked_probability", "", _where(_is_masked, _no_setting()), "masks are used in every step"),
    Row("unet.activation_offloading", "", _no_setting(), _OFFLOADED),
    Row("unet.offload_fraction", "", _no_setting(), "whole parts rest in main memory with low_memory=true"),
    # Keys of every export that say nothing about what is learned.
    *without_setting(
        "says nothing about what is learned",
        "async_offloading cache_dir cloud dataloader_threads embedding additional_embeddings embedding_weight_dtype "
        "enable_autocast_cache fallback_train_dtype frames huggingface_cache_dir latent_caching oft_block_share "
        "oft_block_size oft_scaled optimizer_defaults sample_audio_format sample_video_format secrets temp_device "
        "tensorboard_port text_encoder_2_sequence_length text_encoder_sequence_length vb_loss_strength train_device "
        "lokr_vec_trick lokr_dora_on_output lora_decompose_norm_epsilon bundle_additional_embeddings debug_dir "
        "attention_mechanism backup_before_save clear_cache_before_training gradient_reduce_precision "
        "gradient_reduce_prevision fused_gradient_reduce async_gradient_reduce async_gradient_reduce_buffer "
        "non_ema_sampling samples_to_tensorboard workspace_dir offline_mode sample_image_format",
        says_nothing,
    ),
)

TABLE = (*_MODEL, *_FIRST, *_THEN, *_ALONE)
"""Every key of a configuration, in the order in which they are read."""
