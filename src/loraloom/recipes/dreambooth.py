"""db_config.json of sd_dreambooth_extension: the form that it saves, in the names of every version.

Most of what counts goes on as sd-scripts' arguments. With ``use_lora`` off the whole model is trained, and other fields
count than for a LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.plain_data import finite, shown
from loraloom.recipes.dreambooth_concepts import bare, take_config_concepts
from loraloom.recipes.names import setting_of, unknown
from loraloom.recipes.recipe import Item, Items, Mapped, Recipe, exists, is_nothing, resolved
from loraloom.recipes.rows import Reading, Row, by_key, off, together, unless, without_setting
from loraloom.recipes.sd_scripts import take_arguments

__all__ = ["CONFIG_NAMES", "TABLE", "is_db_config", "take_db_config"]

_CONFIG_MARKS = {
    "concepts_list",
    "num_train_epochs",
    "lora_learning_rate",
    "save_embedding_every",
    "stop_text_encoder",
    "use_lora",
    "lifetime_revision",
    "pretrained_vae_name_or_path",
}


def is_db_config(data: Any) -> bool:
    """Whether parsed JSON is a db_config.json."""
    return isinstance(data, Mapping) and len({bare(key) for key in data} & _CONFIG_MARKS) >= 2


@dataclass
class _Config(Reading):
    """A db_config.json while it is read."""

    items: Items = field(default_factory=dict)
    """What goes on as sd-scripts' arguments."""
    is_lora: bool = False
    """Whether the file says that a LoRA is trained; older files do not say it."""


def take_db_config(data: Mapping[str, Any], recipe: Recipe) -> None:
    """Translate a db_config.json."""
    file = _Config(recipe, {bare(key): Item(str(key), value) for key, value in data.items()})
    file.walk(TABLE)
    for name in list(file.left):
        _what_is_left(name, file)
    take_arguments(file.items, recipe, defaults=False)
    if recipe.get("method") != "full":
        recipe.settings.setdefault("adapter", {}).setdefault("rank", 4)


def _what_is_left(name: str, file: _Config) -> None:
    """A key that no function took, in the order of the file: its row has the reason."""
    item, row = file.left[name], by_key(TABLE).get(name)
    if off(item.value) or re.match(r"c\d_", name):
        file.rest(name)
    elif row is not None and row.remark:
        file.skip(name, row.remark)
    else:
        file.skip(name, unknown(name, by_key(TABLE)))
        file.recipe.unknown.append(item.key)


# -- what is trained -----------------------------------------------------------------------------------------------


def _use_lora(row: Row, file: _Config) -> None:
    item = file.left.pop(row.key)
    if item.value is False:
        file.recipe.set("method", "full", item.key)
        _whole_model(file)
    else:
        file.is_lora = True
        file.recipe.mapped.append(Mapped(item.key, "adapter.kind", "lora"))


def _whole_model(file: _Config) -> None:
    """With use_lora off the rates for LoRA have no effect, and there are some for the model."""
    recipe = file.recipe
    file.rest(*(name for name in list(file.left) if name.startswith(("lora_", "save_lora_"))))

    # The program keeps the rates of both kinds of training, and uses those of the kind that is on.
    for name, theirs in (("learning_rate", "learning_rate"), ("txt_learning_rate", "text_encoder_lr")):
        rate = file.take(name)
        if rate is not None:
            file.items[theirs] = rate

    half, ema, safetensors = (file.take(name) for name in ("half_model", "use_ema", "save_safetensors"))
    if half is not None:
        recipe.set("saving.precision", "fp16" if half.value else "float", half.key)
    if ema is not None and ema.value:
        recipe.set("ema.enabled", True, ema.key)
    elif ema is not None:
        recipe.rest(ema.key)
    if safetensors is not None and safetensors.value:
        recipe.rest(safetensors.key)
    elif safetensors is not None:
        recipe.set("saving.format", "ckpt", safetensors.key)


def _start_from(row: Row, file: _Config) -> None:
    """A LoRA to go on with, where a LoRA is trained."""
    if file.is_lora:
        unless()(row, file)


def _checkpoint(row: Row, file: _Config) -> None:
    """The model as it was fetched, and the copy that the program worked on: the one that is on this machine counts."""
    recipe = file.recipe

    source, working = file.take("src"), file.take("pretrained_model_name_or_path")
    given = [item for item in (source, working) if item is not None and not is_nothing(item.value)]
    # The working copy lies where that program was; what is there on this machine can be trained on.
    there = [item for item in reversed(given) if exists(Path(resolved(str(item.value), recipe.folders)))]
    chosen = next(iter([*there, *given]), None)

    for item in (source, working):
        if item is None:
            continue
        if item is chosen:
            recipe.set("checkpoint", item.value, item.key)
        elif is_nothing(item.value):
            recipe.rest(item.key)
        else:
            recipe.change(item.key, f"left out: {chosen.key if chosen else ''} is the checkpoint to train on")


# -- how it is trained ---------------------------------------------------------------------------------------------


def _always(row: Row, file: _Config) -> None:
    """No setting, whatever the value is."""
    file.skip(row.key, row.remark)


def _text_encoder_stop(row: Row, file: _Config) -> None:
    """A share of the run, after which the text encoder rests; in older files a switch."""
    recipe = file.recipe
    older, item = file.take("train_text_encoder"), file.take("stop_text_encoder")
    item, unused = (older, None) if item is None else (item, older)
    if unused is not None:
        recipe.rest(unused.key)
    if item is None:
        return
    share = 1.0 if is_nothing(item.value) else finite(item.value)
    if share is None:
        recipe.problem("optimizer.text_encoder_stop", f"{item.key} = {shown(item.value)} is not a number")
        share = 1.0
    if share == 0:
        recipe.set("adapter.text_encoder", False, item.key)
        file.rest("lora_txt_learning_rate")
    elif share >= 1:
        recipe.rest(item.key)
    else:
        recipe.set("optimizer.text_encoder_stop", share, item.key)


def _train_unet(row: Row, file: _Config) -> None:
    item = file.left.pop(row.key)
    if item.value:
        file.recipe.rest(item.key)
    else:
        file.recipe.set(row.ours, False, item.key)


def _weight_decay(row: Row, file: _Config) -> None:
    decay, older = file.take("weight_decay"), file.take("adamw_weight_decay")
    if decay is not None and older is not None:
        file.recipe.change(older.key, f"{decay.key}, the later name, counts")
    chosen = older if decay is None else decay
    if chosen is not None:
        file.recipe.set("optimizer.weight_decay", chosen.value, chosen.key)


def _ema(row: Row, file: _Config) -> None:
    if file.left[row.key].value is True:
        file.skip(row.key, row.remark)
    else:
        file.rest(row.key)


def _sanity(row: Row, file: _Config) -> None:
    """A preview of its own, with its seed and what it is to avoid."""
    recipe, prompt = file.recipe, file.value("sanity_prompt")
    if prompt is None:
        file.rest("sanity_prompt", "sanity_negative_prompt", "sanity_seed")
        return
    line = str(prompt)
    recipe.mapped.append(Mapped(file.left.pop("sanity_prompt").key, "preview.prompts", prompt))
    for name, short in (("sanity_negative_prompt", "n"), ("sanity_seed", "d")):
        value = file.value(name)
        if value is None:
            file.rest(name)
        else:
            line += f" --{short} {value}"
            recipe.mapped.append(Mapped(file.left.pop(name).key, "preview.prompts", value))
    preview = recipe.settings.setdefault("preview", {})
    preview["prompts"] = [*preview.get("prompts", []), line]


def _adaptation(row: Row, file: _Config) -> None:
    """Arguments of the optimizers that find their rate; saved with every other one too."""
    from loraloom.training.optimizer_names import is_adaptive

    recipe = file.recipe
    names = ("beta1", "beta2", "d0", "eps")
    found = {name: item for name in names if (item := file.take(f"adaptation_{name}")) is not None}

    # The form saves these fields with every optimizer, also with those that do not know them.
    optimizer = file.left.get("optimizer")
    is_used = optimizer is not None and is_adaptive(str(optimizer.value))
    betas = [found[name].value for name in ("beta1", "beta2") if name in found]

    for name, item in found.items():
        if not is_used or is_nothing(item.value) or str(item.value) in ("0", "0.0"):
            recipe.rest(item.key)
        elif name == "d0":
            recipe.set("optimizer.args", {**(recipe.get("optimizer.args") or {}), "d0": item.value}, item.key)
        elif name == "eps":
            recipe.set("optimizer.eps", item.value, item.key)
        elif len(betas) == 2:
            recipe.set("optimizer.betas", betas, item.key)
        else:
            recipe.skip(item.key, "optimizer.betas takes both, and only one is given")


# -- what goes on as sd-scripts' arguments -------------------------------------------------------------------------

CONFIG_NAMES = {
    "num_train_epochs": "max_train_epochs",
    "train_batch_size": "train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_checkpointing": "gradient_checkpointing",
    "resolution": "resolution",
    "hflip": "flip_aug",
    "mixed_precision": "mixed_precision",
    "clip_skip": "clip_skip",
    "max_token_length": "max_token_length",
    "shuffle_tags": "shuffle_caption",
    "lr_scheduler": "lr_scheduler",
    "lr_warmup_steps": "lr_warmup_steps",
    "lr_cycles": "lr_scheduler_num_cycles",
    "lr_power": "lr_scheduler_power",
    "lora_learning_rate": "unet_lr",
    "lora_txt_learning_rate": "text_encoder_lr",
    "lora_rank": "network_dim",
    "lora_unet_rank": "network_dim",
    "optimizer": "optimizer_type",
    "use_8bit_adam": "use_8bit_adam",
    "offset_noise": "noise_offset",
    "min_snr_gamma": "min_snr_gamma",
    "prior_loss_weight": "prior_loss_weight",
    "v2": "v2",
    "pretrained_vae_name_or_path": "vae",
    "save_embedding_every": "save_every_n_epochs",
    "save_preview_every": "sample_every_n_epochs",
}
"""Keys of db_config.json that are sd-scripts' under another name."""

_SCHEDULES = {"linear_with_warmup": "linear", "dadapt_with_warmup": "constant_with_warmup"}


def _hand_on(row: Row, file: _Config) -> None:
    item, theirs = file.left.pop(row.key), CONFIG_NAMES[row.key]
    if theirs in file.items:
        file.recipe.skip(item.key, f"{file.items[theirs].key} counts")
    else:
        file.items[theirs] = item


def _schedule(row: Row, file: _Config) -> None:
    """Two lr schedules have names that only that program gives them."""
    item = file.left[row.key]
    if isinstance(item.value, str):
        file.left[row.key] = Item(item.key, _SCHEDULES.get(item.value, item.value))
    _hand_on(row, file)


def _shuffle(row: Row, file: _Config) -> None:
    """There the first tag stays where it is."""
    if file.left[row.key].value is True:
        file.items = {"keep_tokens": Item("(shuffle_tags)", 1), **file.items}
    _hand_on(row, file)


def _files_between(row: Row, file: _Config) -> None:
    """0 means none, which sd-scripts says by leaving the key out."""
    item = file.left[row.key]
    if str(item.value) in ("0", "0.0"):
        file.recipe.set(row.ours, 0, file.left.pop(row.key).key)
    else:
        _hand_on(row, file)


_EXCEPTIONS: Mapping[str, Callable[[Row, Any], None]] = {
    "lr_scheduler": _schedule,
    "shuffle_tags": _shuffle,
    "save_embedding_every": _files_between,
}


def _regularization(row: Row, file: _Config) -> None:
    """Whether the weight of regularization images falls while a run goes on; if not, two more fields are idle."""
    item = file.left.pop(row.key)
    if not item.value:
        file.recipe.rest(item.key)
        file.rest("prior_loss_target", "prior_loss_weight_min")
        return
    file.recipe.change(item.key, "the weight falls to objective.prior_loss_min")
    lowest = file.take("prior_loss_weight_min")
    if lowest is not None:
        file.recipe.set("objective.prior_loss_min", lowest.value, lowest.key)
    file.skip("prior_loss_target", "counted in epochs there; objective.prior_loss_steps is counted in steps")


def _center_crop(row: Row, file: _Config) -> None:
    item = file.left.pop(row.key)
    file.recipe.set(row.ours, not item.value, item.key)


def later(row: Row, file: _Config) -> None:
    """Nothing here: with a value it is reported with the remark, once everything else has been read."""


# -- the table -----------------------------------------------------------------------------------------------------

_STATE = "a count or a place of that model, not a setting"
_FULL = "for training the whole model (use_lora off); this recipe trains a LoRA"
_CKPT = Sentence("training a LoRA writes a LoRA file; ", Action.MERGE_LORAS, " makes a checkpoint of it")
_ALWAYS = "what was trained is always written at the end and when a run is stopped; see saving.every_epochs"
_STRENGTH = "the strength of a LoRA is chosen when it is used or merged"
_ENCODED = "pictures are always encoded once, before the first step"
_ONE_RANK = "settings of adapters cannot say it: one rank, adapter.rank, holds for U-Net and text encoder"
_PAINTED = Sentence("regularization images are made before training: ", Action.MAKE_CLASS_IMAGES)
_AVERAGE = "an average of the whole model (use_lora off); that of a LoRA is ema.enabled=true"

TABLE = (
    # What is trained. The four below the first count with use_lora off.
    Row("use_lora", "adapter.kind", _use_lora, "off: method = full"),
    Row("learning_rate", "optimizer.lr", later, _FULL),
    Row("txt_learning_rate", "optimizer.text_encoder_lr", later, _FULL),
    Row("half_model", "saving.precision", later, _CKPT),
    Row("save_safetensors", "saving.format", later, "LoRA files are safetensors unless saving.format says otherwise"),
    Row("lora_model_name", "adapter.start_from", _start_from),
    Row("model_name", "name", unless()),
    *together(_checkpoint, "checkpoint", "src", "pretrained_model_name_or_path"),
    # Concepts: in this file or in one that it names.
    Row("concepts_list", "dataset.concepts", take_config_concepts, always=True),
    *together(later, "dataset.concepts", "use_concepts", "concepts_path"),
    # How it is trained.
    Row("not_cache_latents", "", _always, _ENCODED),
    *together(_text_encoder_stop, "optimizer.text_encoder_stop", "stop_text_encoder", "train_text_encoder"),
    Row("train_unet", "adapter.unet", _train_unet),
    *together(_weight_decay, "optimizer.weight_decay", "weight_decay", "adamw_weight_decay"),
    Row("use_ema", "ema.enabled", _ema, _AVERAGE),
    *together(_sanity, "preview.prompts", "sanity_prompt", "sanity_negative_prompt", "sanity_seed"),
    *together(_adaptation, "optimizer.betas", "adaptation_beta1", "adaptation_beta2"),
    Row("adaptation_d0", "optimizer.args", _adaptation),
    Row("adaptation_eps", "optimizer.eps", _adaptation),
    # The same as an argument of sd-scripts.
    *(Row(key, setting_of(theirs) or "", _EXCEPTIONS.get(key, _hand_on)) for key, theirs in CONFIG_NAMES.items()),
    Row("prior_loss_scale", "objective.prior_loss_min", _regularization),
    Row("prior_loss_target", "", later, "see objective.prior_loss_steps"),
    Row("prior_loss_weight_min", "objective.prior_loss_min", later, "see objective.prior_loss_min"),
    Row("center_crop", "dataset.buckets", _center_crop, "the other way round"),
    # What becomes no setting, and why.
    *without_setting(
        _STATE, "model_dir model_path revision lifetime_revision initial_revision total_steps epoch has_ema", later
    ),
    Row("model_type", "", later, "detected from the checkpoint"),
    Row("snapshot", "", later, Sentence("a run goes on from its own folder: ", Action.TRAIN_ON)),
    Row("train_unfrozen", "", later, "all layers of the chosen parts are trained with method=full"),
    Row("custom_model_name", "", later, "see name"),
    Row("use_subdir", "", later, "every run has a folder of its own"),
    *without_setting(_ALWAYS, "save_ckpt_after save_ckpt_cancel save_ckpt_during", later),
    Row("save_lora_after", "", later, "a LoRA file is always written at the end"),
    Row("save_lora_cancel", "", later, "a LoRA file is always written when a run is stopped"),
    Row("save_lora_during", "", later, "see saving.every_epochs"),
    Row("save_lora_for_extra_net", "", later, "LoRA files are always in the form that the web UI reads"),
    *without_setting("see [ema]", "save_ema ema_predict infer_ema", later),
    *without_setting(_STRENGTH, "lora_weight lora_txt_weight", later),
    Row("lora_use_buggy_requires_grad", "", later, "a fault of that program"),
    Row("attention", "", later, "not needed: attention is PyTorch's memory-efficient one"),
    *without_setting("always done", "cache_latents gradient_set_to_none", later),
    Row("pad_tokens", "", later, "captions are always padded, as programs that use the LoRA do"),
    Row("strict_tokens", "", later, "captions are used as they are"),
    Row("graph_smoothing", "", later, "only the look of a graph"),
    *without_setting("training does not pause between epochs", "epoch_pause_frequency epoch_pause_time", later),
    Row("lr_factor", "", later, "the starting factor of constant and linear is not offered"),
    Row("lr_scale_pos", "", later, "the point at which constant changes is not offered"),
    Row("learning_rate_min", "", later, "see lr_schedule.min_lr_ratio"),
    Row("scheduler", "", later, "the sampler of previews is preview.sampler"),
    *without_setting(
        "noise is added as the checkpoint was trained (DDPM)", "noise_scheduler deis_train_scheduler", later
    ),
    Row("train_imagic", "", later, "Imagic is not offered"),
    Row("tomesd", "", later, "merging tokens is not offered"),
    *without_setting("DREAM is not offered", "use_dream dream_detail_preservation", later),
    Row("freeze_clip_normalization", "", later, "a LoRA leaves normalisation layers as they are"),
    Row("freeze_spectral_norm", "", later, "not offered"),
    Row("split_loss", "", later, "the loss is one number"),
    Row("disable_class_matching", "", later, "regularization images are not matched with pictures"),
    Row("disable_logging", "", later, "every run logs to its own folder"),
    Row("deterministic", "", later, "runs of one seed are always identical"),
    Row("dynamic_img_norm", "", later, "pictures are not stretched in contrast"),
    Row("input_pertubation", "", later, "see objective.ip_noise_gamma"),
    Row("tenc_grad_clip_norm", "", later, "see optimizer.max_grad_norm"),
    Row("tenc_weight_decay", "", later, "one weight decay holds for all parts"),
    *without_setting("checkpoints are used as they are", "shared_diffusers_path use_shared_src", later),
    Row("tf32_enable", "", later, "not offered; mixed_precision=bf16 is faster than it"),
    Row("full_mixed_precision", "", later, "what is trained stays in fp32 here; mixed_precision decides the rest"),
    Row("save_class_txt", "", later, _PAINTED),
    *without_setting("see saving.state", "save_state_after save_state_cancel save_state_during", later),
    Row("lora_txt_rank", "", later, _ONE_RANK),
    Row("sample_batch_size", "", later, _PAINTED),
    Row("use_lora_extended", "", later, "convolutions are trained too where adapter.conv_rank is above 0"),
)
"""Every key of a db_config.json, in the order in which they are read."""
