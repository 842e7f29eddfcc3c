"""sd-scripts' arguments, however they were written down, as our settings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loraloom.errors import FileError, LoraloomError, UnknownNameError
from loraloom.plain_data import finite, shown
from loraloom.reading import read_text
from loraloom.recipes.dataset_config import take_dataset_config
from loraloom.recipes.names import (
    KINDS_NOT_OFFERED,
    KOHYA_SAMPLERS,
    SPELLINGS,
    WHOLE_MODEL_RATES,
    marked,
    reason_for,
    unknown,
)
from loraloom.recipes.parsing import flattened, read_document
from loraloom.recipes.recipe import (
    Item,
    Items,
    Mapped,
    Recipe,
    exists,
    field_rows,
    is_nothing,
    listed,
    resolved,
)

__all__ = ["arguments", "dataset_defaults", "given", "is_default", "items_of", "take_arguments", "take_one"]

_NOTHING_AT_ZERO = frozenset(
    listed(
        "clip_skip max_timestep max_train_steps max_train_epochs max_token_length loraplus_lr_ratio lr_decay_steps "
        "loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio min_bucket_reso max_bucket_reso multires_noise_discount "
        "lr_scheduler_num_cycles lr_scheduler_timescale conv_alpha huber_c huber_scale lr_scheduler_power "
        "save_last_n_epochs save_last_n_epochs_state validate_every_n_epochs stop_text_encoder_training "
        "token_warmup_min caption_dropout_every_n_epochs"
    )
)
"""Keys at which 0 means: not set."""
_DEFAULTS: Mapping[str, Any] = {
    "multires_noise_discount": 0.3,
    "dataset_repeats": 1,
    "max_data_loader_n_workers": 8,
    "vae_batch_size": 1,
    "zero_stage": 2,
    "dynamo_backend": ("inductor", "no", "NO"),
    "network_multiplier": 1.0,
    "base_weights_multiplier": 1.0,
    "factor": -1,
    "unit": 1,
    "num_processes": 1,
    "num_machines": 1,
    "dynamo_mode": "default",
    "logit_std": 1.0,
    "mode_scale": 1.29,
    "stop_text_encoder_training": 0,
    "log_with": "",
    "LyCORIS_preset": "full",
    "preset": "full",
}
"""Values at which keys that are no settings here do nothing."""
_KINDS = {
    "networks.lora": ("lora",),
    "networks.lora_fa": ("lora_fa", "lora-fa"),
    "networks.dylora": ("dylora",),
    "networks.oft": ("oft", "diag_oft"),
    "networks.loha": ("loha",),
    "networks.lokr": ("lokr",),
    "locon": ("lora",),
    "lora": ("lora",),
    "loha": ("loha",),
    "lokr": ("lokr",),
    "dylora": ("dylora",),
    "diag-oft": ("oft", "diag_oft"),
    "boft": ("boft",),
    "ia3": ("ia3",),
    "glora": ("glora",),
    "full": ("full",),
    "vera": ("vera",),
}
"""sd-scripts' modules and LyCORIS' algorithms, and what the adapter kind may be called."""
_LARGEST_RANK = 4096
_BETAS = re.compile(r"\(?\s*([\d.eE+-]+)\s*,\s*([\d.eE+-]+)\s*(?:,\s*([\d.eE+-]+)\s*)?\)?")


def items_of(pairs: Iterable[tuple[str, Any]], recipe: Recipe) -> Items:
    """Entries by sd-scripts' name. Of a key given twice the last counts, as it does there."""
    items: Items = {}
    for key, value in pairs:
        name = str(key).strip().lstrip("-").replace("-", "_")
        name = SPELLINGS.get(name, name)
        if name in items:
            earlier = items[name].key
            recipe.change(earlier, f"given again as {key}; the last one counts")
            if is_nothing(value):
                recipe.rest(str(key))
                continue
        items[name] = Item(str(key), value)
    return items


def take_arguments(items: Items, recipe: Recipe, *, defaults: bool = True, whole: str = "") -> None:
    """Translate sd-scripts' arguments into ``recipe``.

    ``defaults``: what is not given has sd-scripts' default. ``whole``: what says that the whole model is trained; empty
    where the arguments say it themselves.
    """
    items = dict(items)
    _merge_config_file(items, recipe)
    _whole_model(items, whole, recipe)
    for name in [name for name, item in items.items() if _says_nothing(name, item.value)]:
        recipe.rest(items.pop(name).key)
    spoken = frozenset(items)
    _optimizer(items, recipe)
    if defaults:
        _adafactor(items, recipe)
    _lr_schedule(items, recipe)
    _length(items, recipe)
    _rates(items, recipe)
    _network(items, recipe)
    _saving(items, recipe)
    _previews(items, recipe)
    _dataset(items, recipe)
    _checkpoint(items, recipe)
    for name, item in items.items():
        take_one(name, item, recipe)
    if defaults:
        _alpha_of_the_guide(items, spoken, recipe)
        _sd_scripts_defaults(spoken, recipe)


def take_one(name: str, item: Item, recipe: Recipe, *, network: bool = False) -> None:
    """One key by its mark, else the reason why there is no setting, else that it is not known."""
    path = marked().get(name)
    reason = reason_for(name, network=network)
    value = item.value
    if path is not None:
        if name == "v_parameterization":
            _take_prediction(item, recipe)
        elif name == "bucket_reso_steps" and (finite(value) or 8) % 8:
            step = max(8, round((finite(value) or 8) / 8) * 8)
            recipe.set(path, step, item.key, note=f"{value} became {step}: the VAE needs multiples of 8")
        else:
            recipe.set(path, _for_setting(path, value), item.key)
    elif name == "v_parameterization":
        _take_prediction(item, recipe)
    elif name == "bucket_no_upscale":
        recipe.set("dataset.upscale", not _truth(value), item.key)
    elif name in ("fp8_base", "fp8_base_unet"):
        _take_fp8(item, recipe)
    elif reason is not None:
        if is_default(name, value):
            recipe.rest(item.key)
        else:
            recipe.skip(item.key, reason)
    else:
        recipe.skip(item.key, unknown(name))
        recipe.unknown.append(item.key)


def given(items: Items, name: str) -> Any:
    """The value under a name, None where it says nothing."""
    item = items.get(name)
    return None if item is None or is_nothing(item.value) else item.value


def arguments(value: Any, key: str, recipe: Recipe) -> dict[str, Any]:
    """``["a=1", "b=x"]``, ``"a=1 b=x"`` or a table as a table. A part without an equals sign is a problem."""
    if isinstance(value, Mapping):
        return dict(value)
    parts = value if isinstance(value, (list, tuple)) else re.findall(r'(?:[^\s"\']|"[^"]*"|\'[^\']*\')+', str(value))
    found = {}
    for part in parts:
        name, equals, text = str(part).strip().strip("\"'").partition("=")
        if equals and name.strip():
            found[name.strip()] = text.strip().strip("\"'")
        elif name or equals:
            recipe.problem("", f"{key}: {shown(part)} is not name=value")
    return found


def _literal(text: Any) -> Any:
    """A value of ``optimizer_args`` as Python reads it; text that is no value stays text."""
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _says_nothing(name: str, value: Any) -> bool:
    if is_nothing(value):
        return True
    return name in _NOTHING_AT_ZERO and str(value).strip() in ("0", "0.0")


def is_default(name: str, value: Any) -> bool:
    if value is False or str(value).strip().lower() in ("false", "0", "0.0", "none"):
        return True
    default = _DEFAULTS.get(name)
    choices = default if isinstance(default, tuple) else (default,)
    return any(value == choice or str(value) == str(choice) for choice in choices if choice is not None)


def _truth(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in ("true", "1", "yes", "on")
    return bool(value)


def _for_setting(path: str, value: Any) -> Any:
    """Whole numbers that a form has made to 4.0, and one-entry lists of the command line."""
    row = field_rows()[path]
    if isinstance(value, (list, tuple)) and len(value) == 1 and "list" not in row.type and path != "dataset.resolution":
        value = value[0]
    if row.type.startswith("whole number") and isinstance(value, str) and re.fullmatch(r"\s*-?\d+\.0*\s*", value):
        return value.strip().partition(".")[0]
    return value


def _merge_config_file(items: Items, recipe: Recipe) -> None:
    item = items.pop("config_file", None)
    if item is None or is_nothing(item.value):
        return
    path = Path(resolved(str(item.value), recipe.folders))
    if not exists(path) and path.suffix != ".toml":
        path = path.with_name(path.name + ".toml")
    data = read_document(path).data
    if not isinstance(data, Mapping):
        recipe.problem("", f"{item.key}: {path} holds no settings")
        return
    for name, entry in items_of(flattened(data), recipe).items():
        if name in items:
            recipe.change(entry.key, f"{items[name].key} of the command line counts instead of {path.name}")
        else:
            items[name] = entry
    recipe.change(item.key, f"{path.name} was read")


def _optimizer(items: Items, recipe: Recipe) -> None:
    named = items.pop("optimizer_type", None)
    for switch, name in (("use_8bit_adam", "AdamW8bit"), ("use_lion_optimizer", "Lion")):
        item = items.pop(switch, None)
        if item is None:
            continue
        if not _truth(item.value):
            recipe.rest(item.key)
        elif named is not None:
            recipe.change(item.key, f"{named.key} = {named.value} counts instead")
        else:
            named = Item(item.key, name)
    options = items.pop("optimizer_args", None)
    if named is not None:
        _named_optimizer(named, recipe)
    if options is None:
        return
    told = arguments(options.value, options.key, recipe)
    for name, text in told.items():
        key, value = f"{options.key}: {name}", _literal(text)
        betas = _BETAS.fullmatch(str(text))
        if name == "betas" and betas:
            value = [float(part) for part in betas.groups() if part is not None]
        if name in ("weight_decay", "betas", "eps") and not (name == "eps" and isinstance(value, (list, tuple))):
            recipe.set(f"optimizer.{name}", value, key)
        elif "optimizer.args" in field_rows():
            path = "optimizer.args"
            value = list(value) if isinstance(value, tuple) else value
            recipe.set(path, {**(recipe.get(path) or {}), name: value}, key)
        else:
            recipe.skip(key, "this optimizer takes no such argument here")
    if not told:
        recipe.rest(options.key)


_SAME_METHODS = frozenset(
    listed("torch bitsandbytes pytorch_optimizer lion_pytorch prodigyopt dadaptation schedulefree transformers")
)
"""Packages whose classes sd-scripts means by its short names: those that have a name here are the same methods."""


def _named_optimizer(named: Item, recipe: Recipe) -> None:
    from loraloom.training.optimizer_names import find_class, find_optimizer, find_recipe

    if not isinstance(named.value, str):
        recipe.problem("optimizer.name", f"{named.key} = {shown(named.value)} is no name of an optimizer")
        return
    name = str(named.value).strip().partition("(")[0]
    package, _, short = name.rpartition(".")
    if package and package.partition(".")[0] not in _SAME_METHODS:
        recipe.set("optimizer.name", name, named.key)  # left out, unless it is a class that any file may name
        return
    try:
        found = find_optimizer(short)
    except UnknownNameError:
        if short.lower().startswith("sophia"):
            text = "Sophia needs second derivatives, which are not computed here; optimizer.name=lion is nearest to it"
            recipe.problem("optimizer.name", f"{named.key} = {name}: {text}")
            return
        whole = name if package else find_class(short)
        if whole is None:
            text = "the path of a class is another way to name one: package.Class"
            recipe.problem("optimizer.name", f"{named.key}: the optimizer {shown(name)} is not known here; {text}")
        else:
            note = "" if whole == name or "torch.optim" in whole else f"taken for {whole}"
            recipe.set("optimizer.name", whole, named.key, note=note)
        return
    same = not package or find_recipe(found).path == name
    recipe.set("optimizer.name", found, named.key, note="" if same else f"the same method is {found} here")


def _adafactor(items: Items, recipe: Recipe) -> None:
    """sd-scripts' Adafactor finds its rate by itself unless told otherwise, and then its schedule is its own."""
    if recipe.get("optimizer.name") != "adafactor":
        return
    given = recipe.get("optimizer.args") or {}
    told = "the learning rates change nothing then; optimizer.args.relative_step=false makes them count"
    if "relative_step" not in given:
        note = f"not given: true, as in sd-scripts; {told}"
        recipe.set("optimizer.args", {**given, "relative_step": True}, "(optimizer_args: relative_step)", note=note)
    elif not given["relative_step"] and given.get("warmup_init"):
        note = "true, because warmup_init needs it, as in sd-scripts"
        recipe.set("optimizer.args", {**given, "relative_step": True}, "(optimizer_args: relative_step)", note=note)
    given = recipe.get("optimizer.args")
    if "scale_parameter" not in given:
        note = "not given: true, as in sd-scripts"
        recipe.set("optimizer.args", {**given, "scale_parameter": True}, "(optimizer_args: scale_parameter)", note=note)
    if given["relative_step"]:
        for name in ("lr_scheduler", "lr_scheduler_type"):
            item = items.pop(name, None)
            if item is not None:
                recipe.change(item.key, "left out: Adafactor with relative_step has a schedule of its own")
        recipe.set("lr_schedule.name", "constant", "(lr_scheduler)", note="constant: the rate is Adafactor's own")


def _lr_schedule(items: Items, recipe: Recipe) -> None:
    from loraloom.training.lr_schedule_names import LR_SCHEDULES

    named, typed = items.pop("lr_scheduler", None), items.pop("lr_scheduler_type", None)
    options = items.pop("lr_scheduler_args", None)
    if typed is not None:
        if named is not None:
            recipe.change(named.key, f"{typed.key} = {typed.value} counts instead")
        named = typed
    if named is not None and not isinstance(named.value, str):
        recipe.problem("lr_schedule.name", f"{named.key} = {shown(named.value)} is no name of an lr schedule")
    elif named is not None:
        name = named.value.strip()
        if name.startswith("adafactor"):
            recipe.set("lr_schedule.name", "constant", named.key, note="the rate of Adafactor itself; constant here")
        elif name in LR_SCHEDULES or "." in name:
            recipe.set("lr_schedule.name", name, named.key)
        else:
            whole = f"torch.optim.lr_scheduler.{name}"
            known = name[:1].isupper() and recipe.set("lr_schedule.name", whole, named.key)
            if not known:
                recipe.problem("lr_schedule.name", f"{named.key}: the lr schedule {shown(name)} is not known here")
    if options is None:
        return
    found = {name: _literal(text) for name, text in arguments(options.value, options.key, recipe).items()}
    path = marked().get("lr_scheduler_args")
    for name, value in found.items():
        key = f"{options.key}: {name}"
        if path is None:
            recipe.skip(key, "arguments of lr schedules have settings of their own in [lr_schedule]")
        else:
            value = list(value) if isinstance(value, tuple) else value
            recipe.set(path, {**(recipe.get(path) or {}), name: value}, key)
    if not found:
        recipe.rest(options.key)


def _length(items: Items, recipe: Recipe) -> None:
    """sd-scripts: epochs decide where both are given. Here steps would, so they are left out."""
    epochs, steps = items.get("max_train_epochs"), items.get("max_train_steps")
    if epochs is not None and steps is not None:
        del items["max_train_steps"]
        recipe.change(steps.key, f"left out: {epochs.key} = {epochs.value} decides the length, as in sd-scripts")


def _rates(items: Items, recipe: Recipe) -> None:
    stop = items.get("stop_text_encoder_training")
    if stop is not None and (finite(stop.value) or 0) < 0:
        recipe.set("adapter.text_encoder", False, items.pop("stop_text_encoder_training").key)
    for name, part in (("unet_lr", "unet"), ("text_encoder_lr", "text_encoder")):
        item = items.pop(name, None)
        if item is None:
            continue
        values = [_literal(value) for value in item.value] if isinstance(item.value, (list, tuple)) else [item.value]
        if len(values) == 1 and isinstance(values[0], str) and re.search(r"[\s,]", values[0].strip()):
            values = re.split(r"[\s,]+", values[0].strip())
        numbers = [finite(value) for value in values]
        if all(number == 0 for number in numbers):
            recipe.set(f"adapter.{part}", False, item.key)
            continue
        if len(set(numbers)) == 1 or not _fits_two(name):
            note = "" if len(set(numbers)) == 1 else "one rate for all text encoders, the first"
            recipe.set(marked()[name], values[0], item.key, note=note)
        else:
            recipe.set(marked()[name], numbers[:2], item.key)


def _whole_model(items: Items, whole: str, recipe: Recipe) -> None:
    """The rates and switches of sd-scripts' programs for whole models."""
    own = [name for name in (*WHOLE_MODEL_RATES, "train_text_encoder") if name in items]
    if not whole and own and not {"network_module", "network_dim", "network_args"} & set(items):
        whole = f"({items[own[0]].key})"
    if not whole:
        return
    recipe.set("method", "full", whole, note="the whole model is trained, not a LoRA: method=full")
    switch = items.pop("train_text_encoder", None)
    if switch is not None and is_nothing(switch.value):
        recipe.rest(switch.key)
    elif switch is not None:
        recipe.set("adapter.text_encoder", _truth(switch.value), switch.key)
    found = {name: items.pop(name) for name in WHOLE_MODEL_RATES if name in items}
    rates = {name: item for name, item in found.items() if not is_nothing(item.value)}
    pair = [name for name in WHOLE_MODEL_RATES[1:] if name in rates]
    for name, item in found.items():
        if name not in rates or recipe.get("adapter.text_encoder") is False:
            recipe.rest(item.key)
        elif name == WHOLE_MODEL_RATES[0] and pair:
            recipe.change(item.key, f"{' and '.join(rates[name].key for name in pair)} counts")
        elif not pair or name == pair[-1]:
            values = [rates[part].value for part in pair] or [item.value]
            items["text_encoder_lr"] = Item(item.key, values)
        else:
            recipe.change(item.key, "see optimizer.text_encoder_lr")


def _fits_two(name: str) -> bool:
    return name == "text_encoder_lr" and "list" in field_rows()[marked()[name]].type


def _network(items: Items, recipe: Recipe) -> None:
    only = {part: items.pop(f"network_train_{part}_only", None) for part in ("unet", "text_encoder")}
    chosen = {part: item for part, item in only.items() if item is not None and _truth(item.value)}
    for part, item in only.items():
        if item is None:
            continue
        other = "text_encoder" if part == "unet" else "unet"
        if part not in chosen:
            recipe.rest(item.key)
        elif len(chosen) == 2:
            recipe.problem(
                f"adapter.{other}", f"{item.key}: only the U-Net and only the text encoder contradict each other"
            )
        else:
            recipe.set(f"adapter.{other}", False, item.key)
    module, options = items.pop("network_module", None), items.pop("network_args", None)
    alpha = items.get("network_alpha")
    if alpha is not None and finite(alpha.value) == 0:
        del items["network_alpha"]
        rank = given(items, "network_dim")
        recipe.set("adapter.alpha", rank, alpha.key) if rank else recipe.rest(alpha.key)
    found = arguments(options.value, options.key, recipe) if options is not None else {}
    key = options.key if options is not None else "network_args"
    if options is not None and not found:
        recipe.rest(options.key)
    algorithm = found.pop("algo", None)
    if module is not None and not isinstance(module.value, str):
        recipe.problem("adapter.kind", f"{module.key} = {shown(module.value)} is no name of a module")
        module = None
    is_lycoris = module is not None and "lycoris" in module.value
    if module is not None:
        dora = _truth(found.get("dora_wd"))
        name = str(algorithm or "locon").lower() if is_lycoris else str(module.value).strip()
        known = _take_kind(name, module, recipe, dora=dora)
        if known and dora and recipe.get("adapter.kind") == "dora":
            recipe.set("adapter.kind", "dora", _label(key, "dora_wd"))
            del found["dora_wd"]
        if algorithm is not None:
            recipe.change(_label(key, "algo"), f"{algorithm}: see adapter.kind")
    elif algorithm is not None:
        _take_kind(str(algorithm).lower(), Item(_label(key, "algo"), algorithm), recipe)
    if recipe.get("adapter.kind") == "lokr":
        _whole_matrices(found, items, key, recipe)
    if is_lycoris:
        _preset(found, key, recipe)
        _lycoris_convolutions(found, items, recipe)
    _base_loras(items, recipe)
    for name, text in found.items():
        item = Item(_label(key, name), text)
        if _says_nothing(name, text) or (name == "conv_dim" and finite(text) == 0):
            recipe.rest(item.key)
        else:
            take_one(name, item, recipe, network=True)


def _label(key: str, name: str) -> str:
    """How a part of network_args is reported. A form has fields of their own for the parts, and no key."""
    return f"{key}: {name}" if key else name


def _take_kind(name: str, module: Item, recipe: Recipe, *, dora: bool = False) -> bool:
    candidates = _KINDS.get(name, ())
    if dora and candidates == ("lora",):
        candidates = ("dora", "lora")
    known = [candidate for candidate in candidates if candidate in _kinds_offered()]
    if known:
        return recipe.set("adapter.kind", known[0], module.key)
    said = next((KINDS_NOT_OFFERED[kind] for kind in (*candidates, name) if kind in KINDS_NOT_OFFERED), None)
    if said is not None:
        recipe.problem("adapter.kind", f"{module.key} = {shown(module.value)}: {said}")
        return False
    offered = ", ".join(_kinds_offered())
    recipe.problem("adapter.kind", f"{module.key}: {name} is not offered here; adapter.kind is one of {offered}")
    return False


def _kinds_offered() -> list[str]:
    return field_rows()["adapter.kind"].type.split(" | ")


def _whole_matrices(found: dict[str, Any], items: Items, key: str, recipe: Recipe) -> None:
    """LoKr with a huge rank (100000 by habit) means matrices that are not split; alpha has no effect on them."""
    ranks = {"network_dim": items.get("network_dim"), "conv_dim": Item(_label(key, "conv_dim"), found.get("conv_dim"))}
    if not any((finite(item.value) or 0) > _LARGEST_RANK for item in ranks.values() if item is not None):
        return
    for name, item in ranks.items():
        if item is None or (finite(item.value) or 0) <= _LARGEST_RANK:
            continue
        if name == "network_dim":
            recipe.set("adapter.lokr_full_matrix", True, item.key, note="a rank this high: adapter.lokr_full_matrix")
            del items[name]
            alpha = items.pop("network_alpha", None)
            if alpha is not None:
                recipe.change(alpha.key, "left out: it has no effect on whole matrices")
        else:
            recipe.set("adapter.conv_rank", 16, item.key, note="a rank this high: whole matrices, of convolutions too")
            del found[name]
            if "conv_alpha" in found:
                recipe.change(_label(key, "conv_alpha"), "left out: it has no effect on whole matrices")
                del found["conv_alpha"]


def _preset(found: dict[str, Any], key: str, recipe: Recipe) -> None:
    """LyCORIS' names for choices of layers."""
    name = str(found.get("preset", "full"))
    if name == "attn-mlp":
        recipe.change(
            _label(key, "preset"), "attention and feed-forward layers, which are the ones without a conv_rank"
        )
    elif name == "attn-only":
        recipe.set("adapter.include", ["attn"], _label(key, "preset"))
    elif name == "unet-transformer-only":
        recipe.set("adapter.text_encoder", False, _label(key, "preset"))
    elif name != "full":
        recipe.skip(_label(key, "preset"), f"{name}: layers are chosen by adapter.include and exclude")
    else:
        if "preset" in found:
            recipe.rest(_label(key, "preset"))
    full = name in ("full", "unet-convblock-only")
    for conv in ("conv_dim", "conv_alpha"):
        if not full and conv in found and name in ("attn-mlp", "attn-only", "unet-transformer-only"):
            recipe.change(_label(key, conv), f"left out: the preset {name} has no convolutions")
            del found[conv]
    if "preset" in found:
        found["preset"] = name if full else ""


def _base_loras(items: Items, recipe: Recipe) -> None:
    """Files merged before training, each with its weight."""
    files, weights = items.pop("base_weights", None), items.pop("base_weights_multiplier", None)
    if files is None:
        if weights is not None:
            recipe.skip(weights.key, "there are no base_weights")
        return
    names = files.value if isinstance(files.value, (list, tuple)) else [files.value]
    factors = [] if weights is None else weights.value if isinstance(weights.value, (list, tuple)) else [weights.value]
    paths = [resolved(str(name), recipe.folders) for name in names]
    loras = [f"{path}:{factors[index]}" if index < len(factors) else path for index, path in enumerate(paths)]
    recipe.set("adapter.base_loras", loras, files.key)
    if weights is not None:
        recipe.mapped.append(Mapped(weights.key, "adapter.base_loras", loras))


def _lycoris_convolutions(found: dict[str, Any], items: Items, recipe: Recipe) -> None:
    """LyCORIS trains convolutions with the rank of the other layers unless told otherwise."""
    if found.pop("preset", "full") not in ("full", "unet-convblock-only") or "conv_dim" in found:
        return
    for ours, name, other in (
        ("conv_dim", "network_dim", "adapter.conv_rank"),
        ("conv_alpha", "network_alpha", "adapter.conv_alpha"),
    ):
        value = given(items, name)
        if value is not None and ours not in found and other in field_rows():
            recipe.set(other, value, f"(LyCORIS: {ours})", note=f"not given, so it is {name}, as in LyCORIS")


def _saving(items: Items, recipe: Recipe) -> None:
    precision = items.get("save_precision")
    if precision is not None and str(precision.value) in ("no", "fp32"):
        items["save_precision"] = Item(precision.key, "float")
    kept = items.get("save_model_as")
    if kept is not None and str(kept.value).startswith("diffusers"):
        del items["save_model_as"]
        recipe.change(kept.key, "what is trained is one file here; safetensors")
    states = [items.pop(name) for name in ("save_state", "save_state_on_train_end") if name in items]
    wanted = [item for item in states if _truth(item.value)]
    for item in states:
        if "saving.state" not in field_rows():
            recipe.skip(item.key, "the state of a run is not kept")
        elif item in wanted or not wanted:
            recipe.set("saving.state", bool(wanted), item.key)
        else:
            recipe.rest(item.key)
    window = items.pop("save_last_n_steps", None)
    if window is not None:
        every, count = finite(given(items, "save_every_n_steps")), finite(window.value)
        if not count:
            recipe.rest(window.key)
        elif "saving.keep_last" not in field_rows() or not every:
            recipe.skip(window.key, "files are counted, not measured in steps: saving.keep_last")
        elif "save_last_n_epochs" in items:
            recipe.change(window.key, f"{items['save_last_n_epochs'].key} counts for files saved by steps too")
        else:
            files = max(1, int(count // every))
            recipe.set("saving.keep_last", files, window.key, note=f"the newest {files} files: they are counted here")


def _previews(items: Items, recipe: Recipe) -> None:
    prompts, sampler = items.pop("sample_prompts", None), items.pop("sample_sampler", None)
    if sampler is not None:
        name, note = _sampler(str(sampler.value))
        recipe.set("preview.sampler", name, sampler.key, note=note)
    for name in ("sample_every_n_epochs", "sample_every_n_steps"):
        if name in items and finite(items[name].value) == 0:
            recipe.rest(items.pop(name).key)
    epochs, steps = items.get("sample_every_n_epochs"), items.get("sample_every_n_steps")
    if epochs is not None and steps is not None:
        recipe.change(steps.key, f"left out: {epochs.key} decides, as in sd-scripts")
        del items["sample_every_n_steps"]
    elif steps is not None:
        recipe.settings.setdefault("preview", {})["every_epochs"] = 0
    if prompts is None:
        return
    before = len(recipe.keys) + len(recipe.problems)
    lines = _prompt_lines(prompts, recipe)
    lines = None if lines is None else [_usable_prompt(line, prompts.key, recipe) for line in lines]
    if not lines and len(recipe.keys) + len(recipe.problems) == before:
        recipe.rest(prompts.key)
    if lines:
        recipe.set("preview.prompts", lines, prompts.key)
        preview = recipe.settings["preview"]
        preview.setdefault("steps", 30)
        preview.setdefault("cfg_scale", 7.5)
        if "sample_at_first" not in items:
            preview.setdefault("at_start", False)


def _prompt_lines(prompts: Item, recipe: Recipe) -> list[str] | None:
    """Prompts with options behind them, from a file or from the recipe itself. None: they were dealt with."""
    if isinstance(prompts.value, (list, tuple)):
        return [line for line in map(str, prompts.value) if line.strip()]
    text = str(prompts.value)
    suffix = Path(text.strip()).suffix.lower() if "\n" not in text else ""
    if suffix not in (".txt", ".toml", ".json"):
        return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    path = Path(resolved(text, recipe.folders))
    if not exists(path) or not path.is_file():
        if suffix == ".txt":
            recipe.set("preview.file", str(path), prompts.key)
        else:
            recipe.problem("preview.prompts", f"{prompts.key}: {path} does not exist")
        return None
    if suffix == ".txt":
        try:
            content = read_text(path)
        except FileError as error:
            recipe.problem("preview.prompts", f"{prompts.key}: {error.problem}")
            return None
        return _prompt_lines(Item(prompts.key, f"{content}\n"), recipe)
    data = read_document(path).data
    if isinstance(data, Mapping):
        common = data.get("prompt")
        common = common if isinstance(common, Mapping) else {}
        subsets = common.get("subset", [common])
        tables = subsets if isinstance(subsets, list) else []
        data = [{**common, **subset} for subset in tables if isinstance(subset, Mapping)]
    lines = data if isinstance(data, list) else []
    usable = [line for line in lines if isinstance(line, str) or (isinstance(line, Mapping) and line.get("prompt"))]
    if not usable or len(usable) < len(lines):
        recipe.problem("preview.prompts", f"{prompts.key}: {path} holds entries that are no prompts")
    return [line if isinstance(line, str) else _prompt_line(line) for line in usable]


_PROMPT_OPTIONS = {
    "negative_prompt": "n",
    "width": "w",
    "height": "h",
    "seed": "d",
    "sample_steps": "s",
    "scale": "l",
    "sample_sampler": "ss",
}


def _prompt_line(entry: Mapping[str, Any]) -> str:
    options = [f"--{short} {entry[name]}" for name, short in _PROMPT_OPTIONS.items() if not is_nothing(entry.get(name))]
    return " ".join([str(entry.get("prompt", "")), *options])


_SIDE = 8
"""Sides of previews are multiples of it; sd-scripts rounds down to them."""


def _usable_prompt(line: str, key: str, recipe: Recipe) -> str:
    """A line without the options that previews do not have, and with samplers by their names here."""
    prompt, *options = re.split(r"\s--(?=[A-Za-z]+(?:\s|$))", f" {line}")
    kept = [prompt.strip()]
    for option in options:
        name, _, value = option.partition(" ")
        name, value = name.lower(), value.strip()
        if name not in _PROMPT_OPTIONS.values():
            recipe.change(f"{key}: --{option.strip()}", "left out: previews have no such option")
            continue
        if name == "ss":
            value, note = _sampler(value)
            if note:
                recipe.change(f"{key}: --{option.strip()}", note)
        elif name in ("w", "h") and value.isdecimal() and len(value) < 10 and int(value) % _SIDE:
            value = str(max(_SIDE, int(value) // _SIDE * _SIDE))
        kept.append(f"--{name} {value}".strip())
    return " ".join(kept)


_NEAREST_SAMPLERS = {"dpmsolver": "DPM++ 2M", "dpmsingle": "DPM++ 2S a"}


def _sampler(name: str) -> tuple[str, str]:
    """A sampler of previews by its name here, and what is to be said about it."""
    from loraloom.diffusion.samplers import resolve_sampler

    plain = name.strip().lower()
    if plain in KOHYA_SAMPLERS:
        return KOHYA_SAMPLERS[plain], ""
    if plain in _NEAREST_SAMPLERS:
        return _NEAREST_SAMPLERS[plain], f"{name} is not offered; {_NEAREST_SAMPLERS[plain]} is nearest"
    try:
        resolve_sampler(name)
    except UnknownNameError:
        return "DPM++ 2M", f"{name} is not offered; DPM++ 2M"
    return name, ""


def _dataset(items: Items, recipe: Recipe) -> None:
    extension = items.get("caption_extension")
    if extension is not None:
        del items["caption_extension"]
        value = extension.value if isinstance(extension.value, (list, tuple)) else [extension.value]
        recipe.set("dataset.caption_extensions", [str(name) for name in value], extension.key)
    masked, alpha, folder = (items.get(name) for name in ("masked_loss", "alpha_mask", "conditioning_data_dir"))
    if masked is not None:
        del items["masked_loss"]
        if not _truth(masked.value):
            recipe.rest(masked.key)
        elif folder is not None:
            recipe.set("dataset.masks", "folder", masked.key)
        elif alpha is not None and _truth(alpha.value):
            recipe.change(masked.key, "see dataset.masks")
        elif not is_nothing(given(items, "dataset_config")):
            recipe.change(masked.key, "the dataset's folders say where the masks are")
        else:
            recipe.set("dataset.masks", "alpha", masked.key, note="no folder of masks is named: transparent parts")
    if folder is not None and not (masked is not None and _truth(masked.value)):
        del items["conditioning_data_dir"]
        recipe.skip(folder.key, "pictures that guide a ControlNet, unless masked_loss is on")
    config = items.pop("dataset_config", None)
    if config is None:
        return
    path = Path(resolved(str(config.value), recipe.folders))
    for name in ("train_data_dir", "reg_data_dir", "in_json"):
        if name in items:
            recipe.change(items.pop(name).key, f"{config.key} counts instead, as in sd-scripts")
    try:
        data = read_document(path).data
    except LoraloomError as error:
        recipe.problem("dataset.folder", f"{config.key}: {error.problem}")
        return
    take_dataset_config(data, recipe, outer=items, source=path)
    recipe.change(config.key, f"{path.name} was read")


def _checkpoint(items: Items, recipe: Recipe) -> None:
    item = items.get("pretrained_model_name_or_path")
    if item is None:
        return
    text = str(item.value).strip()
    found = any(exists(folder / text) for folder in recipe.folders)
    if (
        re.fullmatch(r"[\w.-]+/[\w.-]+", text)
        and not found
        and not text.lower().endswith((".safetensors", ".ckpt", ".pt"))
    ):
        del items["pretrained_model_name_or_path"]
        recipe.known_of_required["checkpoint"] = f"it was {text}, a name on the Hugging Face hub"
        recipe.skip(item.key, f"{text} is a name on the Hugging Face hub: download it and give checkpoint=FILE")


def _take_prediction(item: Item, recipe: Recipe) -> None:
    if _truth(item.value):
        recipe.set("prediction", "v", item.key)
    else:
        recipe.rest(item.key)


def _take_fp8(item: Item, recipe: Recipe) -> None:
    if not _truth(item.value):
        recipe.rest(item.key)
    elif recipe.get("method") == "full":
        recipe.skip(item.key, "weights that are trained themselves cannot be kept in 8 bits")
    else:
        note = "quantize=int8: 8 bits a weight as there, as integers with a scale for each row, which is more exact"
        recipe.set("quantize", "int8", item.key, note=note)


def _alpha_of_the_guide(items: Items, spoken: frozenset[str], recipe: Recipe) -> None:
    """The guide's script is older than network_alpha: at that time sd-scripts trained with scale 1."""
    length = items.get("max_train_epochs")
    rank = recipe.get("adapter.rank")
    if length is not None and length.key.lstrip("$") == "num_epochs" and rank and "network_alpha" not in spoken:
        note = "not given: scale 1 as when the guide was written; scripts of later versions mean adapter.alpha=1"
        recipe.set("adapter.alpha", rank, "(network_alpha)", note=note)


def _sd_scripts_defaults(spoken: frozenset[str], recipe: Recipe) -> None:
    """What sd-scripts does where nothing is said, if that is not what is done here."""

    def default(path: str, value: Any, *names: str, why: str) -> None:
        if recipe.get(path) is None and not spoken.intersection(names or ("",)) and path in field_rows():
            key = names[0]
            recipe.set(path, value, f"({key})", note=f"not given: {why}, as in sd-scripts")

    default("lr_schedule.name", "constant", "lr_scheduler", "lr_scheduler_type", why="a constant rate")
    if recipe.get("method") != "full":
        default("adapter.rank", 4, "network_dim", why="rank 4")
    if not recipe.get("adapter.lokr_full_matrix") and recipe.get("method") != "full":
        default("adapter.alpha", 1.0, "network_alpha", why="alpha 1")
    if not {"unet_lr", "text_encoder_lr"} <= spoken:
        default("optimizer.lr", 2e-6, "learning_rate", why="a rate of 2e-6")
    if not spoken & {"max_train_steps", "max_train_epochs"} and recipe.get("epochs") is None:
        default("steps", 1600, "max_train_steps", why="1600 steps")
    default("saving.every_epochs", 0, "save_every_n_epochs", "save_n_epoch_ratio", why="no files between")
    dataset_defaults(recipe)


def dataset_defaults(recipe: Recipe) -> None:
    """What sd-scripts does with pictures where nothing is said."""
    for path, value, name, why in (
        ("dataset.buckets", False, "enable_bucket", "every picture is cropped to one shape"),
        ("dataset.caption_extensions", [".caption", ".txt"], "caption_extension", ".caption files first"),
    ):
        if recipe.get(path) is None:
            recipe.set(path, value, f"({name})", note=f"not given: {why}, as in sd-scripts")
