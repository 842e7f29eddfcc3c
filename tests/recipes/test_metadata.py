"""The recipe that a LoRA file carries, of this program and of sd-scripts."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foreign_recipes import lora_with, written
from loraloom.errors import AdapterError, SettingsError
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe, field_rows, listed
from loraloom.settings import SettingRow
from loraloom.training.record import RECORD, recorded_settings
from loraloom.training.settings import TrainSettings


def test_a_lora_names_no_place_on_this_machine(tmp_path: Path) -> None:
    private = written(tmp_path, "private.toml", "network_dim = 99\n")
    keys = ("output_dir", "config_file", "dataset_config", "sample_prompts", "train_data_dir", "network_weights")
    recipe = read_recipe(lora_with(tmp_path, **{f"ss_{key}": str(private) for key in keys}))
    assert recipe.settings == {"optimizer": {"lr": 3e-4}}
    assert {f"ss_{key}" for key in keys} <= set(dict(recipe.unmapped))


def test_a_run_from_a_recipe_and_its_lora_as_a_recipe(
    tmp_path: Path, pictures: Path, checkpoints: Callable[[str], Path]
) -> None:
    from loraloom.formats.tensors import open_tensors
    from loraloom.studio.runs.training import run_training

    text = f"""
[model]
pretrained_model_name_or_path = '{checkpoints("sd1")}'
train_data_dir = '{pictures}'
output_dir = '{tmp_path / "runs"}'
output_name = "tiny"
[network]
network_module = "networks.lora"
network_dim = 2
network_alpha = 1
resolution = "64"
max_train_steps = 2
train_batch_size = 2
learning_rate = 1e-3
lr_scheduler = "cosine"
optimizer_args = ["weight_decay=0.2"]
noise_offset = 0.07
min_snr_gamma = 5
shuffle_caption = true
training_comment = "hello"
metadata_author = "somebody"
metadata_tags = "red, small"
seed = 11
"""
    recipe = read_recipe(written(tmp_path, "kohya.toml", text))
    settings = recipe.finished(["device=cpu"])
    result = run_training(settings)
    assert result.lora.is_file()
    assert TrainSettings.load(result.folder / "settings.toml").objective.noise_offset == 0.07

    with open_tensors(result.lora) as file:
        spec = {key.partition(".")[2]: text for key, text in file.metadata.items() if key.startswith("modelspec.")}
    assert (spec["author"], spec["tags"], spec["description"]) == ("somebody", "red, small", "hello")
    assert "license" not in spec

    like = read_recipe(result.lora, only_lora=True)
    assert like.missing() == ["checkpoint", "dataset.folder"]
    assert "sd1.safetensors" in like.known_of_required["checkpoint"]
    again = like.finished([f"checkpoint='{settings.checkpoint}'", f"dataset.folder='{pictures}'"])
    assert (again.adapter.rank, again.adapter.alpha, again.seed, again.dataset.resolution) == (2, 1.0, 11, 64)
    assert (again.optimizer.lr, again.lr_schedule.name, again.batch_size) == (1e-3, "cosine", 2)
    assert again.optimizer.name == "adamw"
    assert like.problems == []


def another(row: SettingRow) -> Iterator[Any]:
    """Values that a setting of this type may take."""
    for kind in row.kinds:
        if kind == "true":
            yield not row.default
        elif kind == "whole number" or kind == "number":
            yield from (2, 5, 64, 0.25, 150, 0.5, 1024)
        elif kind == "text":
            yield from ("red", "sgd_nesterov", "linear")
        elif kind.startswith("list of"):
            yield from ([0.5, 0.7], ["end"], [".cap"], [3, 4], ["a fox --s 4", "b"], [512, 768], [4] * 25)
        elif kind.startswith("table of"):
            yield {"amsgrad": True, "x": 2.0, "pair": [0.5, 0.75]}
        elif kind not in ("none", "false", "path"):
            yield kind


NEEDED = {
    "saving": {"trigger": "foxy"},
    "adapter": {"kind": "dora"},
    "validation": {"share": 0.25},
}
"""What other settings lean on."""


TOLD_ELSEWHERE = listed(
    "dataset.concepts adapter.base_loras adapter.rank_from_file adapter.args device branched_from notify.url"
)
"""Settings that hold places, that are no part of a recipe, or (adapter.args) that a kind of another package reads."""


def like(tmp_path: Path, settings: TrainSettings, **more: str) -> Recipe:
    import torch

    from loraloom.formats.tensors import write_tensors

    metadata = {"ss_sd_model_name": "a.ckpt", "ss_network_dim": "77", RECORD: recorded_settings(settings), **more}
    write_tensors(tmp_path / "l.safetensors", {"lora_unet_x.alpha": torch.ones(1)}, metadata=metadata)
    return read_recipe(tmp_path / "l.safetensors", only_lora=True)


def test_every_setting_comes_back_from_the_metadata(tmp_path: Path) -> None:
    given = {"checkpoint": "a.ckpt", "dataset": {"folder": "img"}}
    missed = []
    for path, row in field_rows().items():
        if "[]" in path or row.kinds[0] == "path" or path in TOLD_ELSEWHERE:
            continue
        for value in another(row):
            data = copy.deepcopy({**given, **NEEDED})
            *parents, leaf = path.split(".")
            target = data
            for parent in parents:
                target = target.setdefault(parent, {})
            target[leaf] = value
            try:
                settings = TrainSettings.parse(data)
            except SettingsError:
                continue
            if path in json.loads(recorded_settings(settings)):
                break
        else:
            missed.append(path)
            continue
        recipe = like(tmp_path, settings)
        again = recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img"])
        assert again == settings, path
        assert recipe.problems == [] and recipe.unknown == []
    assert missed == []


def test_an_adaptive_optimizer_with_the_usual_rate_comes_back(tmp_path: Path) -> None:
    data = {"checkpoint": "a.ckpt", "dataset": {"folder": "img"}, "optimizer": {"name": "prodigy", "lr": 1e-4}}
    recipe = like(tmp_path, TrainSettings.parse(data))
    assert recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img"]).optimizer.lr == 1e-4


def test_the_metadata_tells_no_place_and_takes_none(tmp_path: Path) -> None:
    private = tmp_path / "jane"
    data = {
        "checkpoint": str(private / "a.ckpt"), "output": str(private), "notify": {"url": "https://example.org/secret"},
        "adapter": {"base_loras": [f"{private}/b.safetensors:0.5"], "start_from": str(private / "s.safetensors")},
        "dataset": {"concepts": [{"folder": str(private / "10_cat"), "repeats": 3}], "cache_folder": str(private)},
        "preview": {"file": str(private / "prompts.txt")}, "validation": {"folder": str(private / "held out")},
    }  # fmt: skip
    text = recorded_settings(TrainSettings.parse(data))
    assert "jane" not in text and "secret" not in text and "10_cat" in text

    (tmp_path / "b.safetensors").touch()
    recipe = like(tmp_path, TrainSettings.parse(data))
    assert recipe.get("adapter.base_loras") == [f"{tmp_path}/b.safetensors:0.5"], "found beside the LoRA"
    left = dict(recipe.unmapped)
    assert "s.safetensors" in left[f"{RECORD}: adapter.start_from"]
    assert "10_cat" in left[f"{RECORD}: dataset.concepts"]

    hostile = json.dumps(
        {
            "notify.url": "https://example.org",
            "output": "/etc",
            "adapter.start_from": "../../x",
            "dataset.concepts[].folder": "x",
            "no.such": 1,
            "adapter": {},
            "preview.file": None,
        }
    )
    recipe = like(tmp_path, TrainSettings.parse(data), **{RECORD: hostile})
    assert recipe.settings == {}

    recipe = like(tmp_path, TrainSettings.parse(data), **{RECORD: "{"})
    assert recipe.get("adapter.rank") == 77, "a broken record: the other keys count"


def test_the_metadata_of_sd_scripts(tmp_path: Path) -> None:
    import torch

    from loraloom.formats.tensors import write_tensors

    metadata = {
        "ss_network_dim": "16", "ss_network_alpha": "8", "ss_network_module": "lycoris.kohya",
        "ss_network_args": json.dumps({"algo": "loha", "conv_dim": "4", "conv_alpha": "1", "preset": "full"}),
        "ss_optimizer": "bitsandbytes.optim.adamw.AdamW8bit(weight_decay=0.1,betas=(0.9, 0.95))",
        "ss_learning_rate": "0.0001", "ss_unet_lr": "None", "ss_text_encoder_lr": "5e-05", "ss_seed": "7",
        "ss_num_epochs": "3", "ss_max_train_steps": "300", "ss_lr_scheduler": "cosine_with_restarts",
        "ss_min_snr_gamma": "5.0", "ss_noise_offset": "None", "ss_v2": "False", "ss_sd_model_name": "anime.ckpt",
        "ss_clip_skip": "2", "ss_cache_latents": "True", "ss_mixed_precision": "fp16", "ss_steps": "300",
        "ss_datasets": json.dumps([{"resolution": [512, 512], "enable_bucket": True, "batch_size_per_device": 4,
                                    "subsets": [{"keep_tokens": 2, "shuffle_caption": True, "flip_aug": False}]}]),
        "modelspec.title": "My style", "modelspec.architecture": "stable-diffusion-v1/lora", "sshs_model_hash": "00",
    }  # fmt: skip
    write_tensors(tmp_path / "l.safetensors", {"lora_unet_x.alpha": torch.ones(1)}, metadata=metadata)
    recipe = read_recipe(tmp_path / "l.safetensors")
    settings = recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img"])
    assert (settings.adapter.kind, settings.adapter.rank, settings.adapter.conv_rank) == ("loha", 16, 4)
    assert (settings.optimizer.name, settings.optimizer.betas) == ("adamw_8bit", (0.9, 0.95))
    assert (settings.epochs, settings.steps, settings.batch_size) == (3, None, 4)
    assert (settings.dataset.resolution, settings.dataset.captions.keep_tokens) == (512, 2)
    assert settings.saving.title == "My style" and settings.clip_skip == 2
    assert "anime.ckpt" in recipe.known_of_required["checkpoint"]
    told = {key.partition(":")[0] for key in recipe.keys}
    assert [key for key in metadata if key not in told] == []


def test_a_lora_without_metadata(tmp_path: Path) -> None:
    import torch

    from loraloom.formats.tensors import write_tensors

    write_tensors(tmp_path / "l.safetensors", {"lora_unet_x.alpha": torch.ones(1)})
    with pytest.raises(AdapterError, match="carries no metadata"):
        read_recipe(tmp_path / "l.safetensors")


@pytest.mark.parametrize("resolution", [[[512, 512]], [{}], [None, None], "(512", 10**30])
def test_metadata_of_odd_shapes(tmp_path: Path, resolution: Any) -> None:
    datasets = json.dumps([{"resolution": resolution, "subsets": [{"keep_tokens": {"a": 1}}]}])
    recipe = read_recipe(lora_with(tmp_path, ss_datasets=datasets, ss_network_args='{"conv_dim": [1]}'))
    with pytest.raises(SettingsError) as caught:
        recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img"])
    assert "keep_tokens" in caught.value.problem and "{" not in caught.value.problem


@pytest.mark.parametrize(("name", "taken"), [("my style_2", True), ("a:b", False), ("..", False), ("x\ny", False)])
def test_a_loras_name_is_taken_where_a_run_can_have_it(tmp_path: Path, name: str, taken: bool) -> None:
    recipe = read_recipe(lora_with(tmp_path, ss_output_name=name))
    settings = recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img"])
    assert settings.name == (name if taken else "lora")
    assert ("ss_output_name" in dict(recipe.unmapped)) == (not taken)
