"""Recipes of any program: wrong files and values are told, and no file chooses what code is run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foreign_recipes import FILES, lora_with, written
from loraloom.errors import FileFormatError, MissingFileError, SettingsError
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import field_rows
from loraloom.settings import read_toml
from loraloom.training.record import RECORD


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


FOREIGN = "stranger_of_the_folder"
"""A module that lies where modules are looked for, and that no file may choose."""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module, which fails the test that imports it."""
    written(tmp_path, f"{FOREIGN}.py", "raise SystemError('a data file chose this module')")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    assert FOREIGN not in sys.modules


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


def test_the_template_is_read_back_by_the_own_reader(tmp_path: Path) -> None:
    path = written(tmp_path, "run.toml", read_recipe(FILES / "concepts_list.json").to_toml())
    assert len(read_toml(path)["dataset"]["concepts"]) == 7


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


def test_no_refusal_prints_a_table(tmp_path: Path) -> None:
    text = "network_dim = {a = 1}\nclip_skip = [{b = 2}]\nmin_timestep = 7\nmax_timestep = 7\nseed = [3, 4]\n"
    recipe = read_recipe(written(tmp_path, "a.toml", text + 'optimizer_type = "AdamW"\n'))
    with pytest.raises(SettingsError) as caught:
        recipe.finished()
    assert "{" not in caught.value.problem and "[" not in caught.value.problem
    assert "seed = 3, 4 does not fit seed" in caught.value.problem
    assert "min_timestep=7 must be below max_timestep=7" in caught.value.problem


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
