"""OneTrainer's configurations as recipes."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loraloom.cli.main import app
from loraloom.errors import FileFormatError, LoraloomError, SettingsError
from loraloom.recipes import onetrainer_names as tables
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe
from loraloom.training.settings import TrainSettings

FILES = Path(__file__).parents[1] / "data_files" / "recipes" / "onetrainer"
PRESET = {
    "training_method": "LORA",
    "model_type": "STABLE_DIFFUSION_15",
    "base_model_name": "model.safetensors",
    "layer_filter_preset": "attn-mlp",
}


def preset(folder: Path, **changes: Any) -> Recipe:
    """The recipe of a preset with some keys (of an older one if it has names of those)."""
    path = folder / "preset.json"
    older = {key for key, now in tables.RENAMED.items() if key in changes and now in PRESET}
    data = {key: value for key, value in PRESET.items() if key not in {tables.RENAMED[name] for name in older}}
    path.write_text(json.dumps({**data, **changes}), encoding="utf-8")
    return read_recipe(path)


def flat(data: dict[str, Any]) -> set[str]:
    """Names as the account has them."""
    found = set()
    for key, value in data.items():
        inside = key in (*tables.PARTS, "optimizer")
        found |= {f"{key}.{part}" for part in value} if inside else {key}
    return found


def test_a_whole_export(tmp_path: Path) -> None:
    path = FILES / "config.json"
    recipe = read_recipe(path)
    keys = flat(json.loads(path.read_text(encoding="utf-8")))
    assert len(keys) > 250
    told = [key.replace("optimizer: ", "optimizer.") for key in recipe.keys]
    told = [*told, "optimizer.beta1", "optimizer.beta2"]  # both are optimizer: betas
    assert sorted(key for key in told if key in keys) == sorted(keys), "each is accounted for once"
    assert recipe.unknown == [] and recipe.problems == []
    assert not [key for key in recipe.keys if "sd-scripts" in key]

    (tmp_path / "run.toml").write_text(recipe.to_toml(), encoding="utf-8")
    settings = TrainSettings.load(tmp_path / "run.toml", [])
    assert settings == recipe.finished()
    assert settings.name == "foxstyle" and settings.checkpoint == FILES / "models" / "anime.safetensors"
    assert (settings.epochs, settings.steps, settings.batch_size, settings.gradient_accumulation) == (12, None, 4, 2)
    adapter = settings.adapter
    assert (adapter.rank, adapter.alpha, adapter.conv_rank, adapter.conv_alpha) == (32, 16, 32, 16), "full: all layers"
    assert adapter.dropout == 0.1
    optimizer = settings.optimizer
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == ("adamw_8bit", (0.9, 0.99), 0.02)
    assert (optimizer.lr, optimizer.unet_lr, optimizer.text_encoder_lr) == (2e-4, None, 5e-5)
    assert (optimizer.text_encoder_stop, optimizer.max_grad_norm) == (0.5, 0.5), "6 of 12 epochs"
    schedule = settings.lr_schedule
    assert (schedule.name, schedule.cycles, schedule.warmup_steps) == ("cosine_with_restarts", 3, 0.05)
    assert schedule.min_lr_ratio == 0.1
    assert (settings.mixed_precision, settings.quantize, settings.gradient_checkpointing) == ("bf16", "int8", "full")
    assert settings.clip_skip == 2, "layers skipped there"
    assert (settings.ema.enabled, settings.ema.decay, settings.ema.every) == (True, 0.995, 5)
    objective = settings.objective
    assert (objective.loss_type, objective.huber_c, objective.huber_schedule) == ("huber", 0.2, "constant")
    assert (objective.min_snr_gamma, objective.noise_offset) == (5.0, 0.03)
    assert (objective.min_timestep, objective.max_timestep) == (20, 900)
    assert (objective.timestep_sampling, objective.logit_mean) == ("logit_normal", -0.5)
    assert objective.logit_std == pytest.approx(1.2), "noising_weight is what is above 1"
    assert (objective.masked_loss_normalized, objective.mask_floor) == (True, 0.05)
    dataset = settings.dataset
    assert (dataset.resolutions, dataset.resolution_choice, dataset.masks) == ((512, 640), "random", "beside")
    fox, animals = dataset.concepts
    assert (fox.folder, fox.name, fox.repeats, fox.loss_weight) == (FILES / "img" / "fox", "fox", 10, 1.5)
    assert (fox.flip, fox.random_crop, fox.color_augmentation) == (True, True, True)
    assert fox.captions == {"shuffle": True, "keep_tokens": 2, "tag_dropout": 0.1, "keep_tags": ["fox", "red"]}
    assert animals.is_regularization and animals.captions == {"source": "filename"}
    assert objective.preserve_regularization, "prior prediction"
    assert dataset.captions.dropout == 0.05
    assert (settings.validation.folder, settings.validation.every_epochs) == (FILES / "held", 2)
    assert settings.preview.prompts == (
        "foxstyle, a red fox in snow --n blurry --w 512 --h 640 --s 25 --l 6.5 --d 5 --ss Euler a",
        "a house --n blurry --w 512 --h 640 --s 25 --l 6.5 --ss Euler a",
    )
    assert (settings.preview.every_steps, settings.preview.every_epochs) == (50, 0)
    saving = settings.saving
    assert (saving.every_epochs, saving.precision, saving.state_every_minutes) == (3, "fp16", 20)
    assert saving.keep_states == 2
    reasons = dict(recipe.unmapped)
    assert set(reasons) == {
        "tensorboard",
        "perturbation_noise_weight",
        "unmasked_probability",
        "concepts[1].image.enable_random_rotate",
    }


def test_what_a_preset_leaves_out_is_what_onetrainer_does(tmp_path: Path) -> None:
    settings = preset(tmp_path).finished(["dataset.folder=img"])
    assert (settings.epochs, settings.steps, settings.optimizer.lr) == (100, None, 3e-6)
    assert (settings.lr_schedule.name, settings.lr_schedule.warmup_steps) == ("constant_with_warmup", 200)
    assert (settings.adapter.rank, settings.adapter.alpha, settings.adapter.conv_rank) == (16, 1, 0)
    assert (settings.mixed_precision, settings.saving.precision, settings.dataset.resolution) == ("fp16", "float", 512)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layer_filter_preset": "attn-only"}, {"adapter.include": ["^lora_unet_.*attn", "^lora_te"]}),
        (
            {"layer_filter_preset": "custom", "layer_filter": "attn1,ff.net"},
            {"adapter.include": ["^lora_unet_.*attn1", "^lora_unet_.*ff_net", "^lora_te"]},
        ),
        ({"text_encoder": {"train": False}}, {"adapter.text_encoder": False, "adapter.unet": None}),
        ({"unet": {"train": False}}, {"adapter.unet": False, "adapter.text_encoder": None}),
        (
            {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "text_encoder_2": {"train": False}},
            {"adapter.exclude": ["^lora_te2_"], "adapter.text_encoder": None},
        ),
        (
            {"model_type": "STABLE_DIFFUSION_XL_10_BASE", "text_encoder_2": {"learning_rate": 1e-5}},
            {"optimizer.text_encoder_lr": [3e-6, 1e-5]},
        ),
        ({"learning_rate": 1e-4, "learning_rate_scaler": "BOTH", "batch_size": 2, "gradient_accumulation_steps": 2},
         {"optimizer.lr": 2e-4}),
        ({"learning_rate_warmup_steps": 200, "gradient_accumulation_steps": 4}, {"lr_schedule.warmup_steps": 50}),
        ({"learning_rate_scheduler": "REX", "learning_rate_warmup_steps": 0}, {"lr_schedule.name": "rex"}),
        (
            {"learning_rate_scheduler": "CUSTOM", "custom_learning_rate_scheduler": "torch.optim.lr_scheduler.StepLR",
             "scheduler_params": [{"key": "step_size", "value": "30"}]},
            {"lr_schedule.name": "torch.optim.lr_scheduler.StepLR", "lr_schedule.args": {"step_size": 30}},
        ),
        ({"peft_type": "LOHA"}, {"adapter.kind": "loha"}),
        (
            {"peft_type": "LOKR", "lokr_dim": 8, "lokr_decompose_factor": 4, "lokr_full_matrix": True},
            {"adapter.kind": "lokr", "adapter.rank": 8, "adapter.lokr_factor": 4, "adapter.lokr_full_matrix": True},
        ),
        ({"lora_decompose": True, "lora_decompose_output_axis": True},
         {"adapter.kind": "dora", "adapter.dora_axis": "output"}),
        ({"training_method": "FINE_TUNE"}, {"method": "full", "adapter.rank": None}),
        ({"loss_weight_fn": "DEBIASED_ESTIMATION"}, {"objective.debiased_estimation": True}),
        ({"mse_strength": 0.3, "mae_strength": 0.7}, {"objective.loss_type": "l1"}),
        ({"force_v_prediction": True, "rescale_noise_scheduler_to_zero_terminal_snr": True},
         {"prediction": "v", "zero_terminal_snr": True}),
        ({"gradient_checkpointing": "CPU_OFFLOADED", "__version": 9}, {"gradient_checkpointing": "full"}),
        ({"gradient_checkpointing": "OFF", "__version": 9}, {"gradient_checkpointing": None}),
        ({"lora_layers": "attn2", "lora_layer_preset": "custom", "__version": 6},
         {"adapter.include": ["^lora_unet_.*attn2", "^lora_te"]}),
        ({"resolution": "640x512"}, {"dataset.resolution": [640, 512]}),
        ({"save_every": 100, "save_every_unit": "STEP"}, {"saving.every_steps": 100, "saving.every_epochs": 0}),
        ({"unet": {"weight_dtype": "NFLOAT_4"}}, {"quantize": "nf4"}),
        ({"optimizer": {"optimizer": "PRODIGY", "beta1": 0.9, "beta2": 0.99, "d_coef": 2.0, "momentum": 0.5}},
         {"optimizer.name": "prodigy", "optimizer.betas": [0.9, 0.99], "optimizer.args": {"d_coef": 2.0}}),
        ({"optimizer": {"optimizer": "ADAMW_8BIT", "is_paged": True}}, {"optimizer.name": "paged_adamw_8bit"}),
        ({"clip_grad_norm": None}, {"optimizer.max_grad_norm": 0.0}),
    ],
)  # fmt: skip
def test_single_keys(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    recipe = preset(tmp_path, **changes)
    assert {path: recipe.get(path) for path in expected} == expected
    recipe.finished(["dataset.folder=img"])


def test_every_optimizer_is_one_that_can_be_named(tmp_path: Path) -> None:
    for name in tables.OPTIMIZERS:
        recipe = preset(tmp_path, optimizer={"optimizer": name})
        assert recipe.problems == [] and recipe.get("optimizer.name"), name


def test_prompts_of_a_concept(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a fox\n\na red fox\n", encoding="utf-8")
    text = {"prompt_source": "concept", "prompt_path": "prompts.txt"}
    recipe = preset(tmp_path, concepts=[{"path": "img", "text": text}])
    (concept,) = recipe.finished().dataset.concepts
    assert concept.caption == "{a fox|a red fox}" and concept.captions == {"wildcards": True}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "FLUX_DEV_1"}, "flux dev 1"),
        ({"optimizer": "ADAMW", "optimizer_weight_decay": 0.1}, "2023"),
        ({"train_unet": True}, "2023"),
    ],
)
def test_what_is_refused_at_once(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FileFormatError, match=said):
        preset(tmp_path, **changes)


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    recipe = preset(
        tmp_path,
        training_method="EMBEDDING",
        optimizer={"optimizer": "LION_ADV"},
        learning_rate="fast",
        batch_size=0,
        resolution="large",
        learning_rate_scheduler="MOON",
        mse_strength=0,
        concepts=[{"path": "img", "balancing": "x"}],
        strange=1,
    )
    with pytest.raises(SettingsError) as caught:
        recipe.finished()
    text = "\n".join(caught.value.problems)
    for word in ("EMBEDDING", "LION_ADV", "fast", "batch_size", "large", "MOON", "strength 0", "balancing"):
        assert word in text
    assert recipe.unknown == ["strange"]


@pytest.mark.parametrize("value", [None, True, -1, 3.7, "x", "\0", [], ["a"], {"a": 1}, [{}], 10**400, "x" * 400])
def test_hostile_values_are_told_or_taken(tmp_path: Path, value: Any) -> None:
    data = json.loads((FILES / "config.json").read_text(encoding="utf-8"))
    concept = json.loads((FILES / "concepts.json").read_text(encoding="utf-8"))[0]
    for key in data:
        if key in ("training_method", "model_type"):
            continue
        with suppress(LoraloomError):
            preset(tmp_path, **{**data, key: value}).finished(["dataset.folder=img"])
    for part in ("image", "text", None):
        for key in concept if part is None else concept[part]:
            changed = {**concept, key: value} if part is None else {**concept, part: {**concept[part], key: value}}
            with suppress(LoraloomError):
                preset(tmp_path, concepts=[changed, value], samples=[{"prompt": value, "width": value}]).finished()


def test_on_the_command_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["import", str(FILES / "config.json"), "-o", str(tmp_path / "run.toml")])
    assert result.exit_code == 0, result.output
    assert "perturbation_noise_weight" in result.output
    assert (tmp_path / "run.toml").read_text(encoding="utf-8").startswith("# From config.json (OneTrainer).")
