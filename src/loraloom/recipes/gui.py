"""The JSON that kohya_ss (the GUI) saves: its own key names and its own rules, turned into sd-scripts' arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraloom.plain_data import finite, shown
from loraloom.recipes.arguments import is_default
from loraloom.recipes.names import WHOLE_MODEL_RATES
from loraloom.recipes.recipe import Item, Items, Recipe, is_nothing, listed
from loraloom.recipes.scripts import command_arguments
from loraloom.recipes.sd_scripts import items_of, take_arguments

__all__ = ["GUI_NAMES", "is_gui_file", "take_gui_file"]

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
_MODULES = {
    "Standard": "networks.lora",
    "Kohya LoCon": "networks.lora",
    "LoRA-FA": "networks.lora_fa",
    "Kohya DyLoRA": "networks.dylora",
    "Kohya LoHa": "networks.loha",
    "Kohya LoKr": "networks.lokr",
    "LoCon": "lycoris.kohya algo=locon",
}
_NETWORK_KEYS = listed(
    "conv_dim conv_alpha block_dims block_alphas conv_block_dims conv_block_alphas conv_dims conv_alphas rank_dropout "
    "module_dropout rank_dropout_scale unit factor bypass_mode dora_wd use_cp use_tucker use_scalar constrain rescaled "
    "train_norm decompose_both train_on_input down_lr_weight mid_lr_weight up_lr_weight block_lr_zero_threshold "
    "LyCORIS_preset loraplus_lr_ratio loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio"
)
_ONLY_LORA = listed(
    "network_dim network_alpha network_dropout lora_network_weights dim_from_weights scale_weight_norms unet_lr "
    "text_encoder_lr"
)
_BLOCKS = (
    "down_lr_weight mid_lr_weight up_lr_weight block_lr_zero_threshold "
    "block_dims block_alphas conv_block_dims conv_block_alphas"
)
_PLUS = "loraplus_lr_ratio loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio"
_LYCORIS = "LyCORIS_preset conv_dim conv_alpha rank_dropout module_dropout rank_dropout_scale train_norm"
_USED_BY = {
    "Standard": f"{_BLOCKS} rank_dropout module_dropout {_PLUS}",
    "Kohya LoCon": f"conv_dim conv_alpha {_BLOCKS} rank_dropout module_dropout {_PLUS}",
    "LoRA-FA": f"{_BLOCKS} rank_dropout module_dropout {_PLUS}",
    "Kohya DyLoRA": f"conv_dim conv_alpha {_BLOCKS} rank_dropout module_dropout unit {_PLUS}",
    "Kohya LoHa": f"conv_dim conv_alpha use_tucker rank_dropout module_dropout {_PLUS}",
    "Kohya LoKr": f"conv_dim conv_alpha use_tucker factor rank_dropout module_dropout {_PLUS}",
    "LyCORIS/LoCon": f"{_LYCORIS} use_tucker bypass_mode dora_wd use_scalar {_PLUS}",
    "LoCon": f"{_LYCORIS} use_tucker bypass_mode dora_wd use_scalar {_PLUS}",
    "LyCORIS/LoHa": f"{_LYCORIS} use_tucker bypass_mode dora_wd use_scalar {_PLUS}",
    "LyCORIS/LoKr": f"{_LYCORIS} use_tucker bypass_mode dora_wd factor use_cp use_scalar decompose_both {_PLUS}",
    "LyCORIS/Diag-OFT": f"{_LYCORIS} use_tucker constrain rescaled {_PLUS}",
    "LyCORIS/BOFT": f"{_LYCORIS} use_tucker {_PLUS}",
    "LyCORIS/DyLoRA": f"{_LYCORIS} use_tucker unit {_PLUS}",
    "LyCORIS/GLoRA": f"{_LYCORIS} use_tucker {_PLUS}",
    "LyCORIS/iA3": f"LyCORIS_preset conv_dim conv_alpha train_on_input {_PLUS}",
    "LyCORIS/Native Fine-Tuning": f"LyCORIS_preset rank_dropout module_dropout rank_dropout_scale train_norm {_PLUS}",
}
"""Which of the keys above the GUI passes on for each LoRA_type; it saves the others all the same."""
_PASSED_AS = {"LyCORIS_preset": "preset", "constrain": "constraint"}
_FAMILY_SWITCHES = ("flux1_checkbox", "sd3_checkbox", "hunyuan_image_checkbox", "anima_checkbox", "lumina_checkbox")
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
_INTERFACE = {
    "model_list": "the entry of a menu; pretrained_model_name_or_path says what is trained on",
    "save_as_bool": "part of the form",
    "file_path": "part of the form",
    "print_only": "part of the form",
    "headless": "part of the form",
    "train_unet_only": "part of the form",
}


def is_gui_file(data: Any) -> bool:
    """Whether parsed JSON is what the GUI saves."""
    return isinstance(data, Mapping) and ("LoRA_type" in data or len(_MARKS & set(data)) >= 3)


def take_gui_file(data: Mapping[str, Any], recipe: Recipe) -> None:
    """Translate what the GUI saved into ``recipe``."""
    left = {str(key): value for key, value in data.items() if value is not None}
    for key in set(map(str, data)) - set(left):
        recipe.rest(key)
    for switch in _FAMILY_SWITCHES:
        if left.get(switch) is True:
            recipe.problem("", f"{switch} is on: that family of models is not trained here (SD 1, SD 2 and SDXL are)")
    for key in [key for key in left if key in _FAMILY_KEYS or key.startswith(_FAMILY_PREFIXES)]:
        recipe.rest(key) if _off(left[key]) else recipe.skip(
            key, "belongs to another family of models (SD3, FLUX, ...)"
        )
        del left[key]
    for key in [key for key in left if key in _INTERFACE]:
        recipe.rest(key) if _off(left[key]) else recipe.skip(key, _INTERFACE[key])
        del left[key]
    more = left.pop("additional_parameters", None)
    _attention(left, recipe)
    _noise(left, recipe)
    _warmup(left, recipe)
    is_lora = left.get("LoRA_type") is not None
    _length(left, recipe, is_lora=is_lora)
    items: Items = {}
    if is_lora:
        _network(left, items, recipe)
    else:
        _no_network(left, recipe)
    _rates(left, recipe)
    pairs = list(left.items())
    items |= items_of(((GUI_NAMES.get(key, key), value) for key, value in pairs), recipe)
    for key, name in GUI_NAMES.items():
        if name in items and key in left:
            items[name] = Item(key, left[key])
    if is_nothing(more):
        if more is not None:
            recipe.rest("additional_parameters")
    else:
        for name, value in command_arguments(str(more), "batch", recipe):
            if name == "network_args" and name in items:
                _replaced(items[name].value, value, recipe)
            elif name in items:
                recipe.change(items[name].key, f"additional_parameters says {name} too, which counts")
            items[name] = Item(f"additional_parameters: {name}", value)
        recipe.change("additional_parameters", "read as a command line")
    take_arguments(items, recipe, whole="" if is_lora else "(LoRA_type)")
    _name_as_in_the_form(recipe)


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
    own = {passed: key for key, passed in _PASSED_AS.items()} | {"algo": "LoRA_type"}
    recipe.changed = [(key, note) for key, note in recipe.changed if key != "algo"]  # the type is told already
    recipe.rename(lambda key: own.get(key, key))


def _off(value: Any) -> bool:
    return is_nothing(value) or value is False or str(value).strip() in ("0", "0.0")


def _attention(left: dict[str, Any], recipe: Recipe) -> None:
    """A menu (xformers, sdpa, none); a switch in older files."""
    value = left.pop("xformers", None)
    if value is not None:
        recipe.rest("xformers") if _off(value) or value == "none" else recipe.skip(
            "xformers", "not needed: attention is PyTorch's memory-efficient one"
        )


def _noise(left: dict[str, Any], recipe: Recipe) -> None:
    """The menu decides which of two groups of fields counts; the GUI saves both."""
    kind = left.pop("noise_offset_type", None)
    if kind is None:
        return
    multires = kind == "Multires"
    others = (
        ("noise_offset", "noise_offset_random_strength", "adaptive_noise_scale")
        if multires
        else ("multires_noise_iterations", "multires_noise_discount")
    )
    for key in others:
        if key in left:
            value = left.pop(key)
            recipe.rest(key) if _off(value) else recipe.change(key, f"left out: noise_offset_type is {kind}")
    recipe.change("noise_offset_type", f"{kind}: only its own fields count")


def _warmup(left: dict[str, Any], recipe: Recipe) -> None:
    """lr_warmup is a percentage of the run; lr_warmup_steps, where above 0, counts instead."""
    percent, steps = left.pop("lr_warmup", None), left.get("lr_warmup_steps")
    if percent is None:
        return
    given, absolute = (0.0 if is_nothing(value) else finite(value) for value in (percent, steps))
    if given is None or absolute is None:
        wrong, value = ("lr_warmup", percent) if given is None else ("lr_warmup_steps", steps)
        recipe.problem("lr_schedule.warmup_steps", f"{wrong} = {shown(value)} is not a number")
        return
    share = given / 100
    if share == 0:
        recipe.rest("lr_warmup")
    elif absolute > 0:
        recipe.change("lr_warmup", "left out: lr_warmup_steps counts")
    else:
        if steps is not None:
            recipe.rest("lr_warmup_steps")
            del left["lr_warmup_steps"]
        recipe.set("lr_schedule.warmup_steps", share, "lr_warmup", note=f"{percent} % of the run as a share: {share:g}")


def _length(left: dict[str, Any], recipe: Recipe, *, is_lora: bool) -> None:
    """max_train_steps counts before epoch, and max_train_epochs before both."""
    epoch, steps, epochs = (left.get(key) for key in ("epoch", "max_train_steps", "max_train_epochs"))
    has_steps, has_epochs = not _off(steps), not _off(epochs)
    if epoch is not None:
        del left["epoch"]
        if has_epochs or has_steps:
            winner = "max_train_epochs" if has_epochs else "max_train_steps"
            recipe.change("epoch", f"left out: {winner} decides the length")
        elif not _off(epoch):
            recipe.set("epochs", epoch, "epoch")
        else:
            recipe.rest("epoch")
    for key in ("stop_text_encoder_training", "stop_text_encoder_training_pct"):
        if key not in left:
            continue
        value = left.pop(key)
        if _off(value):
            recipe.rest(key)
        elif is_lora:
            recipe.skip(key, "the GUI leaves it out for LoRA")
        elif (percent := finite(value)) is not None and percent > 0:
            recipe.set("optimizer.text_encoder_stop", min(1.0, percent / 100), key, note=f"{value} % of the run")
        else:
            recipe.problem("optimizer.text_encoder_stop", f"{key} = {shown(value)} is not a percentage")
    if is_nothing(left.get("lr_scheduler_num_cycles")) and "restarts" in str(left.get("lr_scheduler")) and epoch:
        left["lr_scheduler_num_cycles"] = epoch  # what the GUI passes on for an empty field


def _rates(left: dict[str, Any], recipe: Recipe) -> None:
    """Where one of two rates is 0, the other part alone is trained; where both are, learning_rate holds for both."""
    keys = [key for key in ("unet_lr", "text_encoder_lr") if key in left]
    if len(keys) == 2 and all(_off(left[key]) for key in keys):
        for key in keys:
            recipe.rest(key)
            del left[key]


def _no_network(left: dict[str, Any], recipe: Recipe) -> None:
    """A file for whole models: of its fields for text encoders those that the form shows for the family count."""
    if not _off(left.get("token_string")):
        text = (
            "the file is for training an embedding, which is not offered; method=full or method=adapter trains a model"
        )
        recipe.problem("method", f"token_string = {shown(left['token_string'])}: {text}")
    for key in [key for key in left if key in _NETWORK_KEYS or key in _ONLY_LORA]:
        value = left.pop(key)
        recipe.rest(key) if _off(value) or is_default(key, value) else recipe.change(key, "left out: for LoRA")
    unused = ("learning_rate_te",) if left.get("sdxl") else ("learning_rate_te1", "learning_rate_te2")
    for key in unused if any(key in left for key in set(WHOLE_MODEL_RATES) - set(unused)) else ():
        if key in left:
            recipe.rest(key)
            del left[key]


def _network(left: dict[str, Any], items: Items, recipe: Recipe) -> None:
    given = left.pop("LoRA_type")
    kind = given if isinstance(given, str) else ""
    used = set(_USED_BY.get(kind, "").split())
    module = _MODULES.get(kind)
    if module is None and kind.startswith("LyCORIS/"):
        algorithm = {"Diag-OFT": "diag-oft", "Native Fine-Tuning": "full"}.get(kind[8:], kind[8:].lower())
        module = f"lycoris.kohya algo={algorithm}"
    if module is None:
        recipe.problem("adapter.kind", f"LoRA_type {shown(given)} is not offered here")
        module = "networks.lora"
    module, _, algorithm = module.partition(" algo=")
    table: dict[str, Any] = {}
    for key in [key for key in left if key in _NETWORK_KEYS]:
        value = left.pop(key)
        name = _PASSED_AS.get(key, key)
        if key not in used:
            recipe.rest(key) if _off(value) or not used or is_default(key, value) else recipe.change(
                key, f"left out: no part of {kind}"
            )
        elif _off(value):
            recipe.rest(key)
        else:
            table[name] = value
    if algorithm:
        items["network_module"] = Item("LoRA_type", f"{module}")
        table["algo"] = algorithm
    else:
        items["network_module"] = Item("LoRA_type", module)
    if table:
        items["network_args"] = Item("", table)
