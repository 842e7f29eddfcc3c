"""Command lines and scripts: those of the guide, of PowerShell, of the command prompt and of shells."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foreign_recipes import FILES, mapped, settings_again, written
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.scripts import ONLY_IN_SCRIPTS


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
