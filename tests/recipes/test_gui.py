"""The form of kohya_ss: its fields, its rules, and arguments that it does not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreign_recipes import FILES, settings_again, written
from loraloom.errors import SettingsError
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe


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


def test_the_kind_of_adapter_alone_says_that_a_file_is_kohya_ss(tmp_path: Path) -> None:
    text = '{"LoRA_type": "LyCORIS/LoKr", "network_dim": 7, "epoch": 3}'
    recipe = read_recipe(written(tmp_path, "a.json", text))
    assert (recipe.program, recipe.get("adapter.kind"), recipe.get("epochs")) == ("kohya_ss' GUI", "lokr", 3)
