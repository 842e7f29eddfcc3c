"""LyCORIS as an oracle: what its modules make of a layer is what their saved tensors make of it here."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris.functional import factorization
from lycoris.modules.full import FullModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import Tensor, nn

from loraloom.adapters.attach import AdapterSet, attach, read_adapters
from loraloom.adapters.lokr import split_dimension
from loraloom.formats.adapter_file import layer_keys
from loraloom.formats.tensors import write_tensors

from .layers import LAYERS, SETTINGS, made, randomise, spot

NAME = "lora_unet_a_b"
MODULES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "lora": (LoConModule, {"alpha": 3}),
    "rank-stabilized": (LoConModule, {"alpha": 3, "rs_lora": True}),
    "tucker": (LoConModule, {"use_tucker": True, "alpha": 3}),
    "dora by output": (LoConModule, {"weight_decompose": True}),
    "dora by input": (LoConModule, {"weight_decompose": True, "wd_on_out": False}),
    "loha": (LohaModule, {"alpha": 2}),
    "loha tucker": (LohaModule, {"use_tucker": True, "alpha": 2}),
    "loha dora": (LohaModule, {"weight_decompose": True, "wd_on_out": False}),
    "lokr": (LokrModule, {"alpha": 2}),
    "lokr factor": (LokrModule, {"alpha": 2, "factor": 2, "lora_dim": 1}),
    "lokr tucker": (LokrModule, {"alpha": 2, "factor": 2, "use_tucker": True}),
    "lokr both": (LokrModule, {"alpha": 2, "factor": 4, "decompose_both": True, "lora_dim": 1}),
    "lokr full": (LokrModule, {"full_matrix": True}),
    "lokr dora": (LokrModule, {"factor": 2, "weight_decompose": True}),
    "ia3": (IA3Module, {}),
    "ia3 on input": (IA3Module, {"train_on_input": True}),
    "full": (FullModule, {}),
}


def randomised(module: nn.Module, seed: int) -> nn.Module:
    random = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=random)
    return module.eval()


def written(tmp_path: Path, stored: dict[str, Tensor]) -> Path:
    write_tensors(tmp_path / "x.safetensors", {f"{NAME}.{key}": t.detach().contiguous() for key, t in stored.items()})
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("kind", ["linear", "conv1", "conv3"])
@pytest.mark.parametrize("case", MODULES)
def test_a_file_of_lycoris_does_here_what_it_does_there(case: str, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    layer = LAYERS[kind]()
    x = torch.randn({"linear": (2, 5, 12), "conv1": (2, 12, 5, 4), "conv3": (2, 12, 8, 7)}[kind])
    cls, options = MODULES[case]
    module = randomised(cls(NAME, layer, 1.0, **{"lora_dim": 2, **options}), 5)
    with torch.no_grad():
        theirs = module(x)
        stored = module.custom_state_dict() if cls not in (IA3Module,) else dict(module.state_dict())
        if cls is FullModule:  # not applied to the layer, so its tensors are the difference already
            stored = {"diff": module.weight, "diff_b": module.bias}
    adapters = read_adapters(written(tmp_path, stored), [spot(layer)])
    with torch.no_grad(), attach(adapters, {NAME: layer}):
        assert torch.allclose(layer(x), theirs, atol=2e-5)
    adapter = adapters.adapter(NAME)
    with torch.no_grad():
        layer.weight.data += adapter.delta(layer.weight.data)
        bias = adapter.bias_delta()
        if bias is not None:
            layer.bias.data += bias  # type: ignore[union-attr]
        assert torch.allclose(layer.forward(x), theirs, atol=2e-5)


OURS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "lora": lambda layer: LoConModule(NAME, layer, lora_dim=2, alpha=1.5),
    "lora pissa": lambda layer: LoConModule(NAME, layer, lora_dim=4, alpha=3.0),
    "dora": lambda layer: LoConModule(NAME, layer, lora_dim=2, alpha=1.5, weight_decompose=True, wd_on_out=False),
    "dora output": lambda layer: LoConModule(NAME, layer, lora_dim=2, alpha=1.5, weight_decompose=True),
    "loha": lambda layer: LohaModule(NAME, layer, lora_dim=2, alpha=1.5),
    "lokr": lambda layer: LokrModule(NAME, layer, lora_dim=2, alpha=1.5),
    "lokr factor": lambda layer: LokrModule(NAME, layer, lora_dim=2, alpha=1.5, factor=2),
    "lokr both": lambda layer: LokrModule(NAME, layer, lora_dim=1, alpha=1.5, factor=4, decompose_both=True),
    "lokr full": lambda layer: LokrModule(NAME, layer, lora_dim=2, alpha=1.5, full_matrix=True),
    "ia3": lambda layer: IA3Module(NAME, layer, train_on_input=isinstance(layer, nn.Conv2d)),
}


@pytest.mark.parametrize("kind", ["linear", "conv3"])
@pytest.mark.parametrize("case", OURS)
def test_our_tensors_load_into_lycoris_and_do_the_same(case: str, kind: str) -> None:
    torch.manual_seed(6)
    layer = LAYERS[kind]()
    x = torch.randn({"linear": (2, 5, 12), "conv3": (2, 12, 8, 7)}[kind])
    adapter = randomise(made(layer, SETTINGS[case]))
    with torch.no_grad(), attach(AdapterSet({spot(layer): adapter}), {NAME: layer}):
        ours = layer(x)
    module = OURS[case](layer)
    stored = {key.removeprefix(f"{NAME}."): t for key, t in layer_keys(NAME, adapter.tensors()).items()}
    if "alpha" in stored and "lokr full" not in case:
        assert float(stored["alpha"]) == float(module.alpha)
    missing, unexpected = module.load_state_dict(stored, strict=False)
    assert not unexpected and set(missing) <= {"scalar"}
    with torch.no_grad():
        assert torch.allclose(module.eval()(x), ours, atol=2e-5)


def test_a_normalization(tmp_path: Path) -> None:
    layer, x = nn.GroupNorm(3, 12), torch.randn(2, 12, 4, 4)
    module = randomised(NormModule(NAME, layer), 7)
    with torch.no_grad():
        theirs = module(x)
    stored = {key: t for key, t in module.state_dict().items() if key in ("w_norm", "b_norm")}
    adapters = read_adapters(written(tmp_path, stored), [spot(layer)])
    with torch.no_grad(), attach(adapters, {NAME: layer}):
        assert torch.allclose(layer(x), theirs, atol=1e-5)


def test_dimensions_are_split_alike() -> None:
    sizes = (1, 2, 12, 20, 127, 128, 250, 320, 360, 512, 640, 768, 1024, 1280, 2048, 2560, 3072, 5120, 10240)
    for size, factor in itertools.product(sizes, (-1, 1, 2, 3, 4, 5, 8, 16, 24, 100)):
        assert split_dimension(size, factor) == factorization(size, factor), (size, factor)
