"""The table of programs that read each kind of file: true of the libraries that are here, and in the docs as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loraloom.adapters.readers import PROGRAMS, as_table, reader_remark
from loraloom.adapters.settings import AdapterSettings
from loraloom.formats.adapter_file import AdapterTarget, layer_keys
from loraloom.formats.adapter_kinds import ADAPTERS, trained_kinds
from loraloom.formats.adapter_writer import write_lora
from loraloom.weights.read_back import read_back
from random_loras import targets_of

ROOT = Path(__file__).parents[2]
TARGETS: dict[str, AdapterTarget] = {target.name: target for target in targets_of("sd1")}
LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k"
POINTWISE = "lora_unet_mid_block_attentions_0_proj_in"
KERNEL = "lora_unet_mid_block_resnets_0_conv1"
KINDS: list[dict[str, Any]] = [{"kind": name} for name in trained_kinds()] + [{"kind": "dora", "dora_axis": "output"}]


def trained(settings: AdapterSettings, name: str) -> dict[str, torch.Tensor]:
    target = TARGETS[name]
    base = torch.randn(target.shape, generator=torch.Generator().manual_seed(3))
    adapter = ADAPTERS.load(settings.kind).create(target, settings, 2, 1.5, seed=1, base=base)
    random = torch.Generator().manual_seed(4)
    for parameter in adapter.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random) * 0.1
    return {role: tensor.detach() for role, tensor in adapter.tensors().items()}


def of_program(settings: AdapterSettings, program: str) -> str:
    return str(ADAPTERS.load(settings.kind).reading(settings).by[PROGRAMS.index(program)])


@pytest.mark.parametrize("values", KINDS, ids=str)
def test_the_loader_of_lycoris(values: dict[str, Any]) -> None:
    from lycoris.modules import get_module, make_module

    settings = AdapterSettings(**values)
    out, columns = TARGETS[LINEAR].shape
    keys = layer_keys("x", trained(settings, LINEAR))
    try:
        algorithm, weights = get_module(keys, "x")
        make_module(algorithm, weights, "x", nn.Linear(columns, out, bias=False))
        loaded = True
    except (RuntimeError, TypeError):
        loaded = False
    assert loaded == of_program(settings, "LyCORIS").startswith("yes")


@pytest.mark.parametrize("values", KINDS, ids=str)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_diffusers(values: dict[str, Any], tmp_path: Path) -> None:
    settings, path = AdapterSettings(**values), tmp_path / "x.safetensors"
    write_lora(
        path, {LINEAR: trained(settings, LINEAR)}, metadata={"ss_base_model_version": "sd_v1"}, dtype=torch.float32
    )
    report = read_back(path)
    said = of_program(settings, "diffusers")
    assert bool(report.reader and not report.problem) == (said.startswith("yes") and "after" not in said.split(";")[0])


@pytest.mark.parametrize("name", [POINTWISE, KERNEL])
def test_ia3_of_convolutions_is_of_inputs(name: str) -> None:
    """As AUTOMATIC1111 computes: a product with the weight, where only factors of inputs broadcast right."""
    stored = trained(AdapterSettings(kind="ia3"), name)
    target = TARGETS[name]
    assert stored["on_input"] == 1 and stored["weight"].shape == (1, target.shape[1], *(1 for _ in target.shape[2:]))
    base = torch.randn(target.shape, generator=torch.Generator().manual_seed(5))
    adapter = ADAPTERS.load("ia3").from_tensors(stored, target)
    torch.testing.assert_close(adapter.delta(base), base * stored["weight"])


def test_linear_layers_of_ia3_are_as_before() -> None:
    stored = trained(AdapterSettings(kind="ia3"), LINEAR)
    assert stored["on_input"] == 0 and stored["weight"].shape == (TARGETS[LINEAR].shape[0],)


def test_every_kind_that_can_be_trained_has_a_row() -> None:
    for name in ADAPTERS:
        assert ADAPTERS.load(name).readings


def test_a_kind_that_not_all_programs_read_says_so() -> None:
    assert reader_remark(AdapterSettings()) is None
    told = reader_remark(AdapterSettings(kind="ia3")) or ""
    assert "Not read right by Forge; ComfyUI; LyCORIS (" in told and "AUTOMATIC1111 (since 1.5" in told
    told = reader_remark(AdapterSettings(kind="dora", dora_axis="output")) or ""
    assert "AUTOMATIC1111 (a wrong result" in told and "Read by Loraloom; LyCORIS; diffusers (after" in told


def test_the_docs_have_the_table() -> None:
    assert as_table() in (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
