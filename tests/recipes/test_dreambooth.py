"""sd_dreambooth_extension: lists of concepts, and db_config.json of all times."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from foreign_recipes import FILES, settings_again, written
from loraloom.cli.words import worded
from loraloom.recipes.reading import read_recipe


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


def test_class_images_in_a_number_that_nobody_means(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    text = f'[{{"instance_data_dir": "x", "num_class_images_per": "{"7" * 400}"}}]'
    recipe = read_recipe(written(tmp_path, "a.json", text))
    assert not any("class-images" in worded(note) for _, note in recipe.changed)
