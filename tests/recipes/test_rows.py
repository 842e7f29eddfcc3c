"""The tables of every program: each row is about a key that is really read, and names a setting that exists."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loraloom.errors import LoraloomError
from loraloom.recipes import (
    dataset_subsets,
    diffusers_scripts,
    dreambooth,
    dreambooth_concepts,
    easy_scripts,
    gui,
    metadata,
    onetrainer,
    onetrainer_concepts,
    sd_scripts,
)
from loraloom.recipes.arguments import row_of
from loraloom.recipes.names import REASONS, marked
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe, field_rows
from loraloom.recipes.rows import Row

VALUES: tuple[Any, ...] = (
    *(3, "x", True, False, 0.3, "32", 7, ["a"], "LOHA", "EPOCH", "CONSTANT", "BOTH", "bf16", "FLOAT_32", "NONE"),
    *({"a": 1}, [{"prompt": "a fox"}], [{"path": "img"}], "attn", "NFLOAT_4", None, 0, ""),
)
"""One of these means something to each key."""

TABLES = {
    "sd-scripts": sd_scripts.TABLE,
    "kohya_ss": gui.TABLE,
    "a subset of a dataset file": dataset_subsets.SUBSET,
    "sections of LoRA_Easy_Training_Scripts": easy_scripts.WINDOW,
    "arguments of LoRA_Easy_Training_Scripts": easy_scripts.ARGUMENTS,
    "metadata": metadata.TABLE,
    "diffusers": diffusers_scripts.TABLE,
    "OneTrainer": onetrainer.TABLE,
    "a concept of OneTrainer": onetrainer_concepts.CONCEPT,
    "pictures of a concept of OneTrainer": onetrainer_concepts.IMAGE,
    "captions of a concept of OneTrainer": onetrainer_concepts.TEXT,
    "sd_dreambooth_extension": dreambooth.TABLE,
    "a concept of sd_dreambooth_extension": dreambooth_concepts.CONCEPT,
}


@pytest.mark.parametrize("name", TABLES)
def test_no_key_stands_in_two_rows(name: str) -> None:
    counted = Counter(row.key for row in TABLES[name])
    assert [key for key, count in counted.items() if count > 1] == []


@pytest.mark.parametrize("name", TABLES)
def test_every_row_names_a_setting_or_a_reason(name: str) -> None:
    paths = {*field_rows(), "dataset.concepts[]"}
    assert [row.key for row in TABLES[name] if row.ours and row.ours not in paths] == []


def said(recipe: Recipe) -> str:
    """Everything that a recipe says, as text to compare."""
    parts = (recipe.settings, recipe.mapped, recipe.changed, recipe.unmapped, sorted(recipe.idle), recipe.problems)
    return repr((*parts, recipe.known_of_required))


def read(path: Path, data: Any) -> str:
    path.write_text(json.dumps(data), encoding="utf-8")
    try:
        return said(read_recipe(path))
    except LoraloomError as error:
        return str(error)


def is_read(path: Path, row: Row, base: Any, with_value: Callable[[Any], Any]) -> bool:
    """Whether some value of the key changes what a recipe says, and none makes it one that is not known."""
    silent = read(path, base)
    told = next((text for text in (read(path, with_value(value)) for value in VALUES) if text != silent), "")
    return told != "" and not re.search(rf"\b{re.escape(row.key)}', 'not known", told)


ONETRAINER = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "peft_type": "LOKR", "lora_rank": None}
CONCEPT = {"instance_data_dir": "img", "instance_prompt": "a [filewords]", "num_class_images": 5}
EXTENSION = {"concepts_list": [CONCEPT], "num_train_epochs": 3, "use_lora": True}


def arguments_of_sd_scripts() -> list[Row]:
    """The table, then every mark and every reason."""
    names = [*marked(), *REASONS]
    alone = [row for name in dict.fromkeys(names) if (row := row_of(name)) is not None]
    return list({row.key: row for row in [*alone, *sd_scripts.TABLE]}.values())


@pytest.mark.parametrize("row", arguments_of_sd_scripts(), ids=lambda row: row.key)
def test_every_argument_of_sd_scripts_is_read(tmp_path: Path, row: Row) -> None:
    base = {"network_module": "networks.lora", "network_dim": 3, "base_weights": "a.safetensors", "seed": 3}
    base = {key: value for key, value in base.items() if key != row.key}
    assert is_read(tmp_path / "a.json", row, base, lambda value: {**base, row.key: value})


WORDS = ("x", "7", "0.3", "true", "False", "prodigy", "v_prediction", "1e-3")


@pytest.mark.parametrize("row", diffusers_scripts.TABLE, ids=lambda row: row.key)
def test_every_argument_of_diffusers_is_read(tmp_path: Path, row: Row) -> None:
    others = {"instance_data_dir": "img", "instance_prompt": "a", "learning_rate": "1e-4", "validation_prompt": "a fox"}
    others = {name: value for name, value in others.items() if name != row.key}

    def read_command(more: str) -> str:
        given = " ".join(f'--{name}="{value}"' for name, value in others.items())
        path = tmp_path / "a.sh"
        path.write_text(f"accelerate launch train_dreambooth_lora.py {given} {more}\n", encoding="utf-8")
        return said(read_recipe(path))

    silent = read_command("")
    texts = (read_command(f'--{row.key}="{word}"') for word in WORDS)
    told = next((text for text in texts if text != silent), "")
    assert told and "'not known" not in told


FORM = {"LoRA_type": "LyCORIS/Diag-OFT", "max_resolution": "512,512", "lr_warmup": 10, "epoch": 2, "model_list": "a"}


@pytest.mark.parametrize("row", gui.TABLE, ids=lambda row: row.key)
def test_every_key_of_the_form_is_read(tmp_path: Path, row: Row) -> None:
    base = {key: value for key, value in FORM.items() if key != row.key}
    assert is_read(tmp_path / "a.json", row, base, lambda value: {**base, row.key: value})


@pytest.mark.parametrize("row", dataset_subsets.SUBSET, ids=lambda row: row.key)
def test_every_key_of_a_subset_is_read(tmp_path: Path, row: Row) -> None:
    base = {"image_dir": "img", "is_reg": True}
    base = {key: value for key, value in base.items() if key != row.key}
    values = {"resolution": 320, "custom_attributes": {"diff_output_preservation": True}}

    def with_value(value: Any) -> Any:
        return {"datasets": [{"subsets": [{**base, row.key: values.get(row.key, value)}]}]}

    assert is_read(tmp_path / "a.json", row, {"datasets": [{"subsets": [base]}]}, with_value)


@pytest.mark.parametrize("row", easy_scripts.WINDOW, ids=lambda row: row.key)
def test_every_section_of_the_window_is_read(tmp_path: Path, row: Row) -> None:
    base = {"subsets": [{"image_dir": "img"}]}
    panel = {"train_mode": "ti", "args": {"ae": "x"}}
    assert is_read(tmp_path / "a.json", row, base, lambda _: {**base, row.key: panel})


@pytest.mark.parametrize("row", easy_scripts.ARGUMENTS, ids=lambda row: row.key)
def test_every_argument_of_the_window_is_read(tmp_path: Path, row: Row) -> None:
    base = {"subsets": [{"image_dir": "img"}]}
    assert is_read(tmp_path / "a.json", row, base, lambda value: {**base, "a_args": {"args": {row.key: value}}})


@pytest.mark.parametrize("row", metadata.TABLE, ids=lambda row: row.key)
def test_every_key_of_the_metadata_is_read(row: Row) -> None:
    silent, told = (Recipe(Path("a.safetensors"), "") for _ in range(2))
    metadata.take_metadata({"ss_network_dim": "3", "ss_num_epochs": "7"}, silent)
    metadata.take_metadata({"ss_network_dim": "3", "ss_num_epochs": "7", f"ss_{row.key}": "0.3"}, told)
    assert said(told) != said(silent) and told.unknown == []


@pytest.mark.parametrize("row", onetrainer.TABLE, ids=lambda row: row.key)
def test_every_key_of_onetrainer_is_read(tmp_path: Path, row: Row) -> None:
    section, _, key = row.key.rpartition(".")
    base = {key: value for key, value in ONETRAINER.items() if key != row.key}
    assert is_read(
        tmp_path / "a.json", row, base, lambda value: {**base, **({section: {key: value}} if section else {key: value})}
    )


@pytest.mark.parametrize("row", dreambooth.TABLE, ids=lambda row: row.key)
def test_every_key_of_the_extension_is_read(tmp_path: Path, row: Row) -> None:
    base = {key: value for key, value in EXTENSION.items() if key != row.key} | {"revision": 0, "lifetime_revision": 0}
    base = {key: value for key, value in base.items() if key != row.key}
    assert is_read(tmp_path / "a.json", row, base, lambda value: {**base, row.key: value})


@pytest.mark.parametrize("row", dreambooth_concepts.CONCEPT, ids=lambda row: row.key)
def test_every_key_of_a_concept_is_read(tmp_path: Path, row: Row) -> None:
    base = {key: value for key, value in CONCEPT.items() if key != row.key}
    assert is_read(
        tmp_path / "a.json",
        row,
        [{"instance_data_dir": "other"}, base],
        lambda value: [{"instance_data_dir": "other"}, {**base, row.key: value}],
    )
