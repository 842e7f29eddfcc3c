"""sd-scripts' arguments, however they were written down, as our settings.

Keys that are read together with others have rows in the tables here, in the order in which they are read. Every other
key stands for itself (:mod:`~loraloom.recipes.arguments`): the setting that has it as its mark, or the reason why there
is none (:mod:`~loraloom.recipes.names`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loraloom.errors import LoraloomError
from loraloom.plain_data import finite
from loraloom.recipes.arguments import EXCEPTIONS, Arguments, given, says_nothing, take_one, truth
from loraloom.recipes.dataset_config import take_dataset_config
from loraloom.recipes.names import SPELLINGS
from loraloom.recipes.parsing import flattened, read_document
from loraloom.recipes.recipe import Item, Items, Recipe, exists, is_nothing, resolved
from loraloom.recipes.rows import Row, together
from loraloom.recipes.sd_scripts_network import BASE_LORAS, NETWORK, RATES, whole_model
from loraloom.recipes.sd_scripts_optimizer import LR_SCHEDULE, OPTIMIZER, adafactor
from loraloom.recipes.sd_scripts_previews import PREVIEWS

__all__ = ["TABLE", "dataset_defaults", "items_of", "take_arguments"]


def items_of(pairs: Iterable[tuple[str, Any]], recipe: Recipe, labels: Mapping[str, str] | None = None) -> Items:
    """Entries by sd-scripts' name. Of a key given twice the last that says something counts.

    ``labels``: where a key stands in the file, if its name alone does not say it.
    """
    items: Items = {}
    for key, value in pairs:
        name = str(key).strip().lstrip("-").replace("-", "_")
        name = SPELLINGS.get(name, name)
        label = (labels or {}).get(str(key), str(key))
        if name in items and is_nothing(value):
            recipe.rest(label)
            continue
        if name in items:
            recipe.change(items[name].key, f"given again as {label}; the last one counts")
        items[name] = Item(label, value)
    return items


def take_arguments(items: Items, recipe: Recipe, *, defaults: bool = True, whole: str = "") -> None:
    """Translate sd-scripts' arguments into ``recipe``.

    ``defaults``: what is not given has sd-scripts' default. ``whole``: what says that the whole model is trained; empty
    where the arguments say it themselves.
    """
    file = Arguments(recipe, dict(items))
    file.walk(_CONFIG_FILE)
    whole_model(file, whole)
    file.rest(*(name for name, item in list(file.left.items()) if says_nothing(name, item.value)))
    file.said = dict(file.left)

    file.walk(OPTIMIZER)
    if defaults:
        adafactor(file)
    for rows in (LR_SCHEDULE, _LENGTH, RATES, NETWORK, _SAVING, PREVIEWS, _DATASET, _CHECKPOINT):
        file.walk(rows)
    for name, item in file.left.items():
        take_one(name, item, recipe)
    if defaults:
        _alpha_of_the_guide(file)
        _sd_scripts_defaults(frozenset(file.said), recipe)


# -- other files ---------------------------------------------------------------------------------------------------


def _config_file(row: Row, file: Arguments) -> None:
    """A file of arguments: what stands on the command line goes on top of it."""
    item, recipe = file.left.pop(row.key), file.recipe
    if is_nothing(item.value):
        recipe.rest(item.key)
        return
    path = Path(resolved(str(item.value), recipe.folders))
    if not exists(path) and path.suffix != ".toml":
        path = path.with_name(path.name + ".toml")
    data = read_document(path).data
    if not isinstance(data, Mapping):
        recipe.problem("", f"{item.key}: {path} holds no settings")
        return
    for name, entry in items_of(flattened(data), recipe).items():
        if name in file.left:
            recipe.change(entry.key, f"{file.left[name].key} of the command line counts instead of {path.name}")
        else:
            file.left[name] = entry
    recipe.change(item.key, f"{path.name} was read")


def _dataset_config(row: Row, file: Arguments) -> None:
    """A dataset file: it counts before the folders that the arguments name."""
    item, recipe = file.left.pop(row.key), file.recipe
    path = Path(resolved(str(item.value), recipe.folders))
    for name in ("train_data_dir", "reg_data_dir", "in_json"):
        file.change(name, f"{item.key} counts instead, as in sd-scripts")
    try:
        data = read_document(path).data
    except LoraloomError as error:
        recipe.problem("dataset.folder", f"{item.key}: {error.problem}")
        return
    take_dataset_config(data, recipe, outer=file.left, source=path)
    recipe.change(item.key, f"{path.name} was read")


def _checkpoint(row: Row, file: Arguments) -> None:
    """A name on the hub is not a file; everything else is left to the mark."""
    item = file.left[row.key]
    text = str(item.value).strip()
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None
    is_file = text.lower().endswith((".safetensors", ".ckpt", ".pt"))
    if is_name and not is_file and not any(exists(folder / text) for folder in file.recipe.folders):
        file.recipe.known_of_required["checkpoint"] = f"it was {text}, a name on the Hugging Face hub"
        reason = f"{text} is a name on the Hugging Face hub: download it and give checkpoint=FILE"
        file.skip(row.key, reason)


# -- length and files ----------------------------------------------------------------------------------------------


def _length(row: Row, file: Arguments) -> None:
    """sd-scripts: epochs decide where both are given. Here steps would, so they are left out."""
    epochs = file.left.get("max_train_epochs")
    if epochs is not None:
        note = f"left out: {epochs.key} = {epochs.value} decides the length, as in sd-scripts"
        file.change("max_train_steps", note)


def _precision(row: Row, file: Arguments) -> None:
    item = file.left[row.key]
    if str(item.value) in ("no", "fp32"):
        file.left[row.key] = Item(item.key, "float")


def _format(row: Row, file: Arguments) -> None:
    if str(file.left[row.key].value).startswith("diffusers"):
        file.change(row.key, "what is trained is one file here; safetensors")


def _states(row: Row, file: Arguments) -> None:
    """Two switches for one setting: it is on where one of them is."""
    states = [item for name in ("save_state", "save_state_on_train_end") if (item := file.take(name)) is not None]
    wanted = [item for item in states if truth(item.value)]
    for item in states:
        if item in wanted or not wanted:
            file.recipe.set(row.ours, bool(wanted), item.key)
        else:
            file.recipe.rest(item.key)


def _newest_files(row: Row, file: Arguments) -> None:
    """How long files are kept, measured in steps there and counted here."""
    window, recipe = file.left.pop(row.key), file.recipe
    every, count = finite(given(file.left, "save_every_n_steps")), finite(window.value)
    epochs = file.left.get("save_last_n_epochs")
    if not count:
        recipe.rest(window.key)
    elif not every:
        recipe.skip(window.key, "files are counted, not measured in steps: saving.keep_last")
    elif epochs is not None:
        recipe.change(window.key, f"{epochs.key} counts for files saved by steps too")
    else:
        files = max(1, int(count // every))
        recipe.set(row.ours, files, window.key, note=f"the newest {files} files: they are counted here")


# -- pictures ------------------------------------------------------------------------------------------------------


def _extensions(row: Row, file: Arguments) -> None:
    item = file.left.pop(row.key)
    value = item.value if isinstance(item.value, (list, tuple)) else [item.value]
    file.recipe.set(row.ours, [str(name) for name in value], item.key)


def _is_masked(file: Arguments) -> bool:
    masked = file.said.get("masked_loss")
    return masked is not None and truth(masked.value)


def _masks(row: Row, file: Arguments) -> None:
    """Masks are in a folder, in the pictures' transparent parts, or where the dataset file says."""
    item, recipe = file.left.pop(row.key), file.recipe
    alpha = file.left.get("alpha_mask")
    if not _is_masked(file):
        recipe.rest(item.key)
    elif "conditioning_data_dir" in file.left:
        recipe.set(row.ours, "folder", item.key)
    elif alpha is not None and truth(alpha.value):
        recipe.change(item.key, "see dataset.masks")
    elif not is_nothing(given(file.left, "dataset_config")):
        recipe.change(item.key, "the dataset's folders say where the masks are")
    else:
        recipe.set(row.ours, "alpha", item.key, note="no folder of masks is named: transparent parts")


def _mask_folder(row: Row, file: Arguments) -> None:
    if not _is_masked(file):
        file.skip(row.key, "pictures that guide a ControlNet, unless masked_loss is on")


# -- what sd-scripts does where nothing is said --------------------------------------------------------------------


def _alpha_of_the_guide(file: Arguments) -> None:
    """The guide's script is older than network_alpha: at that time sd-scripts trained with scale 1."""
    length, rank = file.left.get("max_train_epochs"), file.recipe.get("adapter.rank")
    is_the_guide = length is not None and length.key.lstrip("$") == "num_epochs"
    if is_the_guide and rank and "network_alpha" not in file.said:
        note = "not given: scale 1 as when the guide was written; scripts of later versions mean adapter.alpha=1"
        file.recipe.set("adapter.alpha", rank, "(network_alpha)", note=note)


def _sd_scripts_defaults(spoken: frozenset[str], recipe: Recipe) -> None:
    """What sd-scripts does where an argument is missing, if that differs from what is done here."""

    def default(path: str, value: Any, *names: str, why: str) -> None:
        if recipe.get(path) is None and not spoken.intersection(names or ("",)):
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
    """What sd-scripts does with pictures where an argument is missing."""
    for path, value, name, why in (
        ("dataset.buckets", False, "enable_bucket", "every picture is cropped to one shape"),
        ("dataset.caption_extensions", [".caption", ".txt"], "caption_extension", ".caption files first"),
    ):
        if recipe.get(path) is None:
            recipe.set(path, value, f"({name})", note=f"not given: {why}, as in sd-scripts")


# -- the tables ----------------------------------------------------------------------------------------------------

_CONFIG_FILE = (Row("config_file", "", _config_file, "the file is read, and the command line goes on top"),)
_LENGTH = (
    Row("max_train_epochs", "epochs", _length, "epochs (unset where steps decides)"),
    Row("max_train_steps", "steps", _length, "steps"),
)
_SAVING = (
    Row("save_precision", "saving.precision", _precision),
    Row("save_model_as", "saving.format", _format),
    *together(_states, "saving.state", "save_state", "save_state_on_train_end", remark="saving.state"),
    Row("save_last_n_steps", "saving.keep_last", _newest_files, "saving.keep_last, counted in files"),
)
_DATASET = (
    Row("caption_extension", "dataset.caption_extensions", _extensions, "dataset.caption_extensions"),
    Row("masked_loss", "dataset.masks", _masks, "dataset.masks"),
    Row("conditioning_data_dir", "dataset.mask_folder", _mask_folder, "dataset.mask_folder"),
    Row("dataset_config", "dataset.concepts", _dataset_config, "dataset.concepts and what goes with them"),
)
_CHECKPOINT = (Row("pretrained_model_name_or_path", "checkpoint", _checkpoint),)

TABLE = (
    *_CONFIG_FILE,
    *OPTIMIZER,
    *LR_SCHEDULE,
    *_LENGTH,
    *RATES,
    *NETWORK,
    *BASE_LORAS,
    *_SAVING,
    *PREVIEWS,
    *_DATASET,
    *_CHECKPOINT,
    *EXCEPTIONS,
)
"""Every key that is more than a mark or a reason."""
