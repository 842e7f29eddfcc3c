"""The JSON that kohya_ss (the GUI) saves: its own key names and its own rules, turned into sd-scripts' arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraloom.plain_data import finite, shown
from loraloom.recipes.arguments import is_default
from loraloom.recipes.gui_networks import NETWORK_KEYS, NETWORKS, PASSED_AS, used_by
from loraloom.recipes.names import setting_of
from loraloom.recipes.recipe import Item, Items, Recipe, is_nothing, listed
from loraloom.recipes.rows import Reading, Row, off, together
from loraloom.recipes.scripts import command_arguments
from loraloom.recipes.sd_scripts import items_of, take_arguments

__all__ = ["GUI_NAMES", "TABLE", "is_gui_file", "take_gui_file"]

_MARKS = {"LoRA_type", "max_resolution", "lr_warmup", "model_list", "stop_text_encoder_training", "epoch", "optimizer"}
GUI_NAMES = {
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "lora_network_weights": "network_weights",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sdxl_no_half_vae": "no_half_vae",
    "constrain": "constraint",
}
"""Keys of the GUI that are sd-scripts' under another name."""


def is_gui_file(data: Any) -> bool:
    """Whether parsed JSON is what the GUI saves."""
    return isinstance(data, Mapping) and ("LoRA_type" in data or len(_MARKS & set(data)) >= 3)


@dataclass
class _Form(Reading):
    """A form while it is read; what is left in the end goes on as sd-scripts' arguments."""

    items: Items = field(default_factory=dict)
    """Arguments that no field of the form is alone."""

    @property
    def is_lora(self) -> bool:
        """Whether a LoRA is trained, not the whole model."""
        return "LoRA_type" in self.left or "network_module" in self.items


def take_gui_file(data: Mapping[str, Any], recipe: Recipe) -> None:
    """Translate what the GUI saved into ``recipe``."""
    form = _Form(recipe, {str(key): Item(str(key), value) for key, value in data.items()})
    form.rest(*(key for key, item in list(form.left.items()) if item.value is None))
    form.walk(_FAMILIES)
    _other_families(form)
    more = form.take("additional_parameters")

    form.walk(_RULES)
    is_lora = form.is_lora
    if is_lora:
        _network(form)
    else:
        _no_network(form)
    _rates(form)

    left = dict(form.left)
    items = form.items | items_of(((GUI_NAMES.get(key, key), item.value) for key, item in left.items()), recipe)

    # Remarks name a field as the GUI does, not by the name that it has in sd-scripts.
    for key, name in GUI_NAMES.items():
        if name in items and key in left:
            items[name] = left[key]
    if more is not None:
        _additional_parameters(more, items, recipe)

    take_arguments(items, recipe, whole="" if is_lora else "(LoRA_type)")
    _name_as_in_the_form(recipe)


def _additional_parameters(more: Item, items: Items, recipe: Recipe) -> None:
    """A field with a command line, which the GUI puts behind its own."""
    if is_nothing(more.value):
        recipe.rest(more.key)
        return
    for name, value in command_arguments(str(more.value), "batch", recipe):
        if name == "network_args" and name in items:
            _replaced(items[name].value, value, recipe)
        elif name in items:
            recipe.change(items[name].key, f"additional_parameters says {name} too, which counts")
        items[name] = Item(f"additional_parameters: {name}", value)
    recipe.change(more.key, "read as a command line")


def _replaced(form: Mapping[str, Any], given: Any, recipe: Recipe) -> None:
    """``--network_args`` among the additional parameters: sd-scripts takes that list alone, not the form's fields."""
    for name in form:
        if name != "algo":
            recipe.change(name, "left out: additional_parameters gives network_args, which takes the place of them all")
    algorithm = form.get("algo", "locon")
    if algorithm not in ("lora", "locon") and "algo=" not in str(given):
        note = (
            f"without algo={algorithm} LyCORIS trains a LoCon, as there; adapter.kind={algorithm} is what the form says"
        )
        recipe.change("(additional_parameters: algo)", note)


def _name_as_in_the_form(recipe: Recipe) -> None:
    own = {passed: key for key, passed in PASSED_AS.items()} | {"algo": "LoRA_type"}
    recipe.changed = [(key, note) for key, note in recipe.changed if key != "algo"]  # the type is named already
    recipe.rename(lambda key: own.get(key, key))


# -- other families, and parts of the window -----------------------------------------------------------------------


def _family_switch(row: Row, form: _Form) -> None:
    """Left for :func:`_other_families`, which accounts for all keys of other families in the form's order."""
    if form.left[row.key].value is True:
        text = f"{row.key} is on: that family of models is not trained here (SD 1, SD 2 and SDXL are)"
        form.recipe.problem("", text)


def _other_families(form: _Form) -> None:
    for key in [key for key in form.left if key in _FAMILY_KEYS or key.startswith(_FAMILY_PREFIXES)]:
        if off(form.left[key].value):
            form.rest(key)
        else:
            form.skip(key, "belongs to another family of models (SD3, FLUX, ...)")
    for key in [key for key in form.left if key in _WINDOW]:
        if off(form.left[key].value):
            form.rest(key)
        else:
            form.skip(key, _WINDOW[key])


_FAMILY_KEYS = frozenset(
    listed(
        "t5xxl_lr model_type ae clip_l clip_g t5xxl discrete_flow_shift model_prediction_type timestep_sampling "
        "split_mode train_blocks t5xxl_max_token_length enable_all_linear guidance_scale mem_eff_save "
        "apply_t5_attn_mask split_qkv train_t5xxl cpu_offload_checkpointing blocks_to_swap single_blocks_to_swap "
        "double_blocks_to_swap show_timesteps show_timesteps_resolution img_attn_dim img_mlp_dim img_mod_dim "
        "single_dim txt_attn_dim txt_mlp_dim txt_mod_dim single_mod_dim in_dims train_double_block_indices "
        "train_single_block_indices clip_g_dropout_rate logit_mean logit_std mode_scale pos_emb_random_crop_rate "
        "save_clip save_t5xxl t5xxl_device t5xxl_dtype weighting_scheme train_lora_ggpo ggpo_sigma ggpo_beta "
        "fp8_base_unet"
    )
)
_FAMILY_PREFIXES = ("flux1_", "sd3_", "hunyuan_", "anima_", "lumina_")
_FORM = "part of the form"
_WINDOW = {
    "model_list": "the entry of a menu; pretrained_model_name_or_path says what is trained on",
    "save_as_bool": _FORM,
    "file_path": _FORM,
    "print_only": _FORM,
    "headless": _FORM,
    "train_unet_only": _FORM,
}


# -- rules of the form ---------------------------------------------------------------------------------------------


def _attention(row: Row, form: _Form) -> None:
    """A menu (xformers, sdpa, none); a switch in older files."""
    value = form.left[row.key].value
    if off(value) or value == "none":
        form.rest(row.key)
    else:
        form.skip(row.key, row.remark)


_NOISE_OFFSET = ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")
_MULTIRES_NOISE = ("multires_noise_iterations", "multires_noise_discount")


def _noise(row: Row, form: _Form) -> None:
    """The menu decides which of two groups of fields counts; the GUI saves both."""
    kind = form.left[row.key].value
    for key in _NOISE_OFFSET if kind == "Multires" else _MULTIRES_NOISE:
        if key in form.left and off(form.left[key].value):
            form.rest(key)
        else:
            form.change(key, f"left out: noise_offset_type is {kind}")
    form.change(row.key, f"{kind}: only its own fields count")


def _warmup(row: Row, form: _Form) -> None:
    """lr_warmup is a percentage of the run; lr_warmup_steps, where above 0, counts instead."""
    percent, steps = form.left.pop(row.key).value, form.left.get("lr_warmup_steps")
    share = 0.0 if is_nothing(percent) else finite(percent)
    absolute = 0.0 if steps is None or is_nothing(steps.value) else finite(steps.value)
    if share is None or absolute is None:
        wrong, value = (row.key, percent) if share is None else ("lr_warmup_steps", steps and steps.value)
        form.recipe.problem(row.ours, f"{wrong} = {shown(value)} is not a number")
    elif share == 0:
        form.recipe.rest(row.key)
    elif absolute > 0:
        form.recipe.change(row.key, "left out: lr_warmup_steps counts")
    else:
        form.rest("lr_warmup_steps")
        note = f"{percent} % of the run as a share: {share / 100:g}"
        form.recipe.set(row.ours, share / 100, row.key, note=note)


def _length(row: Row, form: _Form) -> None:
    """max_train_steps counts before epoch, and max_train_epochs before both."""
    epoch = form.left.pop(row.key).value
    longer = [
        key for key in ("max_train_epochs", "max_train_steps") if key in form.left and not off(form.left[key].value)
    ]
    if longer:
        form.recipe.change(row.key, f"left out: {longer[0]} decides the length")
    elif not off(epoch):
        form.recipe.set(row.ours, epoch, row.key)
    else:
        form.recipe.rest(row.key)
    _cycles(epoch, form)


def _cycles(epoch: Any, form: _Form) -> None:
    """What the GUI passes on for an empty field of restarts: one an epoch."""
    schedule = form.left.get("lr_scheduler")
    if form.value("lr_scheduler_num_cycles") is None and schedule and "restarts" in str(schedule.value) and epoch:
        form.left["lr_scheduler_num_cycles"] = Item("lr_scheduler_num_cycles", epoch)


def _text_encoder_stop(row: Row, form: _Form) -> None:
    """A percentage of the run; the GUI passes it on for whole models alone."""
    value = form.left.pop(row.key).value
    if off(value):
        form.recipe.rest(row.key)
    elif form.is_lora:
        form.recipe.skip(row.key, "the GUI leaves it out for LoRA")
    elif (percent := finite(value)) is not None and percent > 0:
        form.recipe.set(row.ours, min(1.0, percent / 100), row.key, note=f"{value} % of the run")
    else:
        form.recipe.problem(row.ours, f"{row.key} = {shown(value)} is not a percentage")


def _rates(form: _Form) -> None:
    """Where one of two rates is 0, the other part alone is trained; where both are, learning_rate holds for both."""
    keys = [key for key in ("unet_lr", "text_encoder_lr") if key in form.left]
    if len(keys) == 2 and all(off(form.left[key].value) for key in keys):
        form.rest(*keys)


# -- the network ---------------------------------------------------------------------------------------------------

_ONLY_LORA = listed(
    "network_dim network_alpha network_dropout lora_network_weights dim_from_weights scale_weight_norms unet_lr "
    "text_encoder_lr"
)


def _no_network(form: _Form) -> None:
    """A file for whole models: of its fields for text encoders those that the form shows for the family count."""
    token = form.left.get("token_string")
    if token is not None and not off(token.value):
        text = (
            "the file is for training an embedding, which is not offered; method=full or method=adapter trains a model"
        )
        form.recipe.problem("method", f"token_string = {shown(token.value)}: {text}")

    # The form saves the fields of LoRA with whole models too, where most are as they always were.
    for key in [key for key in form.left if key in NETWORK_KEYS or key in _ONLY_LORA]:
        value = form.left[key].value
        if off(value) or is_default(key, value):
            form.rest(key)
        else:
            form.change(key, "left out: for LoRA")

    sdxl = form.left.get("sdxl")
    one, two = ("learning_rate_te",), ("learning_rate_te1", "learning_rate_te2")
    unused, shown_ones = (one, two) if sdxl is not None and sdxl.value else (two, one)
    if any(key in form.left for key in shown_ones):
        form.rest(*unused)


def _network(form: _Form) -> None:
    """The GUI saves the fields of all kinds, and passes on those of the one that is chosen."""
    recipe, given = form.recipe, form.left.pop("LoRA_type").value
    kind = given if isinstance(given, str) else ""
    module = NETWORKS[kind].module if kind in NETWORKS else None

    if module is None and kind.startswith("LyCORIS/"):
        module = f"lycoris.kohya algo={kind[8:].lower()}"
    if module is None:
        recipe.problem("adapter.kind", f"LoRA_type {shown(given)} is not offered here")
        module = "networks.lora"
    module, _, algorithm = module.partition(" algo=")

    # Of a field that the chosen kind does not use only a changed value is worth a remark.
    used = used_by(kind)
    table: dict[str, Any] = {}
    for key in [key for key in form.left if key in NETWORK_KEYS]:
        value = form.left[key].value
        if key in used and not off(value):
            table[PASSED_AS.get(key, key)] = form.left.pop(key).value
        elif key in used or off(value) or not used or is_default(key, value):
            form.rest(key)
        else:
            form.change(key, f"left out: no part of {kind}")

    form.items["network_module"] = Item("LoRA_type", module)
    if algorithm:
        table["algo"] = algorithm
    if table:
        form.items["network_args"] = Item("", table)


# -- the tables ----------------------------------------------------------------------------------------------------

_FAMILIES = together(
    _family_switch, "", "flux1_checkbox", "sd3_checkbox", "hunyuan_image_checkbox", "anima_checkbox", "lumina_checkbox"
)
_RULES = (
    Row("xformers", "", _attention, "not needed: attention is PyTorch's memory-efficient one"),
    Row("noise_offset_type", "", _noise, "Original or Multires: which fields count"),
    Row("lr_warmup", "lr_schedule.warmup_steps", _warmup, "`lr_schedule.warmup_steps`, as a share"),
    Row("epoch", "epochs", _length),
    Row("stop_text_encoder_training", "optimizer.text_encoder_stop", _text_encoder_stop, "a percentage"),
    Row("stop_text_encoder_training_pct", "optimizer.text_encoder_stop", _text_encoder_stop, "a percentage"),
)
TABLE = (
    *_FAMILIES,
    *_RULES,
    Row("LoRA_type", "adapter.kind"),
    *(Row(key, setting_of(theirs) or "") for key, theirs in GUI_NAMES.items()),
)
"""What the form has beside sd-scripts' own names."""
