"""Command lines of diffusers' training scripts (examples/text_to_image, examples/dreambooth), with their own defaults.

Source: the argument parsers of the scripts in the version of 2026. All of them train the attention of the U-Net alone
unless ``--train_text_encoder`` is given, with alpha equal to the rank, and cut every picture to a square.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Sentence
from loraloom.plain_data import finite, shown
from loraloom.recipes.diffusers_names import ALIKE, NAMES, PRODIGY, SCRIPTS, WITHOUT_SETTING, Defaults
from loraloom.recipes.names import REASONS, setting_of, unknown
from loraloom.recipes.recipe import Item, Items, Mapped, Recipe, exists, is_nothing, resolved
from loraloom.recipes.rows import Reading, Row, by_key, together
from loraloom.recipes.scripts import Script
from loraloom.recipes.sd_scripts import take_arguments

__all__ = ["TABLE", "take_diffusers_script"]


def take_diffusers_script(script: Script, recipe: Recipe) -> None:
    """Translate the command line of a script of :data:`~loraloom.recipes.diffusers_names.SCRIPTS` into ``recipe``."""
    command = _Command(recipe, {}, script.program)
    for name, value in script.pairs:
        if name in command.left:
            recipe.change(name, "given twice; the last one counts")
        command.left[name] = Item(script.labels.get(name, name), value)
    if command.defaults.full:
        recipe.set("method", "full", command.name, note="the whole model is trained, not a LoRA: method=full")
    command.walk(_TOGETHER)
    for name in [name for name in command.left if name in (*NAMES, *ALIKE)]:
        _hand_on(name, command)
    for name in list(command.left):
        _what_is_left(name, command)
    take_arguments(command.items, recipe, defaults=False)


@dataclass
class _Command(Reading):
    """A command line while it is read."""

    name: str
    """The script that it calls."""
    items: Items = field(default_factory=dict)
    """What goes on as sd-scripts' arguments."""

    @property
    def defaults(self) -> Defaults:
        """What the script does where an argument is missing."""
        return SCRIPTS[self.name]

    def given(self, name: str) -> Item | None:
        """Take an argument; one that says nothing is accounted for, and None."""
        item = self.take(name)
        if item is not None and is_nothing(item.value):
            self.recipe.rest(item.key)
            return None
        return item

    def switch(self, name: str) -> str:
        """Take a switch: its key where it is on, for the caller to account for."""
        item = self.given(name)
        if item is None:
            return ""
        if str(item.value).lower() in ("false", "0"):
            self.recipe.rest(item.key)
            return ""
        return item.key

    def default(self, path: str, value: Any, name: str, meaning: str = "") -> None:
        """What the script does where an argument is not given."""
        note = meaning or f"not given: {shown(value)}"
        self.recipe.set(path, value, f"({name})", note=f"{note}, as in {self.name}")


def _beside(row: Row, command: _Command) -> None:
    """Read after all others, in the order of the command line."""


def _hand_on(name: str, command: _Command) -> None:
    """An argument that sd-scripts has too, perhaps under another name."""
    item, target = command.left.pop(name), NAMES.get(name, name)
    if target in command.items:
        command.recipe.skip(item.key, REASONS.get(target, f"{command.items[target].key} counts"))
    else:
        command.items[target] = item


def _what_is_left(name: str, command: _Command) -> None:
    item = command.left[name]
    if is_nothing(item.value) or item.value in (False, "False", "0"):
        command.rest(name)
    elif name in WITHOUT_SETTING:
        command.skip(name, WITHOUT_SETTING[name])
    else:
        command.skip(name, unknown(name, (*NAMES, *ALIKE, *WITHOUT_SETTING)))
        command.recipe.unknown.append(item.key)


# -- what is trained -----------------------------------------------------------------------------------------------


def _on(value: Any) -> Callable[[Row, _Command], None]:
    """A switch that gives a setting this value."""

    def take(row: Row, command: _Command) -> None:
        key = command.switch(row.key)
        if key:
            command.recipe.set(row.ours, value, key)

    return take


def _text_encoder(row: Row, command: _Command) -> None:
    key = command.switch(row.key)
    if key:
        command.recipe.set(row.ours, True, key)
    else:
        command.default(row.ours, False, row.key, "the U-Net alone")


def _rank(row: Row, command: _Command) -> None:
    """The rank itself goes on as sd-scripts' network_dim; alpha is the rank, and the attention alone is trained."""
    if command.defaults.full:
        return
    recipe, rank = command.recipe, command.left.get(row.key)
    if rank is None or is_nothing(rank.value):
        command.default("adapter.rank", 4, row.key)
    alpha = 4 if rank is None else rank.value
    recipe.set("adapter.alpha", alpha, "(lora_alpha)", note=f"the rank, as in {command.name}")
    recipe.set("adapter.include", ["attn"], "(target_modules)", note=f"the attention alone, as in {command.name}")


def _dora(row: Row, command: _Command) -> None:
    if not command.defaults.full:
        _on("dora")(row, command)


# -- length and rates: what is given goes on as sd-scripts' arguments ----------------------------------------------


def _length(row: Row, command: _Command) -> None:
    """Steps decide where both are given."""
    steps = command.left.get("max_train_steps")
    if steps is not None and not is_nothing(steps.value):
        command.change("num_train_epochs", f"left out: {steps.key} decides the length, as there")
    elif "num_train_epochs" not in command.left:
        command.default("epochs", command.defaults.epochs, "num_train_epochs")


def _batch(row: Row, command: _Command) -> None:
    if row.key not in command.left:
        command.default(row.ours, command.defaults.batch, row.key)


def _rate(row: Row, command: _Command) -> None:
    if row.key not in command.left:
        command.default(row.ours, command.defaults.lr, row.key)


def _text_rate(row: Row, command: _Command) -> None:
    """One script has a rate of its own for text encoders that are trained."""
    if command.recipe.get("adapter.text_encoder") and row.key not in command.left:
        for name, value in command.defaults.more.items():
            command.default(f"optimizer.{name}", value, name)


def _scale(row: Row, command: _Command) -> None:
    """The rate times the pictures of a step; more than one process is not known here."""
    key = command.switch(row.key)
    if not key:
        return
    rate, batch = command.left.get("learning_rate"), command.left.get("train_batch_size")
    accumulated = command.left.get("gradient_accumulation_steps")
    numbers = [
        command.defaults.lr if rate is None else finite(rate.value),
        command.defaults.batch if batch is None else finite(batch.value),
        1.0 if accumulated is None else finite(accumulated.value),
    ]
    if None in numbers:
        command.recipe.skip(key, "what it multiplies is not a number")
        return
    first, second, third = (number or 0.0 for number in numbers)
    command.change("learning_rate", f"multiplied, because {key} is given")
    scaled = float(f"{first * second * third:.6g}")
    note = f"{first:g} times the {second * third:g} pictures of a step"
    command.recipe.set(row.ours, scaled, key, note=note)


def _schedule(row: Row, command: _Command) -> None:
    schedule = command.left.get(row.key)
    if schedule is None:
        command.default(row.ours, "constant", row.key)
    elif "lr_warmup_steps" not in command.left and schedule.value != "constant":
        command.default("lr_schedule.warmup_steps", 500, "lr_warmup_steps")


# -- the optimizer -------------------------------------------------------------------------------------------------


def _optimizer(row: Row, command: _Command) -> None:
    """AdamW's numbers hold for Prodigy too, which has some of its own."""
    recipe, named = command.recipe, command.given("optimizer")

    is_prodigy = named is not None and str(named.value).lower() == "prodigy"
    if named is not None:
        command.items["optimizer_type"] = Item(named.key, "Prodigy" if is_prodigy else named.value)
    betas = [command.given("adam_beta1"), command.given("adam_beta2")]
    decay, epsilon = command.given("adam_weight_decay"), command.given("adam_epsilon")

    # Where nothing is given the script's own default counts, and AdamW's (0.01) need not be written.
    if decay is not None:
        recipe.set("optimizer.weight_decay", decay.value, decay.key)
    elif is_prodigy or command.defaults.weight_decay != 0.01:
        command.default("optimizer.weight_decay", command.defaults.weight_decay, "adam_weight_decay")
    if epsilon is not None:
        recipe.set("optimizer.eps", epsilon.value, epsilon.key)

    # torch takes both numbers together, so the one that is not given is filled in.
    given = [item for item in betas if item is not None]
    if given:
        values = [default if item is None else item.value for item, default in zip(betas, (0.9, 0.999), strict=True)]
        recipe.set("optimizer.betas", values, given[0].key)
        recipe.mapped += [Mapped(item.key, "optimizer.betas", item.value) for item in given[1:]]
    _prodigy(command, is_used=is_prodigy)


def _prodigy(command: _Command, *, is_used: bool) -> None:
    recipe, options = command.recipe, {}
    for name, option in PRODIGY.items():
        item = command.given(name)
        if item is None:
            continue
        if is_used:
            is_switch = name != "prodigy_beta3"
            options[option] = item.value in (True, "True", "true", "1") if is_switch else item.value
            recipe.mapped.append(Mapped(item.key, f"optimizer.args.{option}", options[option]))
        else:
            recipe.rest(item.key)
    if is_used:
        switches = {"weight_decouple": True, "bias_correction": True, "safeguard_warmup": True}
        recipe.set("optimizer.args", {**switches, **options}, "(prodigy_...)", note=f"as in {command.name}")


# -- pictures ------------------------------------------------------------------------------------------------------


def _resolution(row: Row, command: _Command) -> None:
    if row.key not in command.left:
        command.default(row.ours, command.defaults.resolution, row.key)
    command.default("dataset.buckets", False, "buckets", "every picture is cut to a square")


def _center_crop(row: Row, command: _Command) -> None:
    key = command.switch(row.key)
    if key:
        command.recipe.set(row.ours, False, key)
    else:
        command.default(row.ours, True, row.key, "not given: cut at random")


def _prediction(row: Row, command: _Command) -> None:
    kind = command.given(row.key)
    if kind is not None:
        command.recipe.set(row.ours, "v" if str(kind.value).startswith("v") else kind.value, kind.key)


def _column(row: Row, command: _Command) -> None:
    column = command.given(row.key)
    if column is None:
        return
    if str(column.value) in ("text", "caption", "prompt"):
        command.recipe.rest(column.key)
    else:
        reason = f"the column of a caption table is found by its name: text or caption, not {shown(column.value)}"
        command.recipe.skip(column.key, reason)


def _folder(row: Row, command: _Command) -> None:
    """A folder, or a dataset's name, which may be that of a folder too."""
    recipe = command.recipe
    folder, hub = command.given("train_data_dir"), command.given("dataset_name")
    if hub is not None and exists(Path(resolved(str(hub.value), recipe.folders))):
        folder, hub = folder or hub, None
    if hub is not None:
        recipe.known_of_required["dataset.folder"] = f"it was {hub.value}, a dataset on the Hugging Face hub"
        recipe.skip(hub.key, "a dataset on the Hugging Face hub: download it and give dataset.folder=FOLDER")
    if folder is not None:
        recipe.set("dataset.folder", folder.value, folder.key)


def _concepts(row: Row, command: _Command) -> None:
    """DreamBooth's two folders, each with one sentence for all pictures."""
    recipe = command.recipe
    key = command.switch("with_prior_preservation")
    if key:
        recipe.change(key, "see dataset.concepts")
    repeats = command.given("repeats")

    # Without with_prior_preservation the script never looks at the class images.
    concepts = []
    for which in ("instance", "class"):
        folder, prompt = command.given(f"{which}_data_dir"), command.given(f"{which}_prompt")
        is_idle = which == "class" and not key
        if folder is None or is_idle:
            reason = "without with_prior_preservation it changes nothing" if is_idle else "there is no folder for it"
            _not_a_concept(folder, prompt, reason, recipe)
            continue
        concept: dict[str, Any] = {"folder": resolved(str(folder.value), recipe.folders), "repeats": 1}
        recipe.mapped.append(Mapped(folder.key, "dataset.concepts[].folder", concept["folder"]))
        if which == "class":
            concept["is_regularization"] = True
        elif repeats is not None:
            concept["repeats"] = finite(repeats.value) or 1
            recipe.mapped.append(Mapped(repeats.key, "dataset.concepts[].repeats", repeats.value))
            repeats = None
        if prompt is not None:
            concept["captions"] = {"sentence": str(prompt.value)}
            recipe.mapped.append(Mapped(prompt.key, "dataset.concepts[].captions.sentence", prompt.value))
        concepts.append(concept)

    if repeats is not None:
        recipe.set("dataset.repeats", repeats.value, repeats.key)
    if concepts:
        recipe.settings.setdefault("dataset", {})["concepts"] = concepts


def _not_a_concept(folder: Item | None, prompt: Item | None, reason: str, recipe: Recipe) -> None:
    for item in (folder, prompt):
        if item is not None:
            recipe.skip(item.key, reason)


def _given(row: Row, command: _Command) -> None:
    """The setting as it is, unless it says nothing."""
    item = command.given(row.key)
    if item is not None:
        command.recipe.set(row.ours, item.value, item.key)


def _class_images(row: Row, command: _Command) -> None:
    count = command.given(row.key)
    if count is not None:
        made = Action.MAKE_CLASS_IMAGES.of(count=count.value)
        command.recipe.skip(count.key, Sentence("class images are made before training: ", made))


# -- what comes out ------------------------------------------------------------------------------------------------


def _run_folder(row: Row, command: _Command) -> None:
    """A folder there is a run folder here: its name and the one that it lies in."""
    recipe, folder = command.recipe, command.given(row.key)
    text = command.defaults.output if folder is None else str(folder.value).strip().strip('"')
    parent, name = _split(text)
    if name in ("", ".", ".."):
        parent, name = text, command.defaults.output
    key = "(output_dir)" if folder is None else folder.key
    recipe.set("name", name, key, note="the last part of output_dir is the name of the run")
    if parent:
        recipe.set("output", parent, f"{key} (its place)", note="runs are folders in it")


def _files(row: Row, command: _Command) -> None:
    every = command.given(row.key)
    if every is None:
        command.default(row.ours, 500, row.key)
    else:
        command.recipe.set(row.ours, every.value, every.key)
    command.default("saving.every_epochs", 0, "checkpointing_steps: epochs", "files by steps alone")


def _kept(row: Row, command: _Command) -> None:
    kept = command.given(row.key)
    if kept is not None:
        command.recipe.set("saving.keep_last", kept.value, kept.key)
        command.recipe.set("saving.keep_states", kept.value, f"{kept.key} (states)", note="states too")


def _previews(row: Row, command: _Command) -> None:
    """Without a prompt nothing is painted, and how often does not matter."""
    recipe = command.recipe
    prompt, several = command.given("validation_prompt"), command.given("validation_prompts")
    every, count = command.given("validation_epochs"), command.given("num_validation_images")
    prompts = [] if several is None else several.value if isinstance(several.value, list) else [several.value]
    prompts += [] if prompt is None else [prompt.value]

    source = prompt or several
    if source is None or not prompts:
        for item in (every, count):
            if item is not None:
                recipe.rest(item.key)
        return
    recipe.set("preview.prompts", [str(text) for text in prompts], source.key)
    # What those scripts paint with, never before the first step.
    recipe.settings["preview"] |= {"steps": 30, "cfg_scale": 7.5, "at_start": False}

    if every is not None:
        recipe.set("preview.every_epochs", every.value, every.key)
    else:
        command.default("preview.every_epochs", command.defaults.preview_epochs, "validation_epochs")
    if count is not None:
        recipe.skip(count.key, "one preview per prompt: list a prompt several times for several")


def _split(path: str) -> tuple[str, str]:
    """The folder that a path lies in, and its last part, on any system."""
    trimmed = path.rstrip("/\\")
    parts = re.split(r"[/\\]", trimmed)
    return trimmed[: -len(parts[-1])].rstrip("/\\"), parts[-1]


# -- the tables: what is read here, in this order; ``always`` where the script does something else than we -------------

_TOGETHER = (
    # What is trained.
    Row("train_text_encoder", "adapter.text_encoder", _text_encoder, always=True),
    Row("rank", "adapter.rank", _rank, always=True),
    Row("use_dora", "adapter.kind", _dora, "dora"),
    # Length and rates; the numbers themselves go on as sd-scripts' arguments.
    Row("max_train_steps", "steps", _length, always=True),
    Row("train_batch_size", "batch_size", _batch, always=True),
    Row("learning_rate", "optimizer.lr", _rate, always=True),
    Row("text_encoder_lr", "optimizer.text_encoder_lr", _text_rate, always=True),
    Row("scale_lr", "optimizer.lr", _scale, "times the pictures of a step"),
    Row("lr_scheduler", "lr_schedule.name", _schedule, always=True),
    # The optimizer.
    Row("optimizer", "optimizer.name", _optimizer, always=True),
    *together(_optimizer, "optimizer.betas", "adam_beta1", "adam_beta2"),
    Row("adam_weight_decay", "optimizer.weight_decay", _optimizer),
    Row("adam_epsilon", "optimizer.eps", _optimizer),
    *together(_optimizer, "optimizer.args", *PRODIGY),
    # Pictures.
    Row("resolution", "dataset.resolution", _resolution, always=True),
    Row("center_crop", "dataset.random_crop", _center_crop, "the other way round", always=True),
    Row("offset_noise", "objective.noise_offset", _on(0.1), "0.1"),
    Row("prediction_type", "prediction", _prediction),
    Row("use_ema", "ema.enabled", _on(True)),
    Row("caption_column", "", _column, "found by its name"),
    *together(_folder, "dataset.folder", "train_data_dir", "dataset_name"),
    Row("with_prior_preservation", "dataset.concepts", _concepts),
    *together(
        _concepts,
        "dataset.concepts",
        "repeats",
        "instance_data_dir",
        "instance_prompt",
        "class_data_dir",
        "class_prompt",
    ),
    Row("prior_loss_weight", "prior_loss_weight", _given),
    Row("num_class_images", "", _class_images, "class images are made before training"),
    # What comes out.
    Row("output_dir", "name", _run_folder, "its last part; the rest is output", always=True),
    Row("checkpointing_steps", "saving.every_steps", _files, always=True),
    Row("checkpoints_total_limit", "saving.keep_last", _kept, "and saving.keep_states"),
    *together(
        _previews,
        "preview.prompts",
        "validation_prompt",
        "validation_prompts",
        "validation_epochs",
        "num_validation_images",
    ),
)
TABLE = (
    *_TOGETHER,
    *(Row(name, setting_of(theirs) or "", _beside) for name, theirs in NAMES.items() if name != "rank"),
    *(Row(name, setting_of(name) or "", _beside) for name in ALIKE if name not in by_key(_TOGETHER)),
    *(Row(name, "", _beside, reason) for name, reason in WITHOUT_SETTING.items()),
)
"""Every argument of the scripts: those above, those that go on under sd-scripts' names, and those without a setting."""
