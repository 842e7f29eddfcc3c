"""PEFT's configuration beside a LoRA: patterns from strangers cannot hang the reader."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft.utils.other import get_pattern_key

from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.tensors import write_tensors
from loraloom.weights.inspect import inspect_file

LAYER = "down_blocks.0.attentions.1.to_q"


def alpha_of(folder: Path, patterns: dict[str, float], **more: object) -> float:
    path = folder / "x.safetensors"
    tensors = {f"unet.{LAYER}.lora_A.weight": torch.ones(2, 5), f"unet.{LAYER}.lora_B.weight": torch.ones(3, 2)}
    config = {"unet.lora_alpha": 7.0, "unet.alpha_pattern": patterns}
    config |= {f"unet.{key}": value for key, value in more.items()}
    write_tensors(path, tensors, metadata={"lora_adapter_metadata": json.dumps(config)})
    return float(read_adapter_file(path).layers[f"unet.{LAYER}"]["alpha"])


@pytest.mark.parametrize(
    "pattern",
    [
        "to_q", "o_q", "attentions.1.to_q", "attentions_1.to_q", "attentions.0.to_q", ".*to_q", "down_blocks.*",
        "^down_blocks.0.attentions.1.to_q", r"to_[qk]", r"to_q|to_k", "to_q$", "^to_q", "", ".", "to-q", "t?o_q",
        "unet.down_blocks.0.attentions.1.to_q", "(?:to_q)",
    ],
)  # fmt: skip
def test_a_pattern_means_what_it_means_to_peft(pattern: str, tmp_path: Path) -> None:
    theirs = get_pattern_key([pattern], LAYER) == pattern
    assert alpha_of(tmp_path, {pattern: 3.0}) == (3.0 if theirs else 7.0)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*)*x", ".*.*.*.*.*x", "(a|aa)+$", "(a|a){30}x", "a" * 301 + "*"])
def test_patterns_that_could_take_for_ever_are_refused(pattern: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="could take for ever"):
        alpha_of(tmp_path, {pattern: 3.0})


def test_patterns_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="is not a regular expression"):
        alpha_of(tmp_path, {"[a": 3.0})
    with pytest.raises(AdapterError, match="holds 4001 patterns"):
        alpha_of(tmp_path, {f"x{number}": 3.0 for number in range(4001)})


@pytest.mark.parametrize("alpha", ["much", True, [3], 10**400, -(10**39), 1e39, float("nan"), float("inf")])
def test_an_alpha_that_no_layer_can_have(alpha: object, tmp_path: Path) -> None:
    """Refused by the reader; ``inspect`` says the same and no number."""
    with pytest.raises(AdapterError, match=r"x\.safetensors: the alpha of layer .* in PEFT's configuration"):
        alpha_of(tmp_path, {"to_q": alpha})  # type: ignore[dict-item]
    facts = inspect_file(tmp_path / "x.safetensors", layers=True).facts
    assert "in PEFT's configuration" in facts["cannot be used"]
    assert "configuration" not in facts["alpha"]


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_7", "OLoRA", "loftq", "corda", "lora_ga"])
def test_factors_of_a_changed_model_are_refused(start: str, tmp_path: Path) -> None:
    """PEFT changed the weights that these factors are added to; on a checkpoint's they paint something else."""
    with pytest.raises(AdapterError, match=f"init_lora_weights='{start}': its training changed") as caught:
        alpha_of(tmp_path, {}, init_lora_weights=start)
    assert "path_initial_model_for_weight_conversion" in caught.value.hint
    assert "its training changed" in inspect_file(tmp_path / "x.safetensors").facts["cannot be used"]


@pytest.mark.parametrize("start", ["gaussian", "eva", "orthogonal", True, False, None])
def test_other_ways_to_begin_change_nothing_else(start: object, tmp_path: Path) -> None:
    assert alpha_of(tmp_path, {}, init_lora_weights=start) == 7


def test_inspect_shows_the_alphas_that_act(tmp_path: Path) -> None:
    assert alpha_of(tmp_path, {"to_q": 0.7}) == pytest.approx(0.7)
    assert inspect_file(tmp_path / "x.safetensors").facts["alpha"] == "0.7 (from PEFT's configuration)"
    assert alpha_of(tmp_path, {"to_k": 0.7}) == 7
    assert inspect_file(tmp_path / "x.safetensors").facts["alpha"] == "7 (from PEFT's configuration)"
    assert alpha_of(tmp_path, {"to_q": 0}) == 0
    assert "alpha 0" in inspect_file(tmp_path / "x.safetensors").facts


def test_patterns_that_inspect_cannot_use_either(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="not a regular expression") as caught:
        alpha_of(tmp_path, {"(to_q": 0.7})
    path = tmp_path / "x.safetensors"
    assert caught.value.problem == f"{path}: {inspect_file(path).facts['cannot be used']}"
