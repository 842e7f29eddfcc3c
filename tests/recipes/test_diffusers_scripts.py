"""Command lines of diffusers' scripts: their arguments, and their own defaults for what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraloom.recipes.diffusers_names import SCRIPTS
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe, listed
from loraloom.training.settings import TrainSettings


def command(tmp_path: Path, text: str) -> Recipe:
    (tmp_path / "a.sh").write_text(f"accelerate launch {text}\n", encoding="utf-8")
    return read_recipe(tmp_path / "a.sh")


def finished(recipe: Recipe, *more: str) -> TrainSettings:
    return recipe.finished(["checkpoint=a.ckpt", *more])


def test_what_is_left_out_is_what_the_script_does(tmp_path: Path) -> None:
    settings = finished(
        command(tmp_path, "train_text_to_image_lora.py --num_train_epochs=3 --rank=8 --train_data_dir=x")
    )
    assert (settings.epochs, settings.steps, settings.batch_size) == (3, None, 16)
    assert (settings.adapter.rank, settings.adapter.alpha, settings.adapter.include) == (8, 8.0, ("attn",))
    assert (settings.adapter.unet, settings.adapter.text_encoder) == (True, False)
    assert (settings.optimizer.name, settings.optimizer.lr, settings.lr_schedule.name) == ("adamw", 1e-4, "constant")
    dataset = settings.dataset
    assert (dataset.resolution, dataset.buckets, dataset.random_crop, dataset.flip) == (512, False, True, False)
    assert (settings.saving.every_steps, settings.saving.every_epochs) == (500, 0)
    assert settings.name == "sd-model-finetuned-lora"


@pytest.mark.parametrize(
    ("script", "resolution", "batch", "epochs", "lr", "method"),
    [
        ("train_text_to_image_lora_sdxl.py", 1024, 16, 100, 1e-4, "adapter"),
        ("train_dreambooth_lora.py", 512, 4, 1, 5e-4, "adapter"),
        ("train_dreambooth_lora_sdxl.py", 1024, 4, 1, 1e-4, "adapter"),
        ("train_text_to_image.py", 512, 16, 100, 1e-4, "full"),
        ("train_text_to_image_sdxl.py", 1024, 16, 100, 1e-4, "full"),
        ("train_dreambooth.py", 512, 4, 1, 5e-6, "full"),
    ],
)
def test_the_defaults_of_each_script(
    tmp_path: Path, script: str, resolution: int, batch: int, epochs: int, lr: float, method: str
) -> None:
    settings = finished(command(tmp_path, f"{script} --seed=3"), "dataset.folder=x")
    found = (settings.dataset.resolution, settings.batch_size, settings.epochs, settings.optimizer.lr, settings.method)
    assert found == (resolution, batch, epochs, lr, method)
    assert script in SCRIPTS


def test_all_arguments_of_a_dreambooth_run(tmp_path: Path) -> None:
    recipe = command(
        tmp_path,
        "train_dreambooth_lora_sdxl.py --pretrained_model_name_or_path=stabilityai/xl --instance_data_dir=dog "
        "--instance_prompt='a photo of sks dog' --class_data_dir=dogs --class_prompt='a photo of a dog' "
        "--with_prior_preservation --prior_loss_weight=0.3 --num_class_images=70 --output_dir=/runs/xl-dog "
        "--train_text_encoder --text_encoder_lr=3e-6 --rank=12 --lora_dropout=0.2 --use_dora --snr_gamma=7 "
        "--max_train_steps=900 --num_train_epochs=3 --lr_scheduler=cosine --learning_rate=3e-5 --adam_beta2=0.98 "
        "--validation_prompt='a dog in a bucket' --validation_epochs=7 --checkpointing_steps=300 --repeats=2 "
        "--checkpoints_total_limit=3 --report_to=wandb --push_to_hub --mixed_precision=bf16 --center_crop --wobble=3",
    )
    assert recipe.unknown == ["wobble"]
    assert recipe.problems == [] and recipe.missing() == ["checkpoint"]
    assert "stabilityai/xl" in recipe.known_of_required["checkpoint"]
    settings = finished(recipe)
    assert (settings.steps, settings.name, settings.output.name) == (900, "xl-dog", "runs")
    assert (settings.adapter.kind, settings.adapter.rank, settings.adapter.alpha) == ("dora", 12, 12.0)
    assert (settings.adapter.text_encoder, settings.adapter.dropout) == (True, 0.2)
    optimizer = settings.optimizer
    assert (optimizer.lr, optimizer.text_encoder_lr, optimizer.betas) == (3e-5, 3e-6, (0.9, 0.98))
    assert optimizer.weight_decay == 1e-4, "that script's own"
    assert (settings.lr_schedule.name, settings.lr_schedule.warmup_steps) == ("cosine", 500)
    own, of_class = settings.dataset.concepts
    assert (own.folder.name, own.repeats, own.captions["sentence"]) == ("dog", 2, "a photo of sks dog")
    assert (of_class.folder.name, of_class.is_regularization) == ("dogs", True)
    assert (settings.prior_loss_weight, settings.objective.min_snr_gamma) == (0.3, 7.0)
    assert (settings.preview.prompts, settings.preview.every_epochs) == (("a dog in a bucket",), 7)
    assert (settings.saving.every_steps, settings.saving.keep_last) == (300, 3)
    assert settings.dataset.random_crop is False and settings.mixed_precision == "bf16"


@pytest.mark.parametrize(
    ("more", "path", "value"),
    [
        ("--scale_lr --learning_rate=2e-6 --gradient_accumulation_steps=3 --train_batch_size=5", "optimizer.lr", 3e-5),
        ("--scale_lr", "optimizer.lr", 1.6e-3),
        ("--lr_scheduler=linear --lr_warmup_steps=0", "lr_schedule.warmup_steps", 0),
        ("--use_8bit_adam --adam_weight_decay=0.3", "optimizer.weight_decay", 0.3),
        ("--optimizer=prodigy --learning_rate=1", "optimizer.name", "prodigy"),
        ("--prediction_type=v_prediction", "prediction", "v"),
        ("--noise_offset=0.07", "objective.noise_offset", 0.07),
        ("--random_flip", "dataset.flip", True),
        ("--output_dir=./", "name", "sd-model-finetuned-lora"),
        ("--center_crop=False", "dataset.random_crop", True),
    ],
)
def test_single_arguments(tmp_path: Path, more: str, path: str, value: object) -> None:
    recipe = command(tmp_path, f"train_text_to_image_lora.py --train_data_dir=x {more}")
    assert recipe.get(path) == value
    assert recipe.problems == [] and recipe.unknown == []


def test_pictures_on_the_hub_are_asked_for(tmp_path: Path) -> None:
    recipe = command(tmp_path, "train_text_to_image_lora.py --dataset_name=somebody/foxes --caption_column=blip")
    assert recipe.missing() == ["checkpoint", "dataset.folder"]
    assert "somebody/foxes" in recipe.known_of_required["dataset.folder"]
    assert "text or caption" in dict(recipe.unmapped)["caption_column"]
    (tmp_path / "foxes").mkdir()
    assert command(tmp_path, "train_text_to_image_lora.py --dataset_name=foxes").get("dataset.folder")


def test_a_line_whose_backslash_does_not_end_it(tmp_path: Path) -> None:
    text = "train_text_to_image_lora.py \\ # a remark\n  --train_data_dir=x \\\n  --rank=12\n  --max_train_steps=70"
    recipe = command(tmp_path, text)
    assert (recipe.get("adapter.rank"), recipe.get("steps")) == (12, 70)


@pytest.mark.parametrize("value", ["", "x", "-1", "9" * 400, "nan", "a b", "[1]"])
@pytest.mark.parametrize("script", list(SCRIPTS))
def test_odd_values_lose_no_argument(tmp_path: Path, script: str, value: str) -> None:
    names = listed(
        "scale_lr learning_rate train_batch_size rank repeats output_dir validation_epochs num_validation_images "
        "lr_warmup_steps adam_beta1 prodigy_beta3 checkpointing_steps class_prompt instance_data_dir snr_gamma "
        "prediction_type dataset_name caption_column seed num_class_images max_train_steps tokenizer_max_length"
    )
    recipe = command(tmp_path, f"{script} " + " ".join(f'--{name}="{value}"' for name in names))
    problems = " ".join(text for _, text in recipe.problems)
    told = {key.partition(" ")[0] for key in recipe.keys}
    assert [name for name in names if name not in told and name not in problems] == []
