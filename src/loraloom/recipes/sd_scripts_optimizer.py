"""sd-scripts' optimizer and lr schedule: names of methods, paths of classes, and their arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from loraloom.errors import UnknownNameError
from loraloom.plain_data import shown
from loraloom.recipes.arguments import arguments, literal, truth
from loraloom.recipes.recipe import Item, Recipe, listed
from loraloom.recipes.rows import Reading, Row

__all__ = ["LR_SCHEDULE", "OPTIMIZER", "adafactor"]

_BETAS = re.compile(r"\(?\s*([\d.eE+-]+)\s*,\s*([\d.eE+-]+)\s*(?:,\s*([\d.eE+-]+)\s*)?\)?")
_SAME_METHODS = frozenset(
    listed("torch bitsandbytes pytorch_optimizer lion_pytorch prodigyopt dadaptation schedulefree transformers")
)
"""Packages whose classes sd-scripts means by its short names: those that have a name here are the same methods."""


# -- the optimizer -------------------------------------------------------------------------------------------------


def _switch(name: str) -> Callable[[Row, Reading], None]:
    """An old switch that names an optimizer, where nothing else does."""

    def take(row: Row, file: Reading) -> None:
        item, named = file.left.pop(row.key), file.left.get("optimizer_type")
        if not truth(item.value):
            file.recipe.rest(item.key)
        elif named is not None:
            file.recipe.change(item.key, f"{named.key} = {named.value} counts instead")
        else:
            file.left["optimizer_type"] = Item(item.key, name)

    return take


def _optimizer(row: Row, file: Reading) -> None:
    """A short name, or the path of a class: of a package whose methods have names here, or of any other."""
    named, recipe = file.left.pop(row.key), file.recipe
    if not isinstance(named.value, str):
        recipe.problem("optimizer.name", f"{named.key} = {shown(named.value)} is not the name of an optimizer")
        return
    name = named.value.strip().partition("(")[0]
    package = name.rpartition(".")[0]
    if package and package.partition(".")[0] not in _SAME_METHODS:
        recipe.set("optimizer.name", name, named.key)  # left out, unless it is a class that any file may name
    else:
        _known_optimizer(name, named, recipe)


def _known_optimizer(name: str, named: Item, recipe: Recipe) -> None:
    from loraloom.training.optimizer_names import find_class, find_optimizer, find_recipe

    package, _, short = name.rpartition(".")
    try:
        found = find_optimizer(short)
    except UnknownNameError:
        _unknown_optimizer(name, name if package else find_class(short), named, recipe)
        return
    is_same = not package or find_recipe(found).path == name
    recipe.set("optimizer.name", found, named.key, note="" if is_same else f"the same method is {found} here")


def _unknown_optimizer(name: str, path: str | None, named: Item, recipe: Recipe) -> None:
    """A method without a name here: by the path of its class, where there is one."""
    if name.rpartition(".")[2].lower().startswith("sophia"):
        text = "Sophia needs second derivatives, which are not computed here; optimizer.name=lion is nearest to it"
        recipe.problem("optimizer.name", f"{named.key} = {name}: {text}")
    elif path is None:
        text = "the path of a class is another way to name one: package.Class"
        recipe.problem("optimizer.name", f"{named.key}: the optimizer {shown(name)} is not known here; {text}")
    else:
        note = "" if path == name or "torch.optim" in path else f"taken for {path}"
        recipe.set("optimizer.name", path, named.key, note=note)


def _optimizer_args(row: Row, file: Reading) -> None:
    """Three of them are settings of their own."""
    options, recipe = file.left.pop(row.key), file.recipe
    found = arguments(options.value, options.key, recipe)
    for name, text in found.items():
        key, value = f"{options.key}: {name}", literal(text)
        betas = _BETAS.fullmatch(str(text))
        if name == "betas" and betas:
            value = [float(part) for part in betas.groups() if part is not None]
        is_pair = name == "eps" and isinstance(value, (list, tuple))  # Adafactor's, which is an argument of its own
        if name in ("weight_decay", "betas", "eps") and not is_pair:
            recipe.set(f"optimizer.{name}", value, key)
        else:
            _add_argument("optimizer.args", name, value, key, recipe)
    if not found:
        recipe.rest(options.key)


def _add_argument(path: str, name: str, value: Any, key: str, recipe: Recipe) -> None:
    value = list(value) if isinstance(value, tuple) else value
    recipe.set(path, {**(recipe.get(path) or {}), name: value}, key)


def adafactor(file: Reading) -> None:
    """sd-scripts' Adafactor finds its rate by itself unless an argument says otherwise, and then has a schedule of its
    own."""
    recipe = file.recipe
    if recipe.get("optimizer.name") != "adafactor":
        return
    given = recipe.get("optimizer.args") or {}
    note = ""
    if "relative_step" not in given:
        note = "not given: true, as in sd-scripts; the learning rates change nothing then; "
        note += "optimizer.args.relative_step=false makes them count"
    elif not given["relative_step"] and given.get("warmup_init"):
        note = "true, because warmup_init needs it, as in sd-scripts"
    if note:
        recipe.set("optimizer.args", {**given, "relative_step": True}, "(optimizer_args: relative_step)", note=note)
    given = recipe.get("optimizer.args")
    if "scale_parameter" not in given:
        key, note = "(optimizer_args: scale_parameter)", "not given: true, as in sd-scripts"
        recipe.set("optimizer.args", {**given, "scale_parameter": True}, key, note=note)
    if given["relative_step"]:
        for name in ("lr_scheduler", "lr_scheduler_type"):
            file.change(name, "left out: Adafactor with relative_step has a schedule of its own")
        recipe.set("lr_schedule.name", "constant", "(lr_scheduler)", note="constant: the rate is Adafactor's own")


# -- the lr schedule -----------------------------------------------------------------------------------------------


def _class_of_schedule(row: Row, file: Reading) -> None:
    """The later key counts before the older one."""
    typed = file.left.pop(row.key)
    file.change("lr_scheduler", f"{typed.key} = {typed.value} counts instead")
    _take_schedule(typed, file.recipe)


def _schedule(row: Row, file: Reading) -> None:
    _take_schedule(file.left.pop(row.key), file.recipe)


def _take_schedule(named: Item, recipe: Recipe) -> None:
    from loraloom.training.lr_schedule_names import LR_SCHEDULES

    if not isinstance(named.value, str):
        recipe.problem("lr_schedule.name", f"{named.key} = {shown(named.value)} is not the name of an lr schedule")
        return
    name = named.value.strip()
    if name.startswith("adafactor"):
        recipe.set("lr_schedule.name", "constant", named.key, note="the rate of Adafactor itself; constant here")
    elif name in LR_SCHEDULES or "." in name:
        recipe.set("lr_schedule.name", name, named.key)
    else:
        path = f"torch.optim.lr_scheduler.{name}"
        is_known = name[:1].isupper() and recipe.set("lr_schedule.name", path, named.key)
        if not is_known:
            recipe.problem("lr_schedule.name", f"{named.key}: the lr schedule {shown(name)} is not known here")


def _schedule_args(row: Row, file: Reading) -> None:
    options, recipe = file.left.pop(row.key), file.recipe
    found = arguments(options.value, options.key, recipe)
    for name, text in found.items():
        _add_argument(row.ours, name, literal(text), f"{options.key}: {name}", recipe)
    if not found:
        recipe.rest(options.key)


OPTIMIZER = (
    Row("use_8bit_adam", "optimizer.name", _switch("AdamW8bit"), "optimizer.name = adamw_8bit"),
    Row("use_lion_optimizer", "optimizer.name", _switch("Lion"), "optimizer.name = lion"),
    Row("optimizer_type", "optimizer.name", _optimizer, "optimizer.name"),
    Row("optimizer_args", "optimizer.args", _optimizer_args, "optimizer.weight_decay, betas, eps, args"),
)
LR_SCHEDULE = (
    Row("lr_scheduler_type", "lr_schedule.name", _class_of_schedule, "lr_schedule.name"),
    Row("lr_scheduler", "lr_schedule.name", _schedule, "lr_schedule.name"),
    Row("lr_scheduler_args", "lr_schedule.args", _schedule_args, "lr_schedule.args"),
)
