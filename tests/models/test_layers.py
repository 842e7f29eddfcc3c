"""Layers: values and gradients against plain torch, what the graph keeps, construction without memory."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loraloom.models.layers import (
    Conv2d,
    Embedding,
    GroupNorm,
    LayerNorm,
    Linear,
    ProjectionRows,
    geglu,
    group_norm_silu,
)

CONVOLUTIONS = [(1, 1, 0), (3, 1, 1), (3, 2, 1), (3, 2, 0)]  # kernel, stride, padding


class Fused(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.randn(3 * width))
        self.q, self.k, self.v = (ProjectionRows(self, index) for index in range(3))


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


def saved_bytes(output_of: object, *inputs: Tensor) -> tuple[Tensor, int]:
    """The output, and the bytes of distinct floating tensors that its graph keeps."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = output_of(*inputs)  # type: ignore[operator]
    return output, sum(kept.values())


def gradients(output: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    probe = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return torch.autograd.grad((output * probe).sum(), inputs)


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [False, True])
def test_linear_equals_torch_on_the_stored_values(stored: torch.dtype, bias: bool, trained: bool) -> None:
    layer = Linear(5, 7, bias=bias).to(stored).requires_grad_(trained)
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = layer.weight.detach().double().requires_grad_(True)
    offset = layer.bias.detach().double().requires_grad_(True) if bias else None

    ours, theirs = layer(x), F.linear(x, weight, offset)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    parameters = [p for p in (weight, offset) if p is not None]
    expected = gradients(theirs, x, *parameters)
    found = gradients(ours, x, *(layer.parameters() if trained else ()))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-13, atol=1e-14)
    for mine, reference in zip(found[1:], expected[1:], strict=False):
        assert mine.dtype == stored
        torch.testing.assert_close(mine, reference.to(stored))


@pytest.mark.parametrize("stored", [torch.float64, torch.float16])
@pytest.mark.parametrize(("kernel", "stride", "padding"), CONVOLUTIONS)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolution_equals_torch_on_the_stored_values(
    stored: torch.dtype, kernel: int, stride: int, padding: int, trained: bool, channels_last: bool
) -> None:
    layer = Conv2d(3, 4, kernel, stride=stride, padding=padding).to(stored).requires_grad_(trained)
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_(True)
    weight, bias = (p.detach().double().requires_grad_(True) for p in (layer.weight, layer.bias))

    ours, theirs = layer(x), F.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    found = gradients(ours, x, *(layer.parameters() if trained else ()))
    for mine, reference in zip(found, gradients(theirs, x, weight, bias), strict=False):
        torch.testing.assert_close(mine, reference.to(mine.dtype))


def test_gradient_of_the_frozen_layers_survives_gradcheck() -> None:
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    conv = frozen(Conv2d(3, 2, 3, padding=1).half())
    assert torch.autograd.gradcheck(conv, (x,))
    assert torch.autograd.gradcheck(frozen(Linear(5, 4).half()), (x,))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_graph_keeps_only_the_stored_weight(stored: torch.dtype) -> None:
    tokens = torch.randn(4, 50, 64, requires_grad=True)
    layer = frozen(Linear(64, 128).to(stored))
    _, kept = saved_bytes(layer, tokens)
    assert kept == layer.weight.nbytes  # type: ignore[operator, union-attr]

    image = torch.randn(2, 8, 32, 32, requires_grad=True)
    convolution = frozen(Conv2d(8, 16, 3, padding=1).to(stored))
    _, kept = saved_bytes(convolution, image)
    assert kept == convolution.weight.nbytes  # type: ignore[operator, union-attr]


def test_nothing_is_kept_without_gradients() -> None:
    layer = frozen(Conv2d(3, 4, 3, padding=1).half())
    output, kept = saved_bytes(layer, torch.randn(1, 3, 8, 8))
    assert kept == 0
    assert not output.requires_grad


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_norms_compute_in_the_dtype_of_the_input(stored: torch.dtype) -> None:
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64, requires_grad=True)
    group = GroupNorm(4, 8, eps=1e-6).to(stored)
    nn.init.normal_(group.weight)
    expected = F.group_norm(x, 4, group.weight.double(), group.bias.double(), 1e-6)
    torch.testing.assert_close(group(x), expected, rtol=0, atol=0)

    layer = LayerNorm(4).to(stored)
    nn.init.normal_(layer.weight)
    expected = F.layer_norm(x, (4,), layer.weight.double(), layer.bias.double(), 1e-5)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("stored", [torch.float64, torch.float16])
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_norm_with_silu_equals_the_two_steps(stored: torch.dtype, trained: bool, channels_last: bool) -> None:
    norm = GroupNorm(4, 8, eps=1e-5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm = norm.to(stored).requires_grad_(trained)
    x = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format).requires_grad_(True)
    weight, bias = (p.detach().double().requires_grad_(True) for p in (norm.weight, norm.bias))

    ours, theirs = group_norm_silu(norm, x), F.silu(F.group_norm(x, 4, weight, bias, 1e-5))
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    found = gradients(ours, x, *(norm.parameters() if trained else ()))
    for mine, reference in zip(found, gradients(theirs, x, weight, bias), strict=False):
        torch.testing.assert_close(mine, reference.to(mine.dtype))
    with torch.no_grad():
        before = x.clone()
        torch.testing.assert_close(group_norm_silu(norm, x), theirs, rtol=1e-13, atol=1e-13)
        assert torch.equal(x, before)


def test_norm_with_silu_keeps_only_its_input() -> None:
    norm = GroupNorm(4, 8).requires_grad_(False)
    x = torch.randn(2, 8, 64, 64, requires_grad=True)
    _, kept = saved_bytes(lambda x: group_norm_silu(norm, x), x)
    assert kept == x.nbytes + norm.weight.nbytes + norm.bias.nbytes


def test_geglu_equals_the_separate_steps() -> None:
    x = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    value, gate = x.chunk(2, -1)
    ours, theirs = geglu(x), value * F.gelu(gate)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradients(ours, x), gradients(theirs, x), rtol=1e-13, atol=1e-14)
    assert torch.autograd.gradcheck(geglu, (x,))
    _, kept = saved_bytes(geglu, x)
    assert kept == x.nbytes


@pytest.mark.parametrize("layer", [Linear(4, 6), Conv2d(4, 6, 3, padding=1)])
def test_autocast_decides_the_precision_and_gradients_keep_that_of_the_input(layer: nn.Module) -> None:
    x = torch.randn(2, 4, 4, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = frozen(layer)(x)
    assert output.dtype == torch.bfloat16
    (gradient,) = gradients(output, x)
    assert gradient.dtype == torch.float32
    (exact,) = gradients(layer(x), x)
    assert (gradient - exact).norm() < 0.02 * exact.norm()


def test_embedding_casts_only_the_rows_it_looked_up() -> None:
    table = Embedding(10, 4).half()
    ids = torch.tensor([[1, 1, 9]])
    assert table(ids).dtype == torch.float16
    torch.testing.assert_close(table(ids, torch.float32), table.weight[ids].float(), rtol=0, atol=0)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_projection_rows_are_the_rows_of_the_fused_weight(stored: torch.dtype) -> None:
    fused = Fused().to(stored)
    x = torch.randn(2, 6)
    together = F.linear(x, fused.in_proj_weight.float(), fused.in_proj_bias.float())
    torch.testing.assert_close(torch.cat([fused.q(x), fused.k(x), fused.v(x)], -1), together)
    assert (fused.k.in_features, fused.k.out_features) == (6, 6)
    assert fused.v.weight.data_ptr() == fused.in_proj_weight[12:].data_ptr()


def test_projection_rows_follow_their_owner() -> None:
    fused = Fused()
    assert set(fused.state_dict()) == {"in_proj_weight", "in_proj_bias"}
    replacement = {name: torch.ones_like(tensor) for name, tensor in fused.state_dict().items()}
    fused.load_state_dict(replacement, assign=True)
    assert torch.equal(fused.k.weight, torch.ones(6, 6))
    clone = copy.deepcopy(fused)
    with torch.no_grad():
        clone.in_proj_weight.zero_()
    assert torch.equal(clone.q.weight, torch.zeros(6, 6))
    assert torch.equal(fused.q.weight, torch.ones(6, 6))


def test_projection_rows_give_the_gradient_to_the_input_and_to_the_fused_weight() -> None:
    fused = Fused().double()
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    fused.k(x).sum().backward()
    assert fused.in_proj_weight.grad is not None
    assert torch.count_nonzero(fused.in_proj_weight.grad[:6]) == 0
    torch.testing.assert_close(fused.in_proj_weight.grad[6:12], x.detach().sum(0).expand(6, 6))


def test_first_weights_are_drawn_only_where_there_is_memory_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (Linear(12, 5), Conv2d(3, 5, 2), GroupNorm(2, 6), LayerNorm(6), Embedding(7, 5)):
        plain = next(base for base in type(layer).__mro__ if base.__module__.startswith("torch."))
        torch.manual_seed(3)
        layer.reset_parameters()
        drawn = copy.deepcopy(layer.state_dict())
        torch.manual_seed(3)
        plain.reset_parameters(layer)
        assert all(torch.equal(drawn[name], tensor) for name, tensor in layer.state_dict().items())
    for name in ("kaiming_uniform_", "uniform_", "normal_", "ones_", "zeros_"):
        monkeypatch.setattr(nn.init, name, None)
    with torch.device("meta"):
        Linear(12, 5), Conv2d(3, 5, 2), GroupNorm(2, 6), LayerNorm(6), Embedding(7, 5)


def test_layers_are_built_on_meta_and_take_mapped_tensors() -> None:
    with torch.device("meta"):
        layers = nn.ModuleDict({"conv": Conv2d(4, 8, 3, padding=1), "linear": Linear(8, 2), "norm": GroupNorm(2, 8)})
    assert all(parameter.is_meta for parameter in layers.parameters())
    tensors = {name: torch.randn(meta.shape).half() for name, meta in layers.state_dict().items()}
    layers.load_state_dict(tensors, assign=True)
    assert layers["conv"].weight.data_ptr() == tensors["conv.weight"].data_ptr()
    assert layers["norm"](layers["conv"](torch.randn(1, 4, 5, 5))).dtype == torch.float32
