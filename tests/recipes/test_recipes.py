"""Recipes of other programs: every key is accounted for, and what comes out can be trained with."""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loraloom.cli.words import worded
from loraloom.errors import AdapterError, FileFormatError, MissingFileError, SettingsError
from loraloom.recipes.names import (
    NETWORK_REASONS,
    REASONS,
    SPELLINGS,
    TRAIN_NETWORK_ARGUMENTS,
    marked,
    reason_for,
)
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe, field_rows, listed
from loraloom.recipes.rows import by_key
from loraloom.recipes.scripts import ONLY_IN_SCRIPTS
from loraloom.recipes.sd_scripts import TABLE
from loraloom.settings import SettingRow, read_toml
from loraloom.training.record import RECORD, recorded_settings
from loraloom.training.settings import TrainSettings

FILES = Path(__file__).parents[1] / "data_files" / "recipes"


def mapped(recipe: Recipe) -> dict[str, tuple[str, object]]:
    return {entry.key: (entry.path, entry.value) for entry in recipe.mapped}


def written(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def settings_again(recipe: Recipe, tmp_path: Path, *overrides: str) -> TrainSettings:
    """Through the settings file, as a person would go."""
    path = written(tmp_path, "run.toml", recipe.to_toml())
    return TrainSettings.load(path, overrides)


def test_every_argument_of_train_network_is_mapped_or_has_a_reason() -> None:
    nowhere = [
        name
        for name in (SPELLINGS.get(name, name) for name in TRAIN_NETWORK_ARGUMENTS)
        if name not in marked() and name not in by_key(TABLE) and not reason_for(name)
    ]
    assert nowhere == []
    assert len(TRAIN_NETWORK_ARGUMENTS) == len(set(TRAIN_NETWORK_ARGUMENTS)) == 193


def test_the_tables_name_settings_that_exist() -> None:
    paths = set(field_rows())
    assert set(marked().values()) <= paths
    for row in TABLE:
        first = re.match(r"[a-z_]+\.[a-z_]+", row.remark)
        assert first is None or first.group() in paths, row.remark
    assert not [reason for reason in (REASONS | NETWORK_REASONS).values() if not reason.strip()]
    assert all(
        name in TRAIN_NETWORK_ARGUMENTS or name in marked() or name in REASONS
        for name in SPELLINGS.values()
        if name != "num_repeats"
    )


def test_a_whole_sd_scripts_file(tmp_path: Path) -> None:
    path = FILES / "sd-scripts.toml"
    recipe = read_recipe(path)
    keys = [key for section in tomllib.loads(path.read_text(encoding="utf-8")).values() for key in section]
    assert len(keys) >= 60
    told = {key.partition(":")[0] for key in recipe.keys}
    assert [key for key in keys if key not in told] == []
    assert recipe.unknown == [] and recipe.problems == []

    settings = settings_again(recipe, tmp_path)
    assert settings.adapter.rank == 32 and settings.adapter.alpha == 16 and settings.adapter.conv_rank == 8
    assert settings.optimizer.name == "adamw_8bit"
    assert (settings.optimizer.weight_decay, settings.optimizer.betas, settings.optimizer.eps) == (
        0.05,
        (0.9, 0.99),
        1e-7,
    )
    assert settings.optimizer.text_encoder_lr == 5e-5
    assert (settings.epochs, settings.steps) == (8, None), "epochs count before steps, as there"
    assert settings.lr_schedule.warmup_steps == 0.05 and settings.lr_schedule.cycles == 3
    assert settings.dataset.resolution == (512, 768)
    assert settings.dataset.upscale is False, "bucket_no_upscale is the other way round"
    assert settings.dataset.folder == FILES / "img", "relative to the recipe"
    assert settings.gradient_checkpointing == "full"
    assert settings.preview.sampler == "Euler a"
    assert settings.preview.prompts[0] == "foxstyle, a red fox in snow --n blurry --w 512 --h 768 --d 1"
    assert settings.preview.prompts[1].endswith("--s 24 --l 6.5")
    assert recipe.finished() == settings


def test_the_form_of_kohya_ss(tmp_path: Path) -> None:
    path = FILES / "kohya_ss-gui.json"
    recipe = read_recipe(path)
    keys = list(json.loads(path.read_text(encoding="utf-8")))
    assert len(keys) > 280, "as many as the form saves"
    told = {key.partition(":")[0] for key in recipe.keys}
    assert [key for key in keys if key not in told] == []
    assert recipe.unknown == [] and recipe.problems == []

    settings = settings_again(recipe, tmp_path)
    assert settings.epochs == 6
    assert settings.lr_schedule.warmup_steps == 0.1, "10 percent"
    assert settings.objective.multires_noise_iterations == 6
    assert settings.objective.noise_offset == 0, "of the other kind of noise"
    assert settings.adapter.conv_rank == 8 and settings.adapter.alpha == 16
    assert settings.dataset.captions.tag_dropout == 0.1, "from additional_parameters"
    assert settings.dataset.captions.secondary_separator == ";;;"
    assert settings.objective.timestep_sampling == "uniform", "the field is for FLUX"
    assert settings.preview.prompts[1] == "a fox, portrait"


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ({"max_train_steps": 900}, "steps", 900),
        ({"LoRA_type": "LyCORIS/LoHa"}, "adapter.kind", "loha"),
        ({"LoRA_type": "Standard"}, "adapter.conv_rank", None),
        ({"LoRA_type": "LyCORIS/LoCon", "LyCORIS_preset": "attn-mlp"}, "adapter.conv_rank", None),
        ({"LoRA_type": "LyCORIS/LoKr", "network_dim": 100000, "conv_dim": 100000}, "adapter.lokr_full_matrix", True),
        ({"lr_warmup_steps": 30}, "lr_schedule.warmup_steps", 30),
        ({"noise_offset_type": "Original"}, "objective.noise_offset", 0.05),
        ({"text_encoder_lr": 0}, "adapter.text_encoder", False),
        ({"text_encoder_lr": 0, "unet_lr": 0}, "adapter.text_encoder", None),
        ({"lr_scheduler_num_cycles": ""}, "lr_schedule.cycles", 6),
        ({"keep_tokens": "3"}, "dataset.captions.keep_tokens", 3),
        ({"gradient_accumulation_steps": 4.0}, "gradient_accumulation", 4),
    ],
)
def test_rules_of_the_form(tmp_path: Path, change: dict[str, object], path: str, value: object) -> None:
    data = json.loads((FILES / "kohya_ss-gui.json").read_text(encoding="utf-8")) | change
    recipe = read_recipe(written(tmp_path, "gui.json", json.dumps(data)))
    assert recipe.get(path) == value
    recipe.finished()


def test_another_family_is_refused(tmp_path: Path) -> None:
    data = json.loads((FILES / "kohya_ss-gui.json").read_text(encoding="utf-8")) | {"flux1_checkbox": True}
    with pytest.raises(SettingsError, match="flux1_checkbox is on"):
        read_recipe(written(tmp_path, "gui.json", json.dumps(data))).finished()


def test_the_guides_script(tmp_path: Path) -> None:
    recipe = read_recipe(FILES / "guide.ps1")
    text = (FILES / "guide.ps1").read_text(encoding="utf-8")
    variables = re.findall(r"^(\$\w+) =", text, re.MULTILINE)
    assert [name for name in variables if name not in recipe.keys] == []
    found = mapped(recipe)
    for key, path, value in (
        ("$train_batch_size", "batch_size", 1),
        ("$num_epochs", "epochs", 10),
        ("$max_token_length", "max_token_length", 75),
        ("$clip_skip", "clip_skip", 1),
        ("$learning_rate", "optimizer.lr", 1e-4),
        ("$unet_lr", "optimizer.unet_lr", 1e-4),
        ("$text_encoder_lr", "optimizer.text_encoder_lr", 5e-5),
        ("$scheduler", "lr_schedule.name", "cosine_with_restarts"),
        ("$save_precision", "saving.precision", "fp16"),
        ("$mixed_precision", "mixed_precision", "fp16"),
        ("$network_dim", "adapter.rank", 128),
        ("$lr_warmup_ratio", "lr_schedule.warmup_steps", 0.05),
        ("$ckpt", "checkpoint", r"X:\models\anime.safetensors"),
        ("$shuffle_caption", "dataset.captions.shuffle", True),
        ("use_8bit_adam", "optimizer.name", "adamw_8bit"),
    ):
        assert found[key] == (path, value), key
    assert recipe.get("adapter.alpha") == 128, "the guide is older than network_alpha: scale 1"
    assert {"--max_train_steps", "--seed", "--lr_warmup_steps", "$my_note"} <= {key for key, _ in recipe.unmapped}
    recipe.finished()
    settings_again(recipe, tmp_path)


def test_the_page_names_every_variable_of_the_guides_script() -> None:
    text = (FILES / "guide.ps1").read_text(encoding="utf-8")
    page = (Path(__file__).parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
    variables = {*re.findall(r"^ *(\$\w+) =", text, re.MULTILINE)} - {"$my_note", "$shown", "$arguments"}
    variables |= {f"${name}" for name in ONLY_IN_SCRIPTS}
    assert len(variables) > 35 and [name for name in sorted(variables) if f"`{name}`" not in page] == []


def test_the_guides_script_in_utf_16(tmp_path: Path) -> None:
    path = tmp_path / "guide.txt"
    path.write_bytes((FILES / "guide.ps1").read_text(encoding="utf-8").encode("utf-16"))
    assert read_recipe(path).settings == {**read_recipe(FILES / "guide.ps1").settings}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accelerate launch train_network.py --network_dim=8 --network_module=networks.lora", {"adapter.rank": 8}),
        (
            "python ./train_network.py --network_dim 8 --flip_aug --unet_lr 1e-3",
            {"dataset.flip": True, "optimizer.unet_lr": 1e-3},
        ),
        (
            "DIM=12\naccelerate launch \\\n  train_network.py \\\n # --seed=3 \\\n --network_dim=${DIM} \\\n --seed 4",
            {"seed": 4, "adapter.rank": 12},
        ),
        (
            '@echo off\nset DIM=9\naccelerate launch ^\n train_network.py --network_dim=%DIM% --output_dir="D:\\o\\"',
            {"adapter.rank": 9, "output": "D:\\o"},
        ),
        (
            '--optimizer_type Prodigy --optimizer_args "d_coef=2" "betas=0.9,0.99"',
            {"optimizer.args": {"d_coef": 2}, "optimizer.betas": [0.9, 0.99]},
        ),
        (
            "accelerate launch --mixed_precision=bf16 --num_processes 1 train_network.py --network_dim 4",
            {"mixed_precision": "bf16"},
        ),
        (
            '$r = 6\ntrain_network.py `\n --network_dim=$r --network_args "conv_dim=$r" "conv_alpha=1"',
            {"adapter.conv_rank": 6, "adapter.conv_alpha": 1},
        ),
        (
            "train_network.py --learning_rate=1 --min_snr_gamma=5 --v_parameterization",
            {"prediction": "v", "objective.min_snr_gamma": 5},
        ),
        (
            "train_network.py --network_train_unet_only --optimizer_type torch.optim.RAdam",
            {"adapter.text_encoder": False, "optimizer.name": "torch.optim.RAdam"},
        ),
        ("train_network.py --train_data_dir D:\\pictures\\cat", {"dataset.folder": "D:\\pictures\\cat"}),
        (
            "train_network.py --base_weights a.safetensors b.safetensors --base_weights_multiplier 0.5 1",
            {"adapter.base_loras": ["{here}/a.safetensors:0.5", "{here}/b.safetensors:1"]},
        ),
        ("train_network.py --save_every_n_steps 100 --save_last_n_steps 300", {"saving.keep_last": 3}),
    ],
)
def test_command_lines(tmp_path: Path, text: str, expected: dict[str, object]) -> None:
    recipe = read_recipe(written(tmp_path, "go", text + "\n"))
    for path, value in expected.items():
        if isinstance(value, list):
            value = [item.format(here=tmp_path) if isinstance(item, str) else item for item in value]
        assert recipe.get(path) == value
    assert recipe.problems == []


def test_what_is_not_said_is_what_sd_scripts_does(tmp_path: Path) -> None:
    recipe = read_recipe(
        written(tmp_path, "a.toml", 'train_data_dir = "img"\npretrained_model_name_or_path = "a.ckpt"\n')
    )
    settings = recipe.finished()
    assert (settings.adapter.rank, settings.adapter.alpha, settings.lr_schedule.name) == (4, 1.0, "constant")
    assert (settings.steps, settings.optimizer.lr, settings.saving.every_epochs) == (1600, 2e-6, 0)
    assert settings.dataset.buckets is False
    assert all(key.startswith("(") for key, _ in recipe.changed)


def test_a_dataset_file_with_two_datasets(tmp_path: Path) -> None:
    recipe = read_recipe(FILES / "dataset.toml")
    assert recipe.unknown == ["datasets[1].subsets[0].shuffel_caption"]
    assert "nearest name is shuffle_caption" in dict(recipe.unmapped)["datasets[1].subsets[0].shuffel_caption"]
    data = tomllib.loads((FILES / "dataset.toml").read_text(encoding="utf-8"))
    keys = [f"general.{key}" for key in data["general"]]
    for number, dataset in enumerate(data["datasets"]):
        keys += [f"datasets[{number}].{key}" for key in dataset if key != "subsets"]
        for index, subset in enumerate(dataset["subsets"]):
            keys += [f"datasets[{number}].subsets[{index}].{key}" for key in subset]
    assert [key for key in keys if key not in recipe.keys] == []

    settings = settings_again(recipe, tmp_path, "checkpoint=a.ckpt")
    fox, style, reg, large = settings.dataset.concepts
    assert (fox.repeats, fox.caption, fox.flip, fox.resolutions) == (10, "fox", True, (512,))
    assert (style.repeats, style.flip, style.captions) == (2, False, {"keep_tokens": 3, "dropout": 0.1})
    assert reg.is_regularization and reg.repeats == 1 and not style.is_regularization
    assert (large.folder, large.resolutions, large.masks) == (fox.folder, ((768, 1024),), "folder")
    assert settings.dataset.captions.shuffle and settings.dataset.captions.keep_tokens == 1
    assert settings.batch_size == 4
    assert any(key == "datasets[1].batch_size" for key, _ in recipe.changed)


def test_captions_in_one_file(tmp_path: Path) -> None:
    text = "train_data_dir = 'img'\nin_json = 'meta_cap.json'\nunet_lr = 1e-4\n"
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    assert Path(recipe.get("dataset.captions.table")) == tmp_path / "meta_cap.json"
    subsets = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nmetadata_file = 'a.json'\n"
    subsets += "[[datasets.subsets]]\nimage_dir = 'b'\n"
    settings = read_recipe(written(tmp_path, "d.toml", subsets)).finished(["checkpoint=x.ckpt"])
    one, other = settings.dataset.concepts
    assert (one.caption_table, other.caption_table) == (tmp_path / "a.json", None)


def test_a_run_that_names_a_dataset_file(tmp_path: Path) -> None:
    shutil.copy(FILES / "dataset.toml", tmp_path / "dataset.toml")
    text = 'dataset_config = "dataset.toml"\ntrain_data_dir = "other"\nkeep_tokens = 5\nnetwork_dim = 8\n'
    recipe = read_recipe(written(tmp_path, "run.toml", text + 'pretrained_model_name_or_path = "a.ckpt"\nseed = 3\n'))
    settings = recipe.finished()
    assert len(settings.dataset.concepts) == 4 and settings.seed == 3
    assert settings.dataset.captions.keep_tokens == 1, "the dataset file counts before the run's own arguments"
    assert {"train_data_dir", "keep_tokens"} <= {key for key, _ in recipe.changed}


def test_a_folder_twice_in_one_dataset(tmp_path: Path) -> None:
    subset = '[[datasets.subsets]]\nimage_dir="a"\nnum_repeats='
    text = f"[[datasets]]\n{subset}3\n{subset}9\n"
    recipe = read_recipe(written(tmp_path, "d.toml", text))
    assert [concept["repeats"] for concept in recipe.get("dataset.concepts")] == [3]
    assert "first counts" in dict(recipe.unmapped)["datasets[0].subsets[1].num_repeats"]


def test_a_list_of_five_concepts(tmp_path: Path) -> None:
    recipe = read_recipe(FILES / "concepts_list.json")
    settings = settings_again(recipe, tmp_path, "checkpoint=a.ckpt")
    assert [concept.folder.relative_to(FILES).as_posix() for concept in settings.dataset.concepts] == [
        "img/anna", "reg/woman", "img/dog", "reg/dog", "img/style", "img/car", "img/tree",
    ]  # fmt: skip
    anna, woman, dog, _, style, car, tree = settings.dataset.concepts
    assert anna.captions == {"trigger": "annaxyz woman"} and woman.is_regularization and not woman.captions
    assert dog.captions == {"sentence": "photo of sks dog"}
    assert style.captions == {"sentence": "inkstyle, [filewords]"}
    assert car.captions == {"trigger": "zwxcar"} and tree.captions == {}
    assert {concept.repeats for concept in settings.dataset.concepts} == {1}
    assert settings.preview.prompts == ("sks dog on a beach --n blurry --d 7 --l 8 --s 40",)
    assert recipe.unknown == ["concepts[4].colour"]


def test_a_path_with_single_backslashes(tmp_path: Path) -> None:
    path = written(tmp_path, "c.json", r'[{"instance_data_dir": "C:\train\new pictures", "instance_prompt": "x"}]')
    assert read_recipe(path).get("dataset.concepts")[0]["folder"] == r"C:\train\new pictures"
    path = written(tmp_path, "c.json", r'[{"instance_data_dir": "C:\\train\\new", "instance_prompt": "x"}]')
    assert read_recipe(path).get("dataset.concepts")[0]["folder"] == r"C:\train\new"


def test_captions_in_file_names(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1 a red cat.png").touch()
    path = written(tmp_path, "c.json", '[{"instance_data_dir": "cat", "instance_prompt": "[filewords]"}]')
    assert read_recipe(path).get("dataset.concepts")[0]["captions"] == {"source": "filename"}


def test_a_db_config_of_january_2023(tmp_path: Path) -> None:
    path = FILES / "db_config.json"
    recipe = read_recipe(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    told = {key.partition("[")[0] for key in recipe.keys}
    assert [key for key in data if key not in told] == []
    assert recipe.unknown == []
    settings = settings_again(recipe, tmp_path)
    assert (settings.epochs, settings.saving.every_epochs, settings.preview.every_epochs) == (100, 25, 5)
    assert (settings.optimizer.unet_lr, settings.optimizer.text_encoder_lr) == (2e-4, 1e-4)
    assert (settings.optimizer.text_encoder_stop, settings.optimizer.weight_decay) == (0.75, 0.02)
    assert settings.lr_schedule.name == "linear" and settings.lr_schedule.warmup_steps == 100
    assert (settings.adapter.rank, settings.adapter.alpha) == (8, None)
    assert settings.dataset.captions.shuffle and settings.dataset.captions.keep_tokens == 1
    assert settings.optimizer.name == "adamw_8bit"


def test_later_names_of_db_config(tmp_path: Path) -> None:
    data = {
        "db_model_name": "x", "use_lora": True, "lora_unet_rank": 12, "lora_txt_rank": 4, "optimizer": "8bit AdamW",
        "weight_decay": 0.3, "offset_noise": 0.1, "stop_text_encoder": 0, "num_train_epochs": 5,
        "prior_loss_scale": True, "prior_loss_weight_min": 0.2,
        "prior_loss_weight": 0.9, "lora_txt_learning_rate": 1e-4,
        "c1_instance_data_dir": "img", "c1_instance_prompt": "[filewords]",
        "not_cache_latents": True, "src": "a.ckpt",
    }  # fmt: skip
    recipe = read_recipe(written(tmp_path, "db_config.json", json.dumps(data)))
    settings = recipe.finished()
    assert (settings.adapter.rank, settings.adapter.text_encoder, settings.optimizer.weight_decay) == (12, False, 0.3)
    assert (settings.objective.noise_offset, settings.objective.prior_loss_min) == (0.1, 0.2)
    assert settings.dataset.concepts[0].folder == tmp_path / "img"
    assert [key for key in data if key not in recipe.keys] == []


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("a.json", '{"network_dim": 4,\n "seed": }', "line 2 column 10"),
        ("a.json", '[{"instance_data_dir": "cat\\q"}]', r"line 1 column \d+: Invalid \\escape"),
        ("a.toml", "network_dim = 4\nseed = = 3\n", "line 2 column"),
        ("a.json", '{"seed": 1, "seed": 2, "network_dim": 3}', "'seed' twice"),
        ("a.json", '{"learning_rate": NaN}', "NaN"),
        ("a.json", "[1, 2]", "is no|no recipe|not one of concepts|not valid|line 1"),
        ("a.json", "[" * 100_000, "nested|line"),
        ("a.toml", "a = " + "[" * 20_000, "nested|line|not valid"),
        ("a.toml", "   \n", "is empty"),
        ("a.json", '{"colour": 1}', "not a recipe that is known"),
        ("a.json", '{"training_method": "LORA", "model_type": "FLUX_DEV_1"}', "flux dev 1"),
        ("a.toml", '[dataset]\nfolder = "x"\n', "settings file of this program"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, text: str, place: str) -> None:
    with pytest.raises(FileFormatError, match=place):
        read_recipe(written(tmp_path, name, text))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_recipe(tmp_path / "nothing.toml")
    with pytest.raises(FileFormatError, match="is a folder"):
        read_recipe(tmp_path)
    (tmp_path / "b").write_bytes(b"network_dim = 4\nname = '\xff'\n")
    with pytest.raises(FileFormatError, match="line 2"):
        read_recipe(tmp_path / "b")
    with pytest.raises(FileFormatError, match="not a LoRA file"):
        read_recipe(FILES / "sd-scripts.toml", only_lora=True)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = """
network_dim = 0
clip_skip = 40
optimizer_type = "Nonsense"
lr_scheduler = "wobble"
loss_type = "l9"
network_module = "networks.dylora"
network_train_unet_only = true
network_train_text_encoder_only = true
"""
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    with pytest.raises(SettingsError) as caught:
        recipe.finished()
    said = "\n".join(caught.value.problems)
    for part in ("network_dim = 0", "clip_skip = 40", "'Nonsense'", "'wobble'", "loss_type", "dylora", "contradict"):
        assert part in said
    for path in ("checkpoint", "dataset.folder"):
        assert f"does not say {path}" in said
    fixes = [
        "adapter.rank=4",
        "clip_skip=1",
        "optimizer.name=adamw",
        "lr_schedule.name=linear",
        "objective.loss_type=l2",
    ]
    more = [
        "adapter.kind=lora",
        "adapter.unet=true",
        "adapter.text_encoder=true",
        "checkpoint=a.ckpt",
        "dataset.folder=img",
    ]
    assert recipe.finished([*fixes, *more]).clip_skip == 1


ADAFACTOR = {"relative_step": True, "scale_parameter": True}


@pytest.mark.parametrize(
    ("options", "expected", "schedule"),
    [
        ([], ADAFACTOR, "constant"),
        (["warmup_init=True", "relative_step=False"], {**ADAFACTOR, "warmup_init": True}, "constant"),
        (
            ["relative_step=False", "scale_parameter=False"],
            {"relative_step": False, "scale_parameter": False},
            "cosine",
        ),
    ],
)
def test_adafactor_finds_its_rate_unless_told_otherwise(
    tmp_path: Path, options: list[str], expected: dict[str, object], schedule: str
) -> None:
    text = f'optimizer_type = "Adafactor"\noptimizer_args = {json.dumps(options)}\nlr_scheduler = "cosine"\n'
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    assert (recipe.get("optimizer.args"), recipe.get("lr_schedule.name")) == (expected, schedule)
    data = json.loads((FILES / "kohya_ss-gui.json").read_text(encoding="utf-8"))
    data |= {"optimizer": "Adafactor", "optimizer_args": " ".join(options), "lr_scheduler": "cosine"}
    recipe = read_recipe(written(tmp_path, "gui.json", json.dumps(data)))
    assert (recipe.get("optimizer.args"), recipe.get("lr_schedule.name")) == (expected, schedule)
    told = [note for key, note in recipe.changed if "relative_step" in key]
    assert bool(told) == (schedule == "constant")


@pytest.mark.parametrize(
    ("name", "ours", "said"),
    [
        ("RAdam", "torch.optim.RAdam", False),
        ("nadam", "torch.optim.NAdam", False),
        ("Tiger", "pytorch_optimizer.Tiger", True),
        ("Apollo", "pytorch_optimizer.ApolloDQN", True),
        ("Paged Lion", "bitsandbytes.optim.PagedLion", True),
        ("AdamW8bit", "adamw_8bit", False),
        ("torch.optim.AdamW", "adamw", False),
        ("lion_pytorch.Lion", "lion", True),
        ("prodigyplus.ProdigyPlusScheduleFree", "prodigyplus.ProdigyPlusScheduleFree", False),
        ("bitsandbytes.optim.AdEMAMix8bit", "bitsandbytes.optim.AdEMAMix8bit", False),
    ],
)
def test_names_of_optimizers(tmp_path: Path, name: str, ours: str, said: bool) -> None:
    recipe = read_recipe(written(tmp_path, "a.toml", f'optimizer_type = "{name}"\n'))
    assert recipe.get("optimizer.name") == ours and recipe.problems == []
    assert any(key == "optimizer_type" for key, _ in recipe.changed) == said


FOREIGN = "stranger_of_the_folder"
"""A module that lies where modules are looked for, and that no file may choose."""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module, which fails the test that imports it."""
    written(tmp_path, f"{FOREIGN}.py", "raise SystemError('a data file chose this module')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    assert FOREIGN not in sys.modules


def lora_with(tmp_path: Path, **metadata: str) -> Path:
    import torch

    from loraloom.formats.tensors import write_tensors

    keys = {"ss_sd_model_name": "a.ckpt", "ss_learning_rate": "3e-4", **metadata}
    write_tensors(tmp_path / "l.safetensors", {"lora_unet_x.alpha": torch.ones(1)}, metadata=keys)
    return tmp_path / "l.safetensors"


def one_of_each_dialect(tmp_path: Path, optimizer: str, schedule: str) -> Iterator[Path]:
    """A recipe of every program that is read, each of which names two classes."""
    toml = f'network_dim = 3\noptimizer_type = "{optimizer}"\noptimizer_args = ["shadow=0.3"]\n'
    yield written(tmp_path, "a.toml", f'{toml}lr_scheduler_type = "{schedule}"\nlr_scheduler_args = ["shade=0.2"]\n')
    command = f"train_network.py --network_dim=3 --optimizer_type='{optimizer}' --lr_scheduler={schedule}"
    yield written(tmp_path, "a.sh", f"accelerate launch {command} --optimizer_args shadow=0.3\n")
    gui = json.loads((FILES / "kohya_ss-gui.json").read_text(encoding="utf-8"))
    gui |= {"optimizer": optimizer, "lr_scheduler": schedule, "optimizer_args": "shadow=0.3"}
    yield written(tmp_path, "gui.json", json.dumps(gui))
    extension = json.loads((FILES / "db_config.json").read_text(encoding="utf-8"))
    yield written(tmp_path, "db.json", json.dumps(extension | {"optimizer": optimizer, "lr_scheduler": schedule}))
    onetrainer = {"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "__version": 10}
    onetrainer |= {"learning_rate_scheduler": "CUSTOM", "custom_learning_rate_scheduler": schedule}
    onetrainer |= {"scheduler_params": [{"key": "shade", "value": "0.2"}]}
    yield written(tmp_path, "one.json", json.dumps(onetrainer))
    easy = f'[optimizer_args.args]\noptimizer_type = "{optimizer}"\nlr_scheduler_type = "{schedule}"\n'
    easy += '[optimizer_args.args.optimizer_args]\nshadow = "0.3"\n[[subsets]]\nimage_dir = "x"\n'
    yield written(tmp_path, "easy.toml", easy)
    command = f"train_dreambooth_lora_sdxl.py --optimizer='{optimizer}' --lr_scheduler={schedule}"
    yield written(tmp_path, "diffusers.sh", f"accelerate launch {command}\n")
    yield lora_with(tmp_path, ss_optimizer=f"{optimizer}(shadow=0.3)", ss_lr_scheduler=schedule)
    record = {"optimizer.args": {"shadow": 0.3}, "optimizer.name": optimizer}
    record |= {"lr_schedule.args": {"shade": 0.2}, "lr_schedule.name": schedule}
    yield lora_with(tmp_path, **{RECORD: json.dumps(record)})


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        (f"{FOREIGN}.Thing", f"{FOREIGN}.Schedule"),
        (f"{FOREIGN}.AdamW", f"{FOREIGN}.cosine"),
        (f" {FOREIGN}.torch.optim.AdamW", f"{FOREIGN}.lr_scheduler.StepLR"),
        (f"torch.optim.{FOREIGN}.Thing", f"torch.optim.lr_scheduler.{FOREIGN}.Thing"),
    ],
)
def test_no_file_chooses_a_module(tmp_path: Path, trap: None, optimizer: str, schedule: str) -> None:
    for path in one_of_each_dialect(tmp_path, optimizer, schedule):
        recipe = read_recipe(path)
        for text in (recipe.to_toml(), str(recipe.settings)):
            assert FOREIGN not in "\n".join(line for line in text.splitlines() if not line.startswith("#")), path
        given = ["checkpoint=a.ckpt", *(f"{path}=img" for path in recipe.missing() if path != "checkpoint")]
        settings = recipe.finished(given)
        assert (settings.optimizer.name, settings.optimizer.args, settings.lr_schedule.args) == ("adamw", {}, {})
        told = [reason for _, reason in recipe.unmapped if "does not choose what code is run" in reason]
        assert len(told) == (1 if path.name == "one.json" else 2), path
        assert any(f"give lr_schedule.name={schedule} yourself" in reason for reason in told), path
        own = recipe.finished([*given, f"optimizer.name={optimizer.strip()}"])
        assert own.optimizer.name == optimizer.strip(), "a person may"


def test_what_the_registry_is_made_of_may_be_named(tmp_path: Path) -> None:
    from loraloom.training.optimizer_names import OPTIMIZERS

    mark = field_rows()["optimizer.name"].class_path
    assert mark is not None
    modules = {OPTIMIZERS.load(name).path.rpartition(".")[0] for name in OPTIMIZERS}
    assert modules <= set(mark.libraries)
    recipe = read_recipe(lora_with(tmp_path, ss_optimizer="torch.optim.RAdam(betas=(0.8, 0.95))"))
    assert (recipe.get("optimizer.name"), recipe.get("optimizer.betas")) == ("torch.optim.RAdam", [0.8, 0.95])
    for name in ("torch.hub.load", "torch.optim.", "torch.optim.lr_scheduler.StepLR", "os.system", "torch.optim.a b"):
        assert not mark.data_may_name(name), name


def test_a_lora_names_no_place_on_this_machine(tmp_path: Path) -> None:
    private = written(tmp_path, "private.toml", "network_dim = 99\n")
    keys = ("output_dir", "config_file", "dataset_config", "sample_prompts", "train_data_dir", "network_weights")
    recipe = read_recipe(lora_with(tmp_path, **{f"ss_{key}": str(private) for key in keys}))
    assert recipe.settings == {"optimizer": {"lr": 3e-4}}
    assert {f"ss_{key}" for key in keys} <= set(dict(recipe.unmapped))


def test_an_optimizer_that_cannot_be_used_is_refused_with_a_remedy(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, "a.toml", 'optimizer_type = "Sophia"\n'))
    given = ["checkpoint=a.ckpt", "dataset.folder=img"]
    with pytest.raises(SettingsError, match=r"second derivatives.*optimizer.name=lion"):
        recipe.finished(given)
    assert recipe.finished([*given, "optimizer.name=lion"]).optimizer.name == "lion"


def test_a_file_of_prompts_is_read_at_once(tmp_path: Path) -> None:
    from loraloom.training.previews import preview_prompts

    lines = "# mine\n\n a fox --n bad --w 500 --ss k_dpm_2_a --g 3.5\n"
    lines += "a -- dog--x --cn C:\\a.png --am 0.5 --ss dpmsingle\n"
    written(tmp_path, "prompts.txt", lines)
    text = 'sample_prompts = "prompts.txt"\nsample_sampler = "dpmsingle"\n'
    text += 'pretrained_model_name_or_path = "a.ckpt"\ntrain_data_dir = "img"\n'
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    prompts = preview_prompts(recipe.finished().preview)
    assert [(prompt.text, prompt.negative, prompt.width, prompt.sampler) for prompt in prompts] == [
        ("a fox", "bad", 496, "DPM2 a"),
        ("a -- dog--x", None, None, "DPM++ 2S a"),
    ]
    left_out = [key for key, note in recipe.changed if "no such option" in note]
    assert left_out == ["sample_prompts: --g 3.5", "sample_prompts: --cn C:\\a.png", "sample_prompts: --am 0.5"]
    assert recipe.get("preview.sampler") == "DPM++ 2S a"

    (tmp_path / "prompts.txt").unlink()
    recipe = read_recipe(tmp_path / "a.toml")
    assert recipe.get("preview.file") == str(tmp_path / "prompts.txt"), "of another machine"


def test_fp8_weights_become_int8_unless_they_are_trained(tmp_path: Path) -> None:
    for name in ("fp8_base", "fp8_base_unet"):
        recipe = read_recipe(written(tmp_path, "a.toml", f"unet_lr = 1e-4\n{name} = true\n"))
        assert recipe.get("quantize") == "int8"
        assert [key for key, note in recipe.changed if "int8" in note] == [name]
    off = read_recipe(written(tmp_path, "b.toml", "unet_lr = 1e-4\nfp8_base = false\n"))
    assert off.get("quantize") is None and "fp8_base" in off.idle
    whole = read_recipe(written(tmp_path, "c.sh", "accelerate launch fine_tune.py --learning_rate 1e-5 --fp8_base\n"))
    assert whole.get("quantize") is None
    assert [reason for key, reason in whole.unmapped if "fp8_base" in key] == [
        "weights that are trained themselves cannot be kept in 8 bits"
    ]


def test_a_name_on_the_hub_is_no_checkpoint(tmp_path: Path) -> None:
    text = 'pretrained_model_name_or_path = "runwayml/stable-diffusion-v1-5"\ntrain_data_dir = "img"\n'
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    assert recipe.missing() == ["checkpoint"]
    with pytest.raises(SettingsError, match="runwayml/stable-diffusion-v1-5"):
        recipe.finished()
    assert recipe.finished(["checkpoint=a.ckpt"]).checkpoint == Path("a.ckpt")


def test_an_unknown_key_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, "a.toml", "netwrok_dim = 3\nnetwork_alpha = 2\n"))
    assert recipe.unmapped == [("netwrok_dim", "not known; the nearest name is network_dim")]


def test_the_settings_file_says_where_things_came_from() -> None:
    text = read_recipe(FILES / "sd-scripts.toml").to_toml()
    assert "rank = 32 # network_dim" in text
    assert "#   max_train_steps: left out" in text and "#   xformers: not needed" in text


MakeSettings = Callable[..., TrainSettings]


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


@pytest.mark.parametrize("value", [None, True, -1, 3.7, "x", "\0", ["a"], {"a": 1}, [{}], 10**40, "x" * 400])
@pytest.mark.parametrize(
    ("file", "keys"),
    [
        (
            "kohya_ss-gui.json",
            ["epoch", "lr_warmup", "LoRA_type", "conv_dim", "sample_prompts", "additional_parameters"],
        ),
        ("db_config.json", ["stop_text_encoder", "concepts_list", "src", "sanity_prompt", "optimizer", "lora_rank"]),
    ],
)
def test_odd_values_are_problems_and_lose_no_key(tmp_path: Path, file: str, keys: list[str], value: object) -> None:
    data = json.loads((FILES / file).read_text(encoding="utf-8"))
    for key in keys:
        recipe = read_recipe(written(tmp_path, "odd.json", json.dumps(data | {key: value})))
        recipe.to_toml()
        if not recipe.problems:
            told = {name.partition(":")[0].partition("[")[0] for name in recipe.keys}
            assert [name for name in data if name not in told] == []


def test_a_lora_without_metadata(tmp_path: Path) -> None:
    import torch

    from loraloom.formats.tensors import write_tensors

    write_tensors(tmp_path / "l.safetensors", {"lora_unet_x.alpha": torch.ones(1)})
    with pytest.raises(AdapterError, match="carries no metadata"):
        read_recipe(tmp_path / "l.safetensors")


def test_the_template_is_read_back_by_the_own_reader(tmp_path: Path) -> None:
    path = written(tmp_path, "run.toml", read_recipe(FILES / "concepts_list.json").to_toml())
    assert len(read_toml(path)["dataset"]["concepts"]) == 7


def test_what_one_dataset_alone_says_is_told_to_hold_for_all(tmp_path: Path) -> None:
    subset = '[[datasets.subsets]]\nimage_dir="{}"\n'
    text = "[[datasets]]\nbucket_no_upscale = true\nvalidation_split = 0.1\nresolution = 512\n" + subset.format("a")
    text += "[[datasets]]\nresolution = 512\n" + subset.format("b")
    recipe = read_recipe(written(tmp_path, "d.toml", text))
    told = dict(recipe.changed)
    for name in ("bucket_no_upscale", "validation_split"):
        assert "whole run here, so for datasets[1] too" in told[f"datasets[0].{name}"]
        assert recipe.keys.count(f"datasets[0].{name}") == 1
    assert (recipe.get("dataset.upscale"), recipe.get("validation.share")) == (False, 0.1)

    recipe = read_recipe(written(tmp_path, "d.toml", "[general]\nvalidation_split = 0.1\n" + text))
    assert "datasets[0].validation_split" not in dict(recipe.changed), "both have it"


def test_a_dataset_file_without_enable_bucket_has_no_buckets(tmp_path: Path) -> None:
    text = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "a"\n'
    written(tmp_path, "d.toml", text)
    run = 'dataset_config = "d.toml"\npretrained_model_name_or_path = "a.ckpt"\n'
    for recipe in (read_recipe(tmp_path / "d.toml"), read_recipe(written(tmp_path, "run.toml", run))):
        assert recipe.get("dataset.buckets") is False
        assert "as in sd-scripts" in dict(recipe.changed)["(enable_bucket)"]
    recipe = read_recipe(written(tmp_path, "run.toml", run + "enable_bucket = true\n"))
    assert recipe.get("dataset.buckets") is True, "the run's own arguments count where the file is silent"
    recipe = read_recipe(written(tmp_path, "d.toml", f"[general]\nenable_bucket = true\n{text}"))
    assert recipe.get("dataset.buckets") is True


def test_dreambooth_trains_the_whole_model(tmp_path: Path) -> None:
    data = json.loads((FILES / "db_config.json").read_text(encoding="utf-8"))
    data |= {"use_lora": False, "half_model": True, "use_ema": True, "txt_learning_rate": 1e-6}
    recipe = read_recipe(written(tmp_path, "db_config.json", json.dumps(data)))
    settings = recipe.finished()
    assert (settings.method, settings.optimizer.lr, settings.optimizer.text_encoder_lr) == ("full", 2e-6, 1e-6)
    assert (settings.saving.precision, settings.saving.format, settings.ema.enabled) == ("fp16", "ckpt", True)
    assert settings.optimizer.unet_lr is None and recipe.get("adapter.rank") is None
    assert not [text for _, text in [*recipe.changed, *recipe.unmapped] if "a LoRA is trained" in text]
    told = {key.partition("[")[0] for key in recipe.keys}
    assert [key for key in data if key not in told] == []

    data |= {"use_lora": True, "lora_model_name": "old.pt", "weight_decay": 0.3}
    recipe = read_recipe(written(tmp_path, "db_config.json", json.dumps(data)))
    assert recipe.get("adapter.start_from") == str(tmp_path / "old.pt") and recipe.get("method") is None
    assert recipe.get("optimizer.weight_decay") == 0.3 and recipe.unknown == []
    assert "later name" in dict(recipe.changed)["adamw_weight_decay"]


def test_the_form_trains_the_whole_model(tmp_path: Path) -> None:
    data = json.loads((FILES / "kohya_ss-gui.json").read_text(encoding="utf-8"))
    del data["LoRA_type"]
    data |= {"learning_rate": 1e-6, "text_encoder_lr": 0, "unet_lr": 0, "learning_rate_te": 5e-7}
    data |= {"learning_rate_te1": 1e-7, "learning_rate_te2": 2e-7, "stop_text_encoder_training": 40}
    recipe = read_recipe(written(tmp_path, "gui.json", json.dumps(data)))
    assert (recipe.get("method"), recipe.get("optimizer.text_encoder_lr")) == ("full", 5e-7)
    assert recipe.get("optimizer.text_encoder_stop") == 0.4 and recipe.problems == []
    assert recipe.get("adapter.rank") is None
    recipe = read_recipe(written(tmp_path, "gui.json", json.dumps(data | {"sdxl": True})))
    assert recipe.get("optimizer.text_encoder_lr") == [1e-7, 2e-7]
    with pytest.raises(SettingsError, match="an embedding"):
        read_recipe(written(tmp_path, "gui.json", json.dumps(data | {"token_string": "cat"}))).finished()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accelerate launch train_db.py --learning_rate 1e-6", {"method": "full", "adapter.text_encoder": None}),
        ("python sdxl_train.py --learning_rate 1e-6", {"method": "full", "adapter.text_encoder": False}),
        (
            "python sdxl_train.py --train_text_encoder --learning_rate_te1 1e-6 --learning_rate_te2 2e-6",
            {"adapter.text_encoder": True, "optimizer.text_encoder_lr": [1e-6, 2e-6]},
        ),
        ("# not train_db.py\npython train_network.py --network_dim 4", {"method": None, "adapter.rank": 4}),
        ("python train_network.py --learning_rate_te 1e-6 --network_dim 4", {"method": None, "adapter.rank": 4}),
    ],
)
def test_scripts_for_whole_models(tmp_path: Path, text: str, expected: dict[str, object]) -> None:
    recipe = read_recipe(written(tmp_path, "go", text + "\n"))
    assert {path: recipe.get(path) for path in expected} == expected and recipe.problems == []


def test_a_file_for_whole_models(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, "a.toml", "learning_rate = 1e-6\nlearning_rate_te = 0\n"))
    assert (recipe.get("method"), recipe.get("adapter.text_encoder")) == ("full", False)


def test_class_images_that_the_extension_kept_with_the_model(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    concept = {
        "instance_data_dir": "img", "class_data_dir": "",
        "instance_prompt": "[filewords]", "class_prompt": "[filewords]",
        "instance_token": "annaxyz", "class_token": "woman", "num_class_images_per": 2, "class_infer_steps": 30,
    }  # fmt: skip
    (tmp_path / "img").mkdir()
    for number in range(3):
        (tmp_path / "img" / f"{number}.png").touch()
    data = {
        "src": "a.ckpt",
        "use_lora": True,
        "num_train_epochs": 5,
        "model_dir": r"C:\models\anna",
        "concepts_list": [concept],
    }
    recipe = read_recipe(written(tmp_path, "db_config.json", json.dumps(data)))
    note = dict(recipe.changed)["concepts_list[0].class_data_dir"]
    command = worded(note).partition("import again: ")[2]
    assert command == (
        f'loraloom dataset class-images {tmp_path}/a.ckpt {tmp_path}/img "[filewords]" '
        f"--output {tmp_path}/classifiers_0 --trigger annaxyz --count 6 steps=30"
    )
    from loraloom.cli.main import app

    refused = CliRunner().invoke(app, shlex.split(command)[1:])
    assert "No such option" not in refused.output and "Usage:" not in refused.output, "the command can be typed"
    assert len(recipe.get("dataset.concepts")) == 1

    (tmp_path / "classifiers_0").mkdir()
    recipe = read_recipe(tmp_path / "db_config.json")
    assert recipe.get("dataset.concepts")[1] == {
        "folder": str(tmp_path / "classifiers_0"), "repeats": 1, "is_regularization": True,
    }  # fmt: skip
    assert recipe.keys.count("concepts_list[0].class_data_dir") == 1

    old = {f"c1_{key}": value for key, value in concept.items()}
    recipe = read_recipe(written(tmp_path, "db_config.json", json.dumps({**data, "concepts_list": [], **old})))
    assert recipe.get("dataset.concepts")[1]["is_regularization"]


def test_later_keys_of_db_config(tmp_path: Path) -> None:
    data = {
        "src": "a.ckpt", "use_lora": True, "num_train_epochs": 5, "optimizer": "Prodigy", "tf32_enable": True,
        "full_mixed_precision": True, "sanity_prompt": "a fox", "sanity_negative_prompt": "bad", "sanity_seed": 3,
        "adaptation_beta1": 0.9, "adaptation_beta2": 0.99, "adaptation_d0": 1e-6, "adaptation_eps": 1e-7,
        "lora_txt_rank": 8,
    }  # fmt: skip
    recipe = read_recipe(written(tmp_path, "db_config.json", json.dumps(data)))
    assert recipe.unknown == [] and [key for key in data if key not in recipe.keys] == []
    assert recipe.get("preview.prompts") == ["a fox --n bad --d 3"]
    assert (recipe.get("optimizer.betas"), recipe.get("optimizer.eps")) == ([0.9, 0.99], 1e-7)
    assert recipe.get("optimizer.args") == {"d0": 1e-6}
    assert "adapter.rank" in dict(recipe.unmapped)["lora_txt_rank"]
    recipe = read_recipe(written(tmp_path, "db_config.json", json.dumps(data | {"optimizer": "Torch AdamW"})))
    assert recipe.get("optimizer.betas") is None and recipe.unknown == []


@pytest.mark.parametrize(
    ("regular", "normal", "kept", "said"),
    [
        (True, False, True, "for all regularization images"),
        (True, True, True, "preserve_class"),
        (False, True, None, ""),
    ],
)
def test_the_checkpoints_answer_as_what_is_to_be_learned(
    tmp_path: Path, regular: bool, normal: bool, kept: bool | None, said: str
) -> None:
    mark = "custom_attributes = { diff_output_preservation = true }\n"
    text = f'[[datasets]]\n{mark if normal and regular else ""}[[datasets.subsets]]\nimage_dir = "a"\n'
    text += mark if normal and not regular else ""
    text += '[[datasets.subsets]]\nimage_dir = "b"\nis_reg = true\n' + (mark if regular and not normal else "")
    recipe = read_recipe(written(tmp_path, "d.toml", text))
    assert recipe.get("objective.preserve_regularization") is kept and recipe.problems == []
    (told,) = [text for key, text in [*recipe.changed, *recipe.unmapped] if key.endswith("custom_attributes")]
    assert said in told if kept else "objective.preserve_class" in told


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ('network_module = "networks.dylora"', "adapter.kind=lora trains a plain LoRA"),
        ('network_module = "networks.oft"', "adapter.kind=lokr or dora"),
        ('network_module = "lycoris.kohya"\nnetwork_args = ["algo=boft"]', "adapter.kind=lokr or dora"),
    ],
)
def test_kinds_that_are_not_offered_come_with_a_remedy(tmp_path: Path, module: str, remedy: str) -> None:
    recipe = read_recipe(written(tmp_path, "a.toml", f"{module}\nnetwork_dim = 4\n"))
    with pytest.raises(SettingsError, match=remedy):
        recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img"])
    assert recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img", "adapter.kind=lora"]).adapter.rank == 4


def test_both_weights_of_timesteps_are_carried_over(tmp_path: Path) -> None:
    """sd-scripts multiplies them; so does the objective here (tests/training/test_step.py has the numbers)."""
    text = "network_dim = 3\nmin_snr_gamma = 7\ndebiased_estimation_loss = true\n"
    settings = read_recipe(written(tmp_path, "a.toml", text)).finished(["checkpoint=a.ckpt", "dataset.folder=img"])
    assert (settings.objective.min_snr_gamma, settings.objective.debiased_estimation) == (7.0, True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "network_dim = {huge}\n"),
        ("a.toml", "save_last_n_steps = {huge}\nsave_every_n_steps = 3\nnetwork_dim = 3\n"),
        ("a.toml", 'max_train_steps = "{huge}.0"\nnetwork_dim = 3\n'),
        ("a.toml", 'network_dim = 3\nsample_prompts = "a fox --w {huge} --d {huge}"\n'),
        ("a.sh", "train_network.py --network_dim={huge} --unet_lr={huge} --lr_warmup_steps=1e999\n"),
        ("a.json", '{{"LoRA_type": "Standard", "max_resolution": "512", "epoch": {huge}, "lr_warmup": {huge}}}'),
        ("a.json", '{{"num_train_epochs": {huge}, "use_lora": true, "stop_text_encoder": {huge}}}'),
        ("a.json", '[{{"instance_data_dir": "", "num_class_images_per": {huge}}}]'),
        ("a.json", '{{"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "resolution": "{huge}"}}'),
        ("a.json", '{{"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "epochs": {huge}}}'),
        ("a.toml", "[[datasets]]\nresolution = {huge}\n[[datasets.subsets]]\nimage_dir = 'x'\nnum_repeats = {huge}\n"),
    ],
)
@pytest.mark.parametrize("digits", [25, 400, 5000])
def test_numbers_that_nobody_means(tmp_path: Path, name: str, text: str, digits: int) -> None:
    path = written(tmp_path, name, text.format(huge="7" * digits))
    with pytest.raises((FileFormatError, SettingsError)) as caught:
        read_recipe(path).finished(["checkpoint=a.ckpt"])
    assert "7" * 100 not in caught.value.problem, "a number that long says nothing"


def test_class_images_in_a_number_that_nobody_means(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    text = f'[{{"instance_data_dir": "x", "num_class_images_per": "{"7" * 400}"}}]'
    recipe = read_recipe(written(tmp_path, "a.json", text))
    assert not any("class-images" in worded(note) for _, note in recipe.changed)


def test_no_refusal_prints_a_table(tmp_path: Path) -> None:
    text = "network_dim = {a = 1}\nclip_skip = [{b = 2}]\nmin_timestep = 7\nmax_timestep = 7\nseed = [3, 4]\n"
    recipe = read_recipe(written(tmp_path, "a.toml", text + 'optimizer_type = "AdamW"\n'))
    with pytest.raises(SettingsError) as caught:
        recipe.finished()
    assert "{" not in caught.value.problem and "[" not in caught.value.problem
    assert "seed = 3, 4 does not fit seed" in caught.value.problem
    assert "min_timestep=7 must be below max_timestep=7" in caught.value.problem


def gui_with(tmp_path: Path, **more: object) -> Recipe:
    data = json.loads((FILES / "kohya_ss-gui.json").read_text(encoding="utf-8"))
    return read_recipe(written(tmp_path, "gui.json", json.dumps(data | more)))


@pytest.mark.parametrize("written_as", ["--network_args dora_wd=True", '--network_args="dora_wd=True" factor=8'])
@pytest.mark.parametrize("kind", ["LyCORIS/LoCon", "LyCORIS/LoHa"])
def test_network_args_among_the_additional_parameters(tmp_path: Path, written_as: str, kind: str) -> None:
    """sd-scripts takes the last --network_args alone, so the fields of the form have no effect there."""
    form = {"LoRA_type": kind, "conv_dim": 5, "conv_alpha": 3, "rank_dropout": 0.3, "network_dim": 12}
    recipe = gui_with(tmp_path, **form, additional_parameters=written_as)
    changed = dict(recipe.changed)
    for key in ("conv_dim", "conv_alpha", "rank_dropout"):
        assert "additional_parameters gives network_args" in changed[key]
    assert "" not in recipe.keys
    assert recipe.get("adapter.conv_rank") == 12, "LyCORIS' own default, the rank of the other layers"
    assert ("adapter.kind=loha is what the form says" in str(recipe.changed)) == (kind == "LyCORIS/LoHa")
    data = json.loads((tmp_path / "gui.json").read_text(encoding="utf-8"))
    told = {key.partition(":")[0] for key in recipe.keys} | {path for path, _ in recipe.problems}
    assert [key for key in data if key not in told] == []


@pytest.mark.parametrize(
    ("more", "path", "value"),
    [
        ("--optimizer_args weight_decay=0.3 betas=0.7,0.8", "optimizer.betas", [0.7, 0.8]),
        ("--lr_scheduler_type=StepLR --lr_scheduler_args step_size=30 gamma=0.3", "lr_schedule.args.gamma", 0.3),
        (
            r'--network_weights "C:\my loras\a b.safetensors" --seed 7',
            "adapter.start_from",
            r"C:\my loras\a b.safetensors",
        ),
        ("--network_train_unet_only --max_timestep 900", "objective.max_timestep", 900),
    ],
)
def test_other_arguments_among_the_additional_parameters(tmp_path: Path, more: str, path: str, value: object) -> None:
    recipe = gui_with(tmp_path, additional_parameters=more, optimizer="AdamW", optimizer_args="eps=1e-6")
    assert recipe.get(path) == value
    assert "" not in recipe.keys


def test_a_form_whose_folder_is_empty_keeps_its_other_keys(tmp_path: Path) -> None:
    text = """
[general]
shuffle_caption = true
[[datasets]]
resolution = 640
batch_size = 3
[[datasets.subsets]]
image_dir = ''
num_repeats = 7
keep_tokens = 2
flip_aug = true
class_tokens = "fox"
"""
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    assert recipe.missing() == ["checkpoint", "dataset.folder"] and recipe.problems == []
    settings = recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img"])
    dataset = settings.dataset
    assert (dataset.repeats, dataset.flip, dataset.resolution, settings.batch_size) == (7, True, 640, 3)
    assert (dataset.captions.keep_tokens, dataset.captions.shuffle) == (2, True)
    assert "datasets[0].subsets[0].class_tokens" in dict(recipe.unmapped)


def test_subsets_without_a_folder_beside_others(tmp_path: Path) -> None:
    text = """
[[datasets]]
batch_size = 3
[[datasets.subsets]]
image_dir = 'cat'
[[datasets.subsets]]
num_repeats = 7
[[datasets]]
resolution = 640
[[datasets.subsets]]
image_dir = ''
flip_aug = true
[[datasets.subsets]]
keep_tokens = 2
[[datasets]]
bucket_reso_steps = 128
"""
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    assert [concept["folder"] for concept in recipe.get("dataset.concepts")] == [str(tmp_path / "cat")]
    left = dict(recipe.unmapped)
    for key in ("[0].subsets[1].num_repeats", "[1].subsets[0].flip_aug", "[1].subsets[1].keep_tokens"):
        assert "names no image_dir" in left[f"datasets{key}"]
    assert "no subset" in left["datasets[1].resolution"] and "no subset" in left["datasets[2].bucket_reso_steps"]
    assert recipe.finished(["checkpoint=a.ckpt"]).batch_size == 3


@pytest.mark.parametrize("value", [{"a": 1}, [{"b": 2}], 3.7])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "network_dim = 3\noptimizer_type = {}\n"),
        ("a.toml", "network_dim = 3\nlr_scheduler = {}\n"),
        ("a.toml", "network_dim = 3\nnetwork_module = {}\n"),
        ("a.toml", "[[subsets]]\nimage_dir = 'x'\n[general_args]\nargs = {}\n"),
        ("gui.json", '{{"LoRA_type": {}, "max_resolution": "512", "epoch": 3}}'),
        ("db.json", '{{"use_lora": true, "num_train_epochs": 3, "lr_scheduler": {}}}'),
        ("one.json", '{{"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "train_dtype": {}}}'),
        (
            "one.json",
            '{{"training_method": "LORA", "model_type": "STABLE_DIFFUSION_15", "output_model_destination": {}}}',
        ),
    ],
)
def test_tables_where_a_word_belongs(tmp_path: Path, name: str, text: str, value: Any) -> None:
    plain = json.dumps(value)
    recipe = read_recipe(written(tmp_path, name, text.format(plain.replace(":", " =") if "toml" in name else plain)))
    said = " ".join(problem for _, problem in recipe.problems)
    if name == "a.toml" and isinstance(value, dict):  # a table is a section there
        assert [key.rpartition(".")[2] for key in recipe.unknown] == ["a"]
    else:
        assert said and "{" not in said and "[" not in said.replace("datasets[0]", "").replace("subsets[0]", "")


@pytest.mark.parametrize("data", [3, "x", [3], {"prompt": 3}, {"prompt": {"subset": 0.3}}, {"prompt": {"subset": [3]}}])
def test_files_of_prompts_in_odd_forms(tmp_path: Path, data: Any) -> None:
    written(tmp_path, "p.json", json.dumps(data) if not isinstance(data, (int, str)) else f"[{json.dumps(data)}, 4]")
    recipe = read_recipe(written(tmp_path, "a.toml", 'network_dim = 3\nsample_prompts = "p.json"\n'))
    assert any("are not prompts" in text for _, text in recipe.problems)


def test_why_the_pictures_are_still_needed_is_said(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, "a.toml", "network_dim = 3\ndataset_config = 'absent.toml'\n"))
    assert recipe.missing() == ["checkpoint", "dataset.folder"]
    assert "absent.toml: there is no such file" in recipe.why_missing("dataset.folder")
    assert "# Required, not in that file: dataset.folder (dataset_config: " in recipe.to_toml()


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


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.sh", "train_network.py --network_dim --max_train_epochs --learning_rate 3e-4\n"),
        ("a.toml", "network_dim = true\nmax_train_epochs = false\n"),
        ("a.json", '{"LoRA_type": "Standard", "network_dim": true, "epoch": true}'),
    ],
)
def test_a_number_that_is_missing_is_not_one(tmp_path: Path, name: str, text: str) -> None:
    """Python counts true as 1: a rank and a run of one epoch that nobody wrote."""
    recipe = read_recipe(written(tmp_path, name, text))
    assert recipe.get("adapter.rank") is None and recipe.get("epochs") is None
    with pytest.raises(SettingsError, match=r"network_dim = true does not fit adapter\.rank: a number is needed"):
        recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img"])


def test_a_number_of_a_subset_is_not_one_either(tmp_path: Path) -> None:
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = true\nkeep_tokens = true\n"
    text += "[[datasets]]\nresolution = 3\n[[datasets.subsets]]\nimage_dir = 'b'\nresolution = 5\n"
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    with pytest.raises(SettingsError) as caught:
        recipe.finished(["checkpoint=a.ckpt"])
    assert "keep_tokens = true: a number is needed" in caught.value.problem
    assert "'dataset.concepts.0.repeats' = true: a number is needed" in caught.value.problem
    assert "constrained" not in caught.value.problem and "tuple" not in caught.value.problem


def test_of_several_commands_in_a_script_the_first_training_is_read(tmp_path: Path) -> None:
    text = """python tag_images_by_wd14_tagger.py --batch_size=9 --recursive img
accelerate launch train_network.py --network_dim=7 --clip_skip=2 --output_name=a
accelerate launch train_network.py --network_dim=13 --flip_aug --output_name=b
"""
    recipe = read_recipe(written(tmp_path, "a.sh", text))
    assert (recipe.get("adapter.rank"), recipe.get("clip_skip"), recipe.get("name")) == (7, 2, "a")
    assert recipe.get("dataset.flip") is None
    assert [key.split(" --")[0] for key, reason in recipe.unmapped if "another command" in reason] == [
        "python tag_images_by_wd14_tagger.py",
        "accelerate launch train_network.py",
    ]


def test_variables_of_a_shell_in_all_their_forms(tmp_path: Path) -> None:
    text = """DIM=7
MORE="--flip_aug --clip_skip 2"
ARGS=(
  --max_train_epochs 3
)
train_network.py --network_dim ${DIM:-4} $MORE --seed=${SEED:-42} --output_name=${OUT%.*} --network_alpha 3 "${ARGS[@]}"
"""
    recipe = read_recipe(written(tmp_path, "a.sh", text))
    assert [recipe.get(path) for path in ("adapter.rank", "adapter.alpha", "seed", "epochs", "clip_skip", "name")] == [
        7, 3.0, 42, 3, 2, None,
    ]  # fmt: skip
    assert dict(recipe.unmapped) == {"--output_name": "computed by the script while it runs"}


def test_what_a_script_computes_is_not_called_not_given(tmp_path: Path) -> None:
    recipe = read_recipe(
        written(tmp_path, "a.sh", "N=3\ntrain_network.py --network_dim=$((N*2)) --learning_rate=3e-4\n")
    )
    notes = dict(recipe.changed)
    assert notes["(network_dim)"] == "computed by the script, so not known here; instead: rank 4, as in sd-scripts"
    assert notes["(network_alpha)"].startswith("not given")


def test_a_part_of_a_list_without_a_name_is_a_problem_told_once(tmp_path: Path) -> None:
    line = "train_network.py --network_args conv_dim=3 =5 --optimizer_args weight_decay\n"
    recipe = read_recipe(written(tmp_path, "a.sh", line))
    problems = [text.split("a.sh: ")[1] for _, text in recipe.problems]
    assert problems == ["optimizer_args: 'weight_decay' is not name=value", "network_args: '=5' is not name=value"]
    assert all(not key.endswith(": ") for key in recipe.keys)


def test_the_kind_of_adapter_alone_says_that_a_file_is_kohya_ss(tmp_path: Path) -> None:
    text = '{"LoRA_type": "LyCORIS/LoKr", "network_dim": 7, "epoch": 3}'
    recipe = read_recipe(written(tmp_path, "a.json", text))
    assert (recipe.program, recipe.get("adapter.kind"), recipe.get("epochs")) == ("kohya_ss' GUI", "lokr", 3)


def test_a_checkpoint_and_a_picture_are_no_recipes(tmp_path: Path) -> None:
    import torch
    from PIL import Image

    from loraloom.formats.tensors import write_tensors

    weight = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(3, 4, 3, 3)}
    write_tensors(tmp_path / "model.safetensors", weight, metadata={"modelspec.title": "a base"})
    with pytest.raises(FileFormatError, match="is not a LoRA file: it "):
        read_recipe(tmp_path / "model.safetensors")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(FileFormatError, match="is a picture, no recipe"):
        read_recipe(tmp_path / "a.png")
