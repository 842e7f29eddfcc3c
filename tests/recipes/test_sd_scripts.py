"""sd-scripts' arguments in a file: each is a setting or has a reason, and what is not said is what it does there."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from foreign_recipes import FILES, settings_again, written
from loraloom.errors import SettingsError
from loraloom.recipes.names import NETWORK_REASONS, REASONS, SPELLINGS, TRAIN_NETWORK_ARGUMENTS, marked, reason_for
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import field_rows
from loraloom.recipes.rows import by_key
from loraloom.recipes.sd_scripts import TABLE


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


def test_what_is_not_said_is_what_sd_scripts_does(tmp_path: Path) -> None:
    recipe = read_recipe(
        written(tmp_path, "a.toml", 'train_data_dir = "img"\npretrained_model_name_or_path = "a.ckpt"\n')
    )
    settings = recipe.finished()
    assert (settings.adapter.rank, settings.adapter.alpha, settings.lr_schedule.name) == (4, 1.0, "constant")
    assert (settings.steps, settings.optimizer.lr, settings.saving.every_epochs) == (1600, 2e-6, 0)
    assert settings.dataset.buckets is False
    assert all(key.startswith("(") for key, _ in recipe.changed)


def test_captions_in_one_file(tmp_path: Path) -> None:
    text = "train_data_dir = 'img'\nin_json = 'meta_cap.json'\nunet_lr = 1e-4\n"
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    assert Path(recipe.get("dataset.captions.table")) == tmp_path / "meta_cap.json"
    subsets = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nmetadata_file = 'a.json'\n"
    subsets += "[[datasets.subsets]]\nimage_dir = 'b'\n"
    settings = read_recipe(written(tmp_path, "d.toml", subsets)).finished(["checkpoint=x.ckpt"])
    one, other = settings.dataset.concepts
    assert (one.caption_table, other.caption_table) == (tmp_path / "a.json", None)


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


def test_a_file_for_whole_models(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, "a.toml", "learning_rate = 1e-6\nlearning_rate_te = 0\n"))
    assert (recipe.get("method"), recipe.get("adapter.text_encoder")) == ("full", False)


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


@pytest.mark.parametrize("data", [3, "x", [3], {"prompt": 3}, {"prompt": {"subset": 0.3}}, {"prompt": {"subset": [3]}}])
def test_files_of_prompts_in_odd_forms(tmp_path: Path, data: Any) -> None:
    written(tmp_path, "p.json", json.dumps(data) if not isinstance(data, (int, str)) else f"[{json.dumps(data)}, 4]")
    recipe = read_recipe(written(tmp_path, "a.toml", 'network_dim = 3\nsample_prompts = "p.json"\n'))
    assert any("are not prompts" in text for _, text in recipe.problems)


def test_of_a_key_given_twice_the_last_that_says_something_counts(tmp_path: Path) -> None:
    text = 'network_dim = 3\n"network-dim" = 7\n"--network_dim" = ""\nconfig_file = ""\n'
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    assert recipe.get("adapter.rank") == 7
    assert dict(recipe.changed)["network_dim"] == "given again as network-dim; the last one counts"
    assert {"--network_dim", "config_file"} <= set(recipe.idle)
    assert recipe.keys.count("network-dim") == 1
