"""Ranks and alphas that a LoRA's metadata do not give in numbers come from its tensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from loraloom.formats.tensors import write_tensors
from loraloom.recipes.lora_sizes import lora_sizes
from loraloom.recipes.reading import read_recipe
from loraloom.recipes.recipe import Recipe
from loraloom.weights.low_rank import Criterion
from loraloom.weights.resize import resize_lora

RANKS = {"0_attentions_0_proj_in": 3, "1_attentions_0_proj_in": 12, "2_attentions_1_proj_in": 5}
COMMENT = "Dynamic resize with sv_fro: 0.9 from 32; hello; there"


def layers(ranks: dict[str, int], scale: float, kernel: int = 1) -> dict[str, torch.Tensor]:
    """LoRA layers of these ranks, each with alpha = ``scale`` times its rank in half precision."""
    tensors = {}
    for name, rank in ranks.items():
        start = f"lora_unet_down_blocks_{name}"
        shape = (rank, 20, kernel, kernel) if kernel > 1 else (rank, 20)
        tensors[f"{start}.lora_down.weight"] = torch.randn(shape)
        tensors[f"{start}.lora_up.weight"] = torch.randn((30, rank, 1, 1) if kernel > 1 else (30, rank))
        tensors[f"{start}.alpha"] = torch.tensor(scale * rank).half()
    return tensors


def lora(tmp_path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Recipe:
    write_tensors(tmp_path / "l.safetensors", tensors, metadata={"ss_seed": "7", **metadata})
    return read_recipe(tmp_path / "l.safetensors", only_lora=True)


def sizes(recipe: Recipe) -> tuple[object, ...]:
    return tuple(recipe.get(f"adapter.{name}") for name in ("rank", "alpha", "conv_rank", "conv_alpha"))


def test_a_lora_that_was_resized_layer_by_layer(tmp_path: Path) -> None:
    """What sd-scripts' resize_lora.py writes: a word for the rank, and what was done in front of the comment."""
    facts = {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic", "ss_training_comment": COMMENT}
    recipe = lora(tmp_path, layers(RANKS, 0.3), ss_network_module="networks.lora", **facts)
    assert recipe.problems == [] and sizes(recipe) == (12, 3.6, None, None)
    told = dict(recipe.changed)
    assert told["ss_network_dim"].startswith(
        "Dynamic in the metadata; 12 from the tensors, the largest of ranks from 3"
    )
    assert "it had rank 32" in told["ss_network_dim"] and "a layer of rank 12" in told["ss_network_alpha"]
    assert recipe.get("saving.comment") == "hello; there", "the one that is trained like it is not resized"
    settings = recipe.finished(["checkpoint=a.ckpt", "dataset.folder=img"])
    assert (settings.adapter.rank, settings.adapter.alpha) == (12, 3.6)


@pytest.mark.parametrize(
    ("comment", "kept", "rank"),
    [
        ("dimension is resized from 64 to 8; Dynamic resize with sv_ratio: 5 from 96; ", None, "96"),
        ("Dynamic resize with sv_cumulative: 0.9 from 24", None, "24"),
        ("trained from 12 pictures; Dynamic resize", "trained from 12 pictures; Dynamic resize", None),
        ("None", None, None),
    ],
)
def test_comments_of_tools(tmp_path: Path, comment: str, kept: str | None, rank: str | None) -> None:
    recipe = lora(tmp_path, layers(RANKS, 1.0), ss_network_dim="Dynamic", ss_training_comment=comment)
    assert recipe.get("saving.comment") == kept
    assert recipe.keys.count("ss_training_comment") == 1
    note = dict(recipe.changed)["ss_network_dim"]
    assert (f"adapter.rank={rank}" in note) if rank else "resized" not in note


def test_convolutions_have_a_rank_of_their_own(tmp_path: Path) -> None:
    convolutions = layers({"0_resnets_0_conv1": 2, "1_resnets_0_conv1": 7}, 0.5, kernel=3)
    args = json.dumps({"conv_dim": "Dynamic", "conv_alpha": "Dynamic", "rank_dropout": "0.2"})
    facts = {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic", "ss_network_args": args}
    recipe = lora(tmp_path, layers(RANKS, 0.25) | convolutions, **facts)
    assert recipe.problems == [] and sizes(recipe) == (12, 3.0, 7, 3.5)
    assert recipe.get("adapter.rank_dropout") == 0.2
    recipe = lora(tmp_path, layers(RANKS, 0.25) | convolutions, ss_network_args=json.dumps({"conv_dim": "Dynamic"}))
    assert recipe.problems == [] and sizes(recipe) == (12, 3.0, 7, 3.5)


@pytest.mark.parametrize("nothing", ["None", "", " ", "null", "4,8", "Dynamic", "dynamic"])
def test_what_is_no_number_is_found_in_the_tensors(tmp_path: Path, nothing: str) -> None:
    facts = {"ss_network_dim": nothing, "ss_network_alpha": nothing}
    recipe = lora(tmp_path, layers(RANKS, 0.25), **facts)
    assert recipe.problems == [] and sizes(recipe)[:2] == (12, 3.0)
    assert sorted(key for key in recipe.keys if key.startswith("ss_network")) == sorted(facts)


def test_numbers_in_the_metadata_count(tmp_path: Path) -> None:
    recipe = lora(tmp_path, layers(RANKS, 0.25), ss_network_dim="16", ss_network_alpha="9")
    assert sizes(recipe) == (16, 9.0, None, None) and recipe.changed == []
    recipe = lora(tmp_path, layers(RANKS, 0.25), ss_network_dim="16")
    assert sizes(recipe)[:2] == (16, 4.0), "alpha / rank is that of the file"


def test_the_kind_is_that_of_most_layers_where_nothing_names_it(tmp_path: Path) -> None:
    tensors = {}
    for number in range(3):
        start = f"lora_unet_down_blocks_{number}_attentions_0_proj_in"
        for half in ("w1", "w2"):
            tensors[f"{start}.hada_{half}_a"] = torch.randn(30, 6)
            tensors[f"{start}.hada_{half}_b"] = torch.randn(6, 20)
        tensors[f"{start}.alpha"] = torch.tensor(4.5)
    recipe = lora(tmp_path, tensors)
    assert (recipe.get("adapter.kind"), *sizes(recipe)[:2]) == ("loha", 6, 4.5)
    assert lora(tmp_path, tensors, ss_network_module="networks.lora").get("adapter.kind") == "lora"


def test_a_word_without_tensors_that_explain_it_is_still_a_problem(tmp_path: Path) -> None:
    recipe = lora(tmp_path, {"lora_unet_x.alpha": torch.ones(1)}, ss_network_dim="Dynamic")
    assert [path for path, _ in recipe.problems] == ["adapter.rank"]


def test_what_resizing_here_writes_is_read_back(tmp_path: Path) -> None:
    convolutions = layers({"0_resnets_0_conv1": 6, "1_resnets_0_conv1": 9}, 0.5, kernel=3)
    facts = {"ss_network_dim": "12", "ss_network_alpha": "6", "ss_base_model_version": "sd_v1", "ss_seed": "23"}
    write_tensors(tmp_path / "big.safetensors", layers(RANKS, 0.5) | convolutions, metadata=facts)
    out = tmp_path / "small.safetensors"
    report = resize_lora(tmp_path / "big.safetensors", out, rank=8, criterion=Criterion("sv_fro", 0.8))
    ranks = {layer.rank for layer in report.layers if "conv" not in layer.name}
    assert len(ranks) > 1, "the file says Dynamic"
    recipe = read_recipe(out)
    largest = max(ranks)
    most = max(layer.rank for layer in report.layers if "conv" in layer.name)
    assert recipe.problems == [] and sizes(recipe) == (largest, float(largest), most, float(most))
    assert recipe.get("seed") == 23


@pytest.mark.parametrize(
    ("printed", "rate"), [("[5e-05]", 5e-5), ("[5e-05, 1e-05]", [5e-5, 1e-5]), ("[]", None), ("None", None)]
)
def test_rates_of_text_encoders_as_later_versions_print_them(tmp_path: Path, printed: str, rate: object) -> None:
    recipe = lora(tmp_path, layers(RANKS, 1.0), ss_text_encoder_lr=printed)
    assert recipe.problems == [] and recipe.get("optimizer.text_encoder_lr") == rate
    assert recipe.keys.count("ss_text_encoder_lr") == 1


@pytest.mark.parametrize("text", ["", " ", "None", "null", '{"algo": "None", "conv_dim": ""}', '{"algo": null}', "{}"])
def test_arguments_of_the_network_that_say_nothing(tmp_path: Path, text: str) -> None:
    recipe = lora(tmp_path, {"lora_unet_x.alpha": torch.ones(1)}, ss_network_args=text)
    assert recipe.problems == [] and recipe.get("adapter") is None
    assert "ss_network_args" in {key.partition(":")[0] for key in recipe.idle}


def test_old_spellings_in_metadata(tmp_path: Path) -> None:
    recipe = lora(tmp_path, layers(RANKS, 1.0), ss_caption_extention=".cap", ss_dataset_repeats="3")
    assert recipe.unknown == [] and recipe.get("dataset.caption_extensions") == [".cap"]
    assert recipe.get("dataset.repeats") == 3


def test_a_file_that_is_no_whole_lora_tells_nothing(tmp_path: Path) -> None:
    from loraloom.formats.tensors import open_tensors

    write_tensors(tmp_path / "x.safetensors", {"some.weight": torch.ones(3, 4)})
    with open_tensors(tmp_path / "x.safetensors") as file:
        assert (lora_sizes(file).kind, dict(lora_sizes(file).sizes)) == ("", {})
