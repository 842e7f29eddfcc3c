"""PEFT as an oracle for the kinds it has: what it saves does here what it does there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import nn

from loraloom.adapters.attach import attach, read_adapters
from loraloom.adapters.initial import principal_factors
from loraloom.formats.peft_config import peft_configs

from .layers import INPUTS, LAYERS, made, spot

CASES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "lora": (LoraConfig, {"lora_alpha": 3}),
    "rank-stabilized": (LoraConfig, {"lora_alpha": 3, "use_rslora": True}),
    "an alpha of its own": (LoraConfig, {"lora_alpha": 3, "alpha_pattern": {"a.b": 5}}),
    "an alpha by an expression": (LoraConfig, {"lora_alpha": 3, "alpha_pattern": {"x.*": 9, r"a\.[bc]": 5}}),
    "an alpha by one with a caret": (LoraConfig, {"lora_alpha": 3, "alpha_pattern": {"^a..": 7}}),
    "an alpha that no pattern names": (LoraConfig, {"lora_alpha": 3, "alpha_pattern": {"b.a": 9, "[c-z]": 8}}),
    "dora": (LoraConfig, {"lora_alpha": 3, "use_dora": True}),
    "loha": (LoHaConfig, {"alpha": 3}),
    "loha, effective convolution": (LoHaConfig, {"alpha": 3, "use_effective_conv2d": True}),
    "lokr": (LoKrConfig, {"alpha": 3}),
    "lokr, both sides whole": (LoKrConfig, {"alpha": 3, "r": 40}),
    "lokr, whole, ranks by expressions": (
        LoKrConfig,
        {"alpha": 3, "r": 40, "rank_pattern": {"a.*": 50}, "alpha_pattern": {r".*\.b": 5, "a.b": 6}},
    ),
    "lokr both": (LoKrConfig, {"alpha": 3, "r": 1, "decompose_both": True, "decompose_factor": 4}),
    "lokr, effective convolution": (LoKrConfig, {"alpha": 3, "use_effective_conv2d": True}),
}


class Outer(nn.Module):
    """A model whose one layer is called ``a.b``."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"b": layer})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.a["b"](x)
        return output


@pytest.mark.parametrize("kind", ["linear", "conv3"])
@pytest.mark.parametrize("case", CASES)
def test_what_peft_saves(case: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    layer, x = LAYERS[kind](), torch.randn(INPUTS[kind])
    config, options = CASES[case]
    model = get_peft_model(Outer(layer), config(**{"r": 2, **options}, target_modules=["a.b"]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape)
    with torch.no_grad():
        theirs = model.eval()(x)
    model.save_pretrained(str(tmp_path))
    plain = model.unload().a["b"]
    adapters = read_adapters(tmp_path / "adapter_model.safetensors", [spot(plain)])
    with torch.no_grad(), attach(adapters, {"lora_unet_a_b": plain}):
        assert torch.allclose(plain(x), theirs, atol=2e-5)


def test_the_configuration_in_the_header_of_a_diffusers_file(tmp_path: Path) -> None:
    header = {"lora_adapter_metadata": '{"unet.lora_alpha": 4, "unet.r": 2, "text_encoder.lora_alpha": 1}'}
    configs = peft_configs(tmp_path / "pytorch_lora_weights.safetensors", header)
    assert configs == {"unet": {"lora_alpha": 4, "r": 2}, "text_encoder": {"lora_alpha": 1}}
    assert peft_configs(tmp_path / "x.safetensors", {}) == {}


@pytest.mark.parametrize("kind", ["linear", "conv3"])
def test_principal_factors_are_those_of_peft(kind: str) -> None:
    layer = LAYERS[kind]()
    weight = layer.weight.detach().clone().flatten(1)  # type: ignore[operator,union-attr]
    adapter = made(layer, {"kind": "lora", "init": "pissa", "rank": 3}, alpha=1.5)
    ours = adapter.up.flatten(1) @ adapter.down.flatten(1) * 0.5  # type: ignore[operator,union-attr]
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(ours, (u[:, :3] * values[:3]) @ v[:3], atol=1e-5)
    if kind == "linear":
        config = LoraConfig(r=3, lora_alpha=3, target_modules=["a.b"], init_lora_weights="pissa")
        theirs = get_peft_model(Outer(layer), config).base_model.model.a["b"]
        assert torch.allclose(theirs.get_delta_weight("default"), ours, atol=1e-5)


def test_principal_factors_of_a_large_matrix() -> None:
    """The quick way through a random subspace, on singular values that fall as those of trained weights do."""
    random = torch.Generator().manual_seed(1)
    u, _ = torch.linalg.qr(torch.randn(200, 120, generator=random))
    v, _ = torch.linalg.qr(torch.randn(120, 120, generator=random))
    values = 3 / torch.arange(1, 121) ** 0.7
    weight = (u * values) @ v.T
    down, up = principal_factors(weight, 8, 0, "x")
    best = (u[:, :8] * values[:8]) @ v[:, :8].T
    assert float((up @ down - best).norm() / best.norm()) < 1e-3
    assert torch.allclose(up.norm(dim=0), values[:8].sqrt(), rtol=1e-3)
    assert torch.equal(principal_factors(weight, 8, 0, "x")[0], down)
