"""sd-scripts' network: which parts are trained and how fast, the kind of adapter, and what network_args say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from loraloom.plain_data import finite, shown
from loraloom.recipes.arguments import Arguments, arguments, given, literal, says_nothing, take_one, truth
from loraloom.recipes.names import KINDS_NOT_OFFERED, WHOLE_MODEL_RATES
from loraloom.recipes.recipe import Item, Mapped, Recipe, field_rows, is_nothing, resolved
from loraloom.recipes.rows import Row

__all__ = ["BASE_LORAS", "NETWORK", "RATES", "whole_model"]

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


# -- parts and rates -----------------------------------------------------------------------------------------------


def whole_model(file: Arguments, whole: str) -> None:
    """The rates and switches of sd-scripts' programs for whole models.

    ``whole``: what says that the whole model is trained; empty where the arguments have to say it.
    """
    recipe = file.recipe
    own = [name for name in (*WHOLE_MODEL_RATES, "train_text_encoder") if name in file.left]
    if not whole and own and not {"network_module", "network_dim", "network_args"} & set(file.left):
        whole = f"({file.left[own[0]].key})"
    if not whole:
        return
    recipe.set("method", "full", whole, note="the whole model is trained, not a LoRA: method=full")
    switch = file.take("train_text_encoder")
    if switch is not None and is_nothing(switch.value):
        recipe.rest(switch.key)
    elif switch is not None:
        recipe.set("adapter.text_encoder", truth(switch.value), switch.key)
    _text_encoder_rates(file)


def _text_encoder_rates(file: Arguments) -> None:
    """One rate for SD 1 and 2, or the two of SDXL, of which the last is reported with both."""
    recipe = file.recipe

    found = {name: item for name in WHOLE_MODEL_RATES if (item := file.take(name)) is not None}
    rates = {name: item for name, item in found.items() if not is_nothing(item.value)}
    pair = [name for name in WHOLE_MODEL_RATES[1:] if name in rates]

    # sd-scripts has one name for all encoders and two for SDXL's, of which the narrower ones count.
    for name, item in found.items():
        if name not in rates or recipe.get("adapter.text_encoder") is False:
            recipe.rest(item.key)
        elif name == WHOLE_MODEL_RATES[0] and pair:
            recipe.change(item.key, f"{' and '.join(rates[name].key for name in pair)} counts")
        elif not pair or name == pair[-1]:
            values = [rates[part].value for part in pair] or [item.value]
            file.left["text_encoder_lr"] = Item(item.key, values)
        else:
            recipe.change(item.key, "see optimizer.text_encoder_lr")


def _stop(row: Row, file: Arguments) -> None:
    """Below 0 the text encoder is not trained at all; else the mark says it."""
    item = file.left[row.key]
    if (finite(item.value) or 0) < 0:
        file.recipe.set("adapter.text_encoder", False, file.left.pop(row.key).key)


def _rate(part: str, most: int) -> Callable[[Row, Arguments], None]:
    """A rate, or ``most`` of them; 0 means that the part is not trained."""

    def take(row: Row, file: Arguments) -> None:
        item, recipe = file.left.pop(row.key), file.recipe
        values = [literal(value) for value in item.value] if isinstance(item.value, (list, tuple)) else [item.value]
        # A rate may be a list in one text, as command lines and GUI fields have it.
        if len(values) == 1 and isinstance(values[0], str) and re.search(r"[\s,]", values[0].strip()):
            values = re.split(r"[\s,]+", values[0].strip())
        numbers = [finite(value) for value in values]

        # A rate of 0 leaves the part out, for which there is a switch here: no memory is spent on it then.
        if all(number == 0 for number in numbers):
            recipe.set(f"adapter.{part}", False, item.key)
        elif len(set(numbers)) == 1:
            recipe.set(row.ours, values[0], item.key)
        elif most == 1:
            recipe.set(row.ours, values[0], item.key, note="one rate for all text encoders, the first")
        else:
            recipe.set(row.ours, numbers[:most], item.key)

    return take


def _only(part: str) -> Callable[[Row, Arguments], None]:
    """A switch by which only one part is trained: the other one is not."""
    other = "text_encoder" if part == "unet" else "unet"

    def take(row: Row, file: Arguments) -> None:
        item, recipe = file.left.pop(row.key), file.recipe
        contrary = file.said.get(f"network_train_{other}_only")
        if not truth(item.value):
            recipe.rest(item.key)
        elif contrary is not None and truth(contrary.value):
            text = f"{item.key}: only the U-Net and only the text encoder contradict each other"
            recipe.problem(row.ours, text)
        else:
            recipe.set(row.ours, False, item.key)

    return take


# -- the kind of adapter -------------------------------------------------------------------------------------------


def _alpha(row: Row, file: Arguments) -> None:
    """0 means the rank; else the mark says it."""
    item, recipe = file.left[row.key], file.recipe
    if finite(item.value) != 0:
        return
    del file.left[row.key]
    rank = given(file.left, "network_dim")
    if rank:
        recipe.set(row.ours, rank, item.key)
    else:
        recipe.rest(item.key)


@dataclass
class _Network:
    """What network_module and network_args say, while it is read."""

    file: Arguments
    key: str
    """Under which the arguments stand. A form has fields of their own for them, and no key."""
    found: dict[str, Any]

    def label(self, name: str) -> str:
        """How an argument is reported."""
        return f"{self.key}: {name}" if self.key else name


def _network(row: Row, file: Arguments) -> None:
    """A module of sd-scripts, or LyCORIS with its algorithm in the arguments, of which the rest are settings."""
    recipe = file.recipe
    module, options = file.take("network_module"), file.take("network_args")
    found = {} if options is None else arguments(options.value, options.key, recipe)
    network = _Network(file, "network_args" if options is None else options.key, found)
    if options is not None and not found:
        recipe.rest(options.key)

    if "algo" in found and is_nothing(found["algo"]):
        recipe.rest(network.label("algo"))
        del found["algo"]
    algorithm = found.pop("algo", None)
    if module is not None and not isinstance(module.value, str):
        recipe.problem("adapter.kind", f"{module.key} = {shown(module.value)} is not the name of a module")
        module = None
    if module is not None:
        _module(module, algorithm, network)
    elif algorithm is not None:
        _take_kind(str(algorithm).lower(), Item(network.label("algo"), algorithm), recipe)

    # What LoKr and LyCORIS mean by their ranks and presets depends on the kind, and comes before the rest.
    if recipe.get("adapter.kind") == "lokr":
        _whole_matrices(network)
    if module is not None and "lycoris" in module.value:
        _preset(network)
        _lycoris_convolutions(network)
    file.walk(BASE_LORAS)
    for name, text in found.items():
        item = Item(network.label(name), text)
        if says_nothing(name, text) or (name == "conv_dim" and finite(text) == 0):
            recipe.rest(item.key)
        else:
            take_one(name, item, recipe, network=True)


def _module(module: Item, algorithm: Any, network: _Network) -> None:
    """LyCORIS trains a LoCon unless told otherwise, and a plain LoRA becomes DoRA by a switch."""
    recipe, is_dora = network.file.recipe, truth(network.found.get("dora_wd"))
    name = str(algorithm or "locon").lower() if "lycoris" in module.value else module.value.strip()
    is_known = _take_kind(name, module, recipe, is_dora=is_dora)
    if is_known and is_dora and recipe.get("adapter.kind") == "dora":
        recipe.set("adapter.kind", "dora", network.label("dora_wd"))
        del network.found["dora_wd"]
    if algorithm is not None:
        recipe.change(network.label("algo"), f"{algorithm}: see adapter.kind")


def _take_kind(name: str, module: Item, recipe: Recipe, *, is_dora: bool = False) -> bool:
    offered = field_rows()["adapter.kind"].kinds
    candidates = _KINDS.get(name, ())
    if is_dora and candidates == ("lora",):
        candidates = ("dora", "lora")
    known = [candidate for candidate in candidates if candidate in offered]
    if known:
        return recipe.set("adapter.kind", known[0], module.key)
    said = next((KINDS_NOT_OFFERED[kind] for kind in (*candidates, name) if kind in KINDS_NOT_OFFERED), None)
    if said is not None:
        recipe.problem("adapter.kind", f"{module.key} = {shown(module.value)}: {said}")
    else:
        text = f"{name} is not offered here; adapter.kind is one of {', '.join(offered)}"
        recipe.problem("adapter.kind", f"{module.key}: {text}")
    return False


def _whole_matrices(network: _Network) -> None:
    """LoKr with a huge rank (100000 by habit) means matrices that are not split; alpha has no effect on them."""
    file, recipe, found = network.file, network.file.recipe, network.found
    no_effect = "left out: it has no effect on whole matrices"
    rank = file.left.get("network_dim")
    if rank is not None and (finite(rank.value) or 0) > _LARGEST_RANK:
        recipe.set("adapter.lokr_full_matrix", True, rank.key, note="a rank this high: adapter.lokr_full_matrix")
        del file.left["network_dim"]
        file.change("network_alpha", no_effect)
    if (finite(found.get("conv_dim")) or 0) > _LARGEST_RANK:
        note = "a rank this high: whole matrices, of convolutions too"
        recipe.set("adapter.conv_rank", 16, network.label("conv_dim"), note=note)
        del found["conv_dim"]
        if found.pop("conv_alpha", None) is not None:
            recipe.change(network.label("conv_alpha"), no_effect)


_WITH_CONVOLUTIONS = ("full", "unet-convblock-only")
_WITHOUT_CONVOLUTIONS = ("attn-mlp", "attn-only", "unet-transformer-only")


def _preset(network: _Network) -> None:
    """LyCORIS' names for choices of layers."""
    recipe, found, label = network.file.recipe, network.found, network.label("preset")
    name = str(found.get("preset", "full"))
    if name == "attn-mlp":
        recipe.change(label, "attention and feed-forward layers, which are the ones without a conv_rank")
    elif name == "attn-only":
        recipe.set("adapter.include", ["attn"], label)
    elif name == "unet-transformer-only":
        recipe.set("adapter.text_encoder", False, label)
    elif name != "full":
        recipe.skip(label, f"{name}: layers are chosen by adapter.include and exclude")
    elif "preset" in found:
        recipe.rest(label)
    for conv in ("conv_dim", "conv_alpha"):
        if conv in found and name in _WITHOUT_CONVOLUTIONS:
            recipe.change(network.label(conv), f"left out: the preset {name} has no convolutions")
            del found[conv]


def _lycoris_convolutions(network: _Network) -> None:
    """LyCORIS trains convolutions with the rank of the other layers unless an argument says otherwise."""
    recipe, found = network.file.recipe, network.found
    preset = str(found.pop("preset", "full"))
    if preset not in _WITH_CONVOLUTIONS or "conv_dim" in found:
        return
    for ours, name, path in (
        ("conv_dim", "network_dim", "adapter.conv_rank"),
        ("conv_alpha", "network_alpha", "adapter.conv_alpha"),
    ):
        value = given(network.file.left, name)
        if value is not None and ours not in found:
            recipe.set(path, value, f"(LyCORIS: {ours})", note=f"not given, so it is {name}, as in LyCORIS")


def _base_loras(row: Row, file: Arguments) -> None:
    """Files merged before training, each with its weight."""
    files, weights = file.take("base_weights"), file.take("base_weights_multiplier")
    if files is None:
        if weights is not None:
            file.recipe.skip(weights.key, "there are no base_weights")
        return
    names = _as_list(files.value)
    factors = [] if weights is None else _as_list(weights.value)
    paths = [resolved(str(name), file.recipe.folders) for name in names]
    loras = [f"{path}:{factors[index]}" if index < len(factors) else path for index, path in enumerate(paths)]
    file.recipe.set("adapter.base_loras", loras, files.key)
    if weights is not None:
        file.recipe.mapped.append(Mapped(weights.key, "adapter.base_loras", loras))


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


_STOP = "optimizer.text_encoder_stop (-1: adapter.text_encoder = false)"
_RATE_OF_TEXTS = "optimizer.text_encoder_lr (0: adapter.text_encoder = false)"

RATES = (
    Row("stop_text_encoder_training", "optimizer.text_encoder_stop", _stop, _STOP),
    Row("unet_lr", "optimizer.unet_lr", _rate("unet", 1), "optimizer.unet_lr (0: adapter.unet = false)"),
    Row("text_encoder_lr", "optimizer.text_encoder_lr", _rate("text_encoder", 2), _RATE_OF_TEXTS),
)
NETWORK = (
    Row("network_train_unet_only", "adapter.text_encoder", _only("unet"), "adapter.text_encoder = false"),
    Row("network_train_text_encoder_only", "adapter.unet", _only("text_encoder"), "adapter.unet = false"),
    Row("network_alpha", "adapter.alpha", _alpha),
    Row("network_module", "adapter.kind", _network, "adapter.kind", always=True),
    Row("network_args", "adapter.kind", _network, "the settings of the adapter, one by one"),
)
BASE_LORAS = (
    Row("base_weights", "adapter.base_loras", _base_loras, "adapter.base_loras"),
    Row(
        "base_weights_multiplier",
        "adapter.base_loras",
        _base_loras,
        "adapter.base_loras, behind each file's name",
    ),
)
