"""What OneTrainer trains on and what comes out meanwhile: captions, concepts, sizes, previews, files, states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraloom.errors import LoraloomError
from loraloom.recipes.onetrainer_concepts import read_sizes, take_concept
from loraloom.recipes.onetrainer_file import OneTrainerFile
from loraloom.recipes.onetrainer_names import SAMPLERS
from loraloom.recipes.parsing import read_document
from loraloom.recipes.recipe import Item, is_nothing, resolved
from loraloom.recipes.rows import Row

How = Callable[[Row, OneTrainerFile], None]


# -- captions and pictures -----------------------------------------------------------------------------------------


def caption_dropout(row: Row, file: OneTrainerFile) -> None:
    """A text encoder that gets an empty text in a share of the steps is caption dropout."""
    keys = ("text_encoder.dropout_probability", "text_encoder_2.dropout_probability")
    first, second = (file.number(key) for key in keys)
    if first > 0:
        note = "the whole caption is left out" + (", for both text encoders" if second else "")
        file.recipe.set("dataset.captions.dropout", first, keys[0], note=note)
    else:
        file.recipe.rest(keys[0])
    if second > 0 and not first:
        file.recipe.skip(keys[1], "one text encoder alone cannot be left without a caption")
    else:
        file.recipe.rest(keys[1])


def resolution(row: Row, file: OneTrainerFile) -> None:
    value = file.taken(row.key)
    sizes = [] if is_nothing(value) else read_sizes(file.recipe, value, row.key)
    if len(sizes) == 1:
        file.recipe.set("dataset.resolution", sizes[0], row.key)
    elif sizes:
        file.recipe.set("dataset.resolutions", sizes, row.key)
        note = "each picture at one of them at a time, as there"
        file.recipe.set("dataset.resolution_choice", "random", "(resolution)", note=note)


def masks(row: Row, file: OneTrainerFile) -> None:
    if file.taken(row.key):
        file.recipe.set(row.ours, "beside", row.key)
    else:
        file.recipe.rest(row.key)


def concepts(row: Row, file: OneTrainerFile) -> None:
    """Folders to train on, and those to measure on, of which there is one here."""
    recipe = file.recipe
    listed = _listed("concepts", "concept_file_name", "concepts", file)
    validates = bool(file.taken("validation"))
    found: list[dict[str, Any]] = []
    held_out: list[str] = []
    for number, concept in enumerate(listed):
        take_concept(recipe, f"concepts[{number}]", concept, found, held_out)
    if found:
        recipe.settings.setdefault("dataset", {})["concepts"] = found

    if not held_out:
        recipe.rest("validation")
    elif validates:
        recipe.set("validation.folder", held_out[0], "validation")
        for folder in held_out[1:]:
            recipe.skip("validation", f"{folder}: pictures to measure on are in one folder here")
    else:
        recipe.change("validation", "off, so the concepts to measure on are left out")


def _listed(key: str, file_key: str, what: str, file: OneTrainerFile) -> Sequence[Mapping[str, Any]]:
    """A list that is in the file itself, or in one that it names."""
    recipe = file.recipe
    inline, named = file.taken(key), file.taken(file_key)
    if isinstance(inline, list):
        recipe.rest(file_key)
        recipe.change(key, f"{len(inline)} {what}, see below")
        return [entry for entry in inline if isinstance(entry, Mapping)]
    recipe.rest(key)
    if is_nothing(named):
        return []
    path = Path(resolved(str(named), recipe.folders))
    try:
        data = read_document(path).data
    except LoraloomError as error:
        if key == "concepts":
            recipe.known_of_required["dataset.folder"] = f"the concepts are in {named}, which is not here"
        recipe.skip(file_key, f"{error.problem}")
        return []
    if not isinstance(data, list) or not all(isinstance(entry, Mapping) for entry in data):
        recipe.problem("", f"{file_key}: {path} is not a list of {what}")
        return []
    recipe.change(file_key, f"{len(data)} {what} of {path.name}, see below")
    return data


# -- previews ------------------------------------------------------------------------------------------------------


def samples(row: Row, file: OneTrainerFile) -> None:
    listed = _listed("samples", "sample_definition_file_name", "samples", file)
    prompts = []
    for number, sample in enumerate(listed):
        if sample.get("enabled", True) is False or is_nothing(sample.get("prompt")):
            continue
        prompts.append(_prompt_line(sample))
        if sample.get("sample_inpainting"):
            file.recipe.skip(f"samples[{number}].sample_inpainting", "previews are painted from noise")
    if prompts:
        file.as_sd_scripts(sample_prompts=Item("samples", prompts))


_SIZES = {"w": "width", "h": "height", "s": "diffusion_steps", "l": "cfg_scale"}
"""Options behind a prompt that are numbers of a sample."""


def _prompt_line(sample: Mapping[str, Any]) -> str:
    """A prompt with its options behind it."""
    line = " ".join(str(sample["prompt"]).split())
    negative = " ".join(str(sample.get("negative_prompt") or "").split())
    if negative:
        line += f" --n {negative}"
    for option, key in _SIZES.items():
        if isinstance(sample.get(key), (int, float)):
            line += f" --{option} {sample[key]}"
    if isinstance(sample.get("seed"), int) and not sample.get("random_seed"):
        line += f" --d {sample['seed']}"
    sampler = SAMPLERS.get(str(sample.get("noise_scheduler") or "").upper())
    return f"{line} --ss {sampler}" if sampler else line


# -- how often -----------------------------------------------------------------------------------------------------


def how_often(section: str, what: str) -> How:
    """How often something comes out, in epochs or steps; every few minutes becomes every epoch."""

    def take(row: Row, file: OneTrainerFile) -> None:
        recipe, key = file.recipe, row.key.removesuffix("_unit")
        value, unit = file.number(key), file.word(f"{key}_unit")
        recipe.rest(f"{key}_unit")
        is_off = value <= 0 or unit == "NEVER"
        if section == "validation" and (is_off or recipe.get("validation.folder") is None):
            recipe.rest(key)
        elif is_off:
            recipe.set(f"{section}.every_epochs", 0, key)
        elif unit in ("STEP", "ALWAYS"):
            file.count(key, f"{section}.every_steps", value if unit == "STEP" else 1)
            if section != "validation":
                recipe.set(f"{section}.every_epochs", 0, f"({key}_unit)", note="by steps alone")
        elif unit == "EPOCH":
            file.count(key, f"{section}.every_epochs", value)
        else:
            recipe.change(key, f"{value:g} {unit.lower()}s: {what} come with epochs or steps here, one an epoch")

    return take


_MINUTES = {"SECOND": 1 / 60, "MINUTE": 1.0, "HOUR": 60.0}


def backup(row: Row, file: OneTrainerFile) -> None:
    """A state to go on from."""
    value, unit = file.number("backup_after"), file.word("backup_after_unit")
    file.recipe.rest("backup_after_unit")
    if value <= 0 or unit in ("", "NEVER"):
        file.recipe.rest("backup_after")
    elif unit in _MINUTES:
        file.recipe.set("saving.state_every_minutes", value * _MINUTES[unit], "backup_after")
    elif unit == "STEP":
        file.count("backup_after", "saving.state_every_steps", value)
    else:
        file.recipe.change("backup_after", "a state is written with every file, and every few minutes")
