"""sd-scripts' dataset files: folders, what holds for each of them, and what holds for the whole run."""

from __future__ import annotations

import shutil
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from foreign_recipes import FILES, mapped, settings_again, written
from loraloom.errors import FileFormatError, SettingsError
from loraloom.recipes.reading import read_recipe


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


def test_why_the_pictures_are_still_needed_is_said(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, "a.toml", "network_dim = 3\ndataset_config = 'absent.toml'\n"))
    assert recipe.missing() == ["checkpoint", "dataset.folder"]
    assert "absent.toml: there is no such file" in recipe.why_missing("dataset.folder")
    assert "# Required, not in that file: dataset.folder (dataset_config: " in recipe.to_toml()


def test_a_number_of_a_subset_is_not_one_either(tmp_path: Path) -> None:
    text = "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nnum_repeats = true\nkeep_tokens = true\n"
    text += "[[datasets]]\nresolution = 3\n[[datasets.subsets]]\nimage_dir = 'b'\nresolution = 5\n"
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    with pytest.raises(SettingsError) as caught:
        recipe.finished(["checkpoint=a.ckpt"])
    assert "keep_tokens = true: a number is needed" in caught.value.problem
    assert "'dataset.concepts.0.repeats' = true: a number is needed" in caught.value.problem
    assert "constrained" not in caught.value.problem and "tuple" not in caught.value.problem


def test_every_entry_has_one_account(tmp_path: Path) -> None:
    """One of a dataset that a subset overrides, one by two names, one that a run says too."""
    text = """
v_parameterization = true
num_repeats = 9
[general]
batch_size = 3
[[datasets]]
keep_tokens = 2
bucket_reso_steps = 64
train_batch_size = 5
batch_size = 7
v_parameterization = true
[[datasets.subsets]]
image_dir = 'a'
keep_tokens = 1
v_parameterization = true
[[datasets.subsets]]
image_dir = 'b'
"""
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    counted = Counter(key for key in recipe.keys if not key.startswith("("))
    assert [key for key, count in counted.items() if count != 1] == []
    assert "a subset says something else" in dict(recipe.changed)["datasets[0].keep_tokens"]
    assert "given again as datasets[0].batch_size" in dict(recipe.changed)["datasets[0].train_batch_size"]
    captions = [concept.get("captions") for concept in recipe.get("dataset.concepts")]
    assert captions == [{"keep_tokens": 1}, {"keep_tokens": 2}]
    assert [concept["repeats"] for concept in recipe.get("dataset.concepts")] == [9, 9]
    assert mapped(recipe)["datasets[0].subsets[0].v_parameterization"][0] == "prediction"
    for key in ("datasets[0].bucket_reso_steps", "datasets[0].v_parameterization", "num_repeats"):
        assert key in recipe.keys


def test_what_an_empty_form_overrides_is_told(tmp_path: Path) -> None:
    text = "dataset_config = 'd.toml'\nkeep_tokens = 3\nseed = 3\n"
    levels = "[general]\nkeep_tokens = 4\nflip_aug = true\n[[datasets]]\nflip_aug = false\n"
    written(tmp_path, "d.toml", f"{levels}[[datasets.subsets]]\nimage_dir = ''\nkeep_tokens = 5\nflip_aug = true\n")
    recipe = read_recipe(written(tmp_path, "a.toml", text))
    assert recipe.get("dataset.captions.keep_tokens") == 5 and recipe.get("dataset.flip") is True
    told = dict(recipe.changed)
    for key in ("keep_tokens", "general.keep_tokens", "general.flip_aug", "datasets[0].flip_aug"):
        assert key in told, key


def test_a_general_part_that_is_no_table_names_the_file(tmp_path: Path) -> None:
    text = "general = 3\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n"
    with pytest.raises(FileFormatError, match=r"a\.toml: general is not a table"):
        read_recipe(written(tmp_path, "a.toml", text))
