"""LoRA_Easy_Training_Scripts: what its window saves becomes settings, under the names that stand in the file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe

SAVED = """
[[subsets]]
name = "subset 1"
num_repeats = 7
keep_tokens = 2
caption_extension = ".txt"
shuffle_caption = true
flip_aug = false
is_reg = false
image_dir = "ink"

[[subsets]]
num_repeats = 3
image_dir = "fox"
flip_aug = true
caption_extension = ".txt"

[train_mode]
train_mode = "lora"

[noise_args]

[general_args.args]
pretrained_model_name_or_path = "a.safetensors"
mixed_precision = "bf16"
seed = 23
xformers = true
max_token_length = 225
max_train_epochs = 9
sdxl = true

[general_args.dataset_args]
resolution = [640, 640]
batch_size = 3
max_token_length = 75

[network_args.args]
network_dim = 12
network_alpha = 6.0
min_timestep = 0

[network_args.args.network_args]
conv_dim = 5
conv_alpha = 2.5
algo = "loha"
preset = ""

[optimizer_args.args]
optimizer_type = "AdamW8bit"
lr_scheduler = "cosine"
learning_rate = 0.0003
warmup_ratio = 0.07
min_snr_gamma = 7

[optimizer_args.args.optimizer_args]
weight_decay = "0.3"
betas = "0.8,0.95"

[saving_args.args]
output_dir = "runs"
output_name = "ink"
save_precision = "fp16"
save_every_n_epochs = 2
save_toml = true
tag_occurrence = true

[bucket_args.dataset_args]
enable_bucket = true
min_bucket_reso = 320
bucket_reso_steps = 64
"""


def saved(tmp_path: Path, text: str) -> Path:
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    return tmp_path / "a.toml"


def test_what_the_window_saves(tmp_path: Path) -> None:
    recipe = read_recipe(saved(tmp_path, SAVED))
    assert recipe.problems == [] and recipe.unknown == [] and recipe.missing() == []
    settings = recipe.finished()
    assert (settings.epochs, settings.steps, settings.batch_size, settings.seed) == (9, None, 3, 23)
    adapter = settings.adapter
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.conv_rank, adapter.conv_alpha) == ("loha", 12, 6, 5, 2.5)
    optimizer = settings.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw_8bit", 3e-4, 0.3)
    assert optimizer.betas == (0.8, 0.95)
    assert (settings.lr_schedule.name, settings.lr_schedule.warmup_steps) == ("cosine", 0.07)
    dataset = settings.dataset
    assert (dataset.resolution, dataset.buckets, dataset.bucket_min) == ((640, 640), True, 320)
    assert settings.objective.min_snr_gamma == 7
    assert [(concept.folder.name, concept.repeats, concept.flip) for concept in dataset.concepts] == [
        ("ink", 7, None),
        ("fox", 3, True),
    ]
    assert (settings.name, settings.output, settings.saving.every_epochs) == ("ink", tmp_path / "runs", 2)


def test_every_key_is_accounted_for_by_its_own_name(tmp_path: Path) -> None:
    recipe = read_recipe(saved(tmp_path, SAVED))
    told = {key.partition(":")[0] for key in recipe.keys}
    for key in (
        "subsets[0].name", "subsets[0].num_repeats", "subsets[0].flip_aug", "subsets[0].shuffle_caption",
        "subsets[1].image_dir", "train_mode.train_mode", "general_args.args.xformers", "general_args.args.sdxl",
        "general_args.dataset_args.batch_size", "general_args.dataset_args.max_token_length",
        "network_args.args.network_dim", "network_args.args.min_timestep", "network_args.args.network_args",
        "optimizer_args.args.warmup_ratio", "optimizer_args.args.optimizer_args", "saving_args.args.save_toml",
        "saving_args.args.tag_occurrence", "bucket_args.dataset_args.min_bucket_reso",
    ):  # fmt: skip
        assert key in told, key
    assert not any(key.startswith(("datasets[", "general.")) for key in told)
    assert dict(recipe.unmapped)["saving_args.args.tag_occurrence"]


def test_its_own_schedules_and_optimizers_are_those_of_the_registry(tmp_path: Path) -> None:
    text = """
[[subsets]]
image_dir = "ink"
num_repeats = 7
[network_args.args]
network_dim = 12
fa = true
[optimizer_args.args]
optimizer_type = "LoraEasyCustomOptimizer.came.CAME"
lr_scheduler_type = "LoraEasyCustomOptimizer.RexAnnealingWarmRestarts.RexAnnealingWarmRestarts"
lr_scheduler = "rex_annealing_warm_restarts_(RAWR)"
lr_scheduler_num_cycles = 3
[optimizer_args.args.lr_scheduler_args]
min_lr = 1e-6
d = 0.9
"""
    recipe = read_recipe(saved(tmp_path, text))
    assert (recipe.get("optimizer.name"), recipe.get("lr_schedule.name")) == ("came", "rex")
    assert recipe.get("adapter.kind") == "lora_fa" and recipe.problems == []
    assert any("comes with that program" in note for _, note in recipe.changed)
    assert "optimizer_args.args.lr_scheduler_args: d" in dict(recipe.unmapped)


def test_what_that_window_trains_besides_is_refused(tmp_path: Path) -> None:
    flux = read_recipe(saved(tmp_path, SAVED + '[flux_args.args]\nae = "ae.safetensors"\nguidance_scale = 3.5\n'))
    assert any("flux_args is filled in" in text for _, text in flux.problems)
    assert "flux_args.args.ae" in dict(flux.unmapped)
    embedding = read_recipe(saved(tmp_path, SAVED.replace('train_mode = "lora"', 'train_mode = "textual_inversion"')))
    assert any("embeddings" in text for _, text in embedding.problems)


def test_an_empty_form_asks_for_the_folder(tmp_path: Path) -> None:
    text = '[[subsets]]\nnum_repeats = 7\nimage_dir = ""\n[network_args.args]\nnetwork_dim = 12\n'
    recipe = read_recipe(saved(tmp_path, text))
    assert recipe.missing() == ["checkpoint", "dataset.folder"] and recipe.get("dataset.repeats") == 7


def accounts(recipe: Recipe) -> Counter[str]:
    """How often each key of the file is told, without the parts of a key."""
    return Counter(key.partition(":")[0] for key in recipe.keys)


def test_what_is_given_in_two_panels_or_by_two_names_counts_once(tmp_path: Path) -> None:
    text = """
[[subsets]]
image_dir = "ink"
[a_args.args]
seed = 3
warmup_ratio = 0.07
lr_warmup_steps = 30
[a_args.dataset_args]
resolution = 320
[b_args.args]
seed = 23
caption_extention = ".cap"
caption_extension = ".txt"
[b_args.dataset_args]
resolution = 640
"""
    recipe = read_recipe(saved(tmp_path, text))
    assert [recipe.get(path) for path in ("seed", "lr_schedule.warmup_steps", "dataset.resolution")] == [23, 0.07, 640]
    told = dict(recipe.changed)
    assert told["a_args.args.seed"] == "given again as b_args.args.seed; the last one counts"
    assert told["a_args.dataset_args.resolution"].startswith("given again as b_args.dataset_args.resolution")
    assert told["a_args.args.lr_warmup_steps"] == "a_args.args.warmup_ratio counts instead"
    assert told["b_args.args.caption_extention"].startswith("given again as b_args.args.caption_extension")
    assert [key for key, count in accounts(recipe).items() if count > 1] == []


def test_no_section_is_passed_over(tmp_path: Path) -> None:
    text = """
subsets = [{ image_dir = "fox", flip_aug = false }]
noise_args = 3
chroma_args = "x"
train_mode = { train_mode = "lora", also = 3 }
[[datasets]]
[[datasets.subsets]]
image_dir = "ink"
flip_aug = false
[optimizer_args.args]
lr_scheduler_type = "LoraEasyCustomOptimizer.RexAnnealingWarmRestarts.RexAnnealingWarmRestarts"
lr_scheduler_args = ["min_lr=1e-6"]
[network_args.args]
fa = true
"""
    recipe = read_recipe(saved(tmp_path, text))
    told = accounts(recipe)
    for key in (
        "subsets", "noise_args", "chroma_args", "train_mode.train_mode", "train_mode.also",
        "datasets[0].subsets[0].image_dir", "datasets[0].subsets[0].flip_aug", "network_args.args.fa",
        "optimizer_args.args.lr_scheduler_type", "optimizer_args.args.lr_scheduler_args",
    ):  # fmt: skip
        assert told[key] == 1, key
    assert recipe.get("adapter.kind") == "lora_fa" and "network_args.args.fa" in dict(recipe.changed)
    assert [concept["folder"] for concept in recipe.get("dataset.concepts")] == [str(tmp_path / "ink")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('datasets = "x"\n[a_args.args]\nseed = 3\n', "datasets = 'x' is not a list of tables"),
        ('subsets = [3, { image_dir = "ink" }]\n[a_args.args]\nseed = 3\n', "subsets[0] is not a table"),
    ],
)
def test_folders_in_another_form_are_problems(tmp_path: Path, text: str, problem: str) -> None:
    recipe = read_recipe(saved(tmp_path, text))
    assert any(text.removeprefix(f"{recipe.source}: ") == problem for _, text in recipe.problems)


def test_problems_name_the_keys_that_stand_in_the_file(tmp_path: Path) -> None:
    text = """
[[subsets]]
image_dir = "ink"
caption_dropout_rate = 3
[b_args.dataset_args]
min_bucket_reso = "x"
"""
    recipe = read_recipe(saved(tmp_path, text))
    said = " ".join(text.removeprefix(f"{recipe.source}: ") for _, text in recipe.problems)
    assert said.startswith("subsets[0].caption_dropout_rate = 3: ")
    assert "b_args.dataset_args.min_bucket_reso = 'x' does not fit" in said
    recipe = read_recipe(saved(tmp_path, "[[subsets]]\nimage_dir = ''\n[a_args.args]\nseed = 3\n"))
    assert recipe.why_missing("dataset.folder") == "subsets[0] names no image_dir"
