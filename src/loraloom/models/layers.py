"""Layers whose weights may be stored in another precision than the one they compute in.

A checkpoint mapped in fp16 can run in fp32 without ever being inflated: each layer casts its weight to the input's
dtype for the moment of use, and the graph keeps only the stored weight. Frozen weights never keep the layer's input
alive for the backward pass, because a frozen layer does not need it.

Inside :func:`recomputing` what norms, activations and concatenations give is not kept for the backward pass either:
it is computed again from their inputs, which the graph keeps anyway, bit for bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from loraloom.models.quantized import QuantizedWeight

__all__ = [
    "Conv2d",
    "Embedding",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "ProjectionRows",
    "TensorModule",
    "attention",
    "concatenate",
    "geglu",
    "gelu",
    "group_norm_silu",
    "linear",
    "quick_gelu",
    "recomputing",
]


# ------------------------------------------------------------------------------------------------ computing again


class _Recipe:
    """How a tensor is computed again; ``result`` is held while more than one user of it is still to come."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        self.function = function
        self.inputs = inputs
        self.versions = [tensor._version for tensor in inputs]
        self.users = 0
        self.result: Tensor | None = None

    def compute(self) -> Tensor:
        """The tensor, once more. Every user asks once; the last one takes the tensor along."""
        result, self.result = self.result, None
        if result is None:
            if self.versions != [tensor._version for tensor in self.inputs]:
                raise RuntimeError("a tensor that others are computed again from was changed in place")
            with torch.no_grad():
                result = self.function(*self.inputs)
        self.users -= 1
        if self.users > 0:
            self.result = result
        return result


class _Packed:
    """What the graph keeps in place of a tensor: its recipe, and which view of the result it was."""

    def __init__(self, recipe: _Recipe, tensor: Tensor) -> None:
        self.recipe = recipe
        self.view = tensor.size(), tensor.stride(), tensor.storage_offset()
        recipe.users += 1


class _Recomputation:
    """The recipes of one scope, by the storage of their tensor; a storage that is gone takes its recipe with it."""

    def __init__(self) -> None:
        self._recipes: dict[int, tuple[weakref.ref[Any], _Recipe]] = {}

    def call(self, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        output = function(*inputs)
        storage = output.untyped_storage()
        recipe = _Recipe(function, tuple(tensor.detach() for tensor in inputs))
        key = storage._cdata
        self._recipes[key] = weakref.ref(storage, lambda _: self._recipes.pop(key, None)), recipe
        return output

    def close(self) -> None:
        """Let go of what would otherwise never be freed: the graph holds on to its hooks, and so to this object."""
        self._recipes.clear()

    def pack(self, tensor: Tensor) -> Tensor | _Packed:
        storage = tensor.untyped_storage()
        known = self._recipes.get(storage._cdata)
        if known is None or known[0]() is not storage:
            return tensor
        return _Packed(known[1], tensor)

    @staticmethod
    def unpack(kept: Tensor | _Packed) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept.recipe.compute().as_strided(*kept.view)


_scope: ContextVar[_Recomputation | None] = ContextVar("recomputation", default=None)


@contextmanager
def recomputing() -> Iterator[None]:
    """Inside, what is cheap to compute again is not kept for the backward pass: norms, activations, concatenations.

    The graph keeps their inputs, which it mostly needs anyway; values and gradients stay the same bit for bit.
    """
    recomputation = _Recomputation()
    token = _scope.set(recomputation)
    try:
        with torch.autograd.graph.saved_tensors_hooks(recomputation.pack, recomputation.unpack):
            yield
    finally:
        _scope.reset(token)
        recomputation.close()


def _cheaply(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)``, computed again on the way back inside :func:`recomputing`."""
    scope = _scope.get()
    return function(*inputs) if scope is None else scope.call(function, *inputs)


# ------------------------------------------------------------------------------------------------ functions


def _as(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def _dense(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A stored weight as a plain tensor of that type."""
    return weight.dequantize(dtype) if isinstance(weight, QuantizedWeight) else weight.to(dtype)


def _needs_graph(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _CastLinear(torch.autograd.Function):
    """x @ W.T + b for a weight stored in another dtype than x: saves W as stored, and x only if W is trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(weight, x if ctx.needs_input_grad[1] else None)
        return F.linear(x, _dense(weight, x.dtype), _as(bias, x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        weight, x = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad.matmul(_dense(weight, grad.dtype))
        rows = grad.reshape(-1, grad.shape[-1])
        if ctx.needs_input_grad[1]:
            grad_weight = rows.T.matmul(x.reshape(-1, x.shape[-1])).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0).to(ctx.bias_dtype)
        return grad_x, grad_weight, grad_bias


class _LeanConv2d(torch.autograd.Function):
    """2-D convolution that saves the stored weight, and x only if the weight is trained.

    torch's own convolution always saves its input, even when the weight is frozen.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.stride, ctx.padding, ctx.input_shape = stride, padding, x.shape
        ctx.save_for_backward(weight, x if ctx.needs_input_grad[1] else None)
        return F.conv2d(x, _dense(weight, x.dtype), _as(bias, x.dtype), stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        weight, x = ctx.saved_tensors
        if x is None:
            x = _shape_only(ctx.input_shape, grad)
        grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            x,
            _dense(weight, grad.dtype),
            None if ctx.bias_dtype is None else [weight.shape[0]],
            ctx.stride,
            ctx.padding,
            (1, 1),
            False,
            (0, 0),
            1,
            ctx.needs_input_grad[:3],
        )
        return grad_x, _as(grad_weight, weight.dtype), _as(grad_bias, ctx.bias_dtype), None, None


def _shape_only(shape: torch.Size, like: Tensor) -> Tensor:
    """A tensor of that shape whose values are never read, laid out in memory as ``like`` is."""
    if like.is_contiguous():
        return like.new_empty(1).expand(shape)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


class _GroupNormSilu(torch.autograd.Function):
    """silu(group_norm(x)) with a frozen norm: saves x and the statistics, and normalizes again on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.groups, ctx.eps = groups, eps
        ctx.save_for_backward(x, weight, bias)
        normalized, _, _ = _group_norm(x, weight, bias, groups, eps)
        return F.silu(normalized, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, weight, bias = ctx.saved_tensors
        normalized, mean, rstd = _group_norm(x, weight, bias, ctx.groups, ctx.eps)
        grad = torch.ops.aten.silu_backward.grad_input(grad, normalized, grad_input=normalized)
        sizes = x.shape[0], x.shape[1], x.shape[2:].numel()
        grad_x, _, _ = torch.ops.aten.native_group_norm_backward(
            grad, x, mean, rstd, weight, *sizes, ctx.groups, (True, False, False)
        )
        return grad_x, None, None, None, None


def _group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalized x, and the mean and inverse deviation of each group; x is contiguous."""
    sizes = x.shape[0], x.shape[1], x.shape[2:].numel()
    return torch.native_group_norm(x, weight, bias, *sizes, groups, eps)


class _Geglu(torch.autograd.Function):
    """value * gelu(gate) that saves nothing but its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        value, gate = x.chunk(2, -1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        value, gate = x.chunk(2, -1)
        grad_x = torch.empty_like(x)
        grad_value, grad_gate = grad_x.chunk(2, -1)
        torch.mul(grad, F.gelu(gate), out=grad_value)
        torch.ops.aten.gelu_backward.grad_input(grad * value, gate, grad_input=grad_gate)
        return grad_x


class _QuickGelu(torch.autograd.Function):
    """x * sigmoid(1.702 x) that saves nothing but its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(1.702 * x).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(1.702 * x)
        slope = (1 - gate).mul_(x).mul_(1.702).add_(1).mul_(gate)
        return slope.mul_(grad)


_cast_linear = cast(Callable[..., Tensor], _CastLinear.apply)
_lean_conv2d = cast(Callable[..., Tensor], _LeanConv2d.apply)
_lean_group_norm_silu = cast(Callable[..., Tensor], _GroupNormSilu.apply)
_lean_geglu = cast(Callable[[Tensor], Tensor], _Geglu.apply)
_lean_quick_gelu = cast(Callable[[Tensor], Tensor], _QuickGelu.apply)


def geglu(x: Tensor) -> Tensor:
    """Gated linear unit with exact gelu: (..., 2 n) -> (..., n), the first half times gelu of the second."""
    return _cheaply(_lean_geglu, x)


def gelu(x: Tensor) -> Tensor:
    """Exact gelu (Hendrycks and Gimpel, arXiv:1606.08415) of x of any shape."""
    return _cheaply(F.gelu, x)


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of gelu that OpenAI's CLIP was trained with, x * sigmoid(1.702 x), for x of any shape."""
    return _cheaply(_lean_quick_gelu, x)


def concatenate(first: Tensor, second: Tensor) -> Tensor:
    """Channels of ``first``, then of ``second``: (B, m, h, w), (B, n, h, w) -> (B, m + n, h, w)."""
    return _cheaply(lambda first, second: torch.cat([first, second], dim=1), first, second)


def attention(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(query @ key.T / sqrt(d)) @ value of (B, heads, m, d), (B, heads, n, d), (B, heads, n, d)."""
    if query.device.type == "meta":
        # Asked for a kernel for no device, torch takes the one that keeps the whole (m, n) matrix; devices do not.
        mixed: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal)[0]
        return mixed
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, x (..., in) and weight (out, in), in x's dtype whatever that of the weight."""
    if weight.dtype == x.dtype and not isinstance(weight, QuantizedWeight):
        return F.linear(x, weight, _as(bias, x.dtype))
    if _needs_graph(x, weight, bias):
        return _cast_linear(x, weight, bias)
    return F.linear(x, _dense(weight, x.dtype), _as(bias, x.dtype))


class TensorModule(nn.Module):
    """A module whose call gives one tensor (nn.Module itself promises nothing to a type checker)."""

    __call__: Callable[..., Tensor]


class _Filled(nn.Module):
    """A layer that gets its weights from a file: built without memory (on the meta device) it draws none.

    torch would go through the motions there all the same, layer by layer, for half of the time that building takes.
    """

    def reset_parameters(self) -> None:
        """Draw the first weights of a layer that has memory."""
        if not any(parameter.is_meta for parameter in self.parameters(recurse=False)):
            super().reset_parameters()  # type: ignore[misc]


class Linear(_Filled, nn.Linear, TensorModule):
    """Linear layer that computes in the input's dtype: (..., in) -> (..., out)."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class Conv2d(_Filled, nn.Conv2d, TensorModule):
    """Square 2-D convolution, zero padding, that computes in the input's dtype: (B, in, H, W) -> (B, out, H', W')."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)

    def forward(self, input: Tensor) -> Tensor:
        weight, bias, dtype = self.weight, self.bias, input.dtype
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        if _needs_graph(input, weight, bias) and not (trained and weight.dtype == dtype):
            return _lean_conv2d(input, weight, bias, self.stride, self.padding)
        return F.conv2d(input, _dense(weight, dtype), _as(bias, dtype), self.stride, self.padding)


class GroupNorm(_Filled, nn.GroupNorm, TensorModule):
    """Group normalization that computes in the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        return _cheaply(self._normalize, input)

    def _normalize(self, input: Tensor) -> Tensor:
        weight, bias = _as(self.weight, input.dtype), _as(self.bias, input.dtype)
        return F.group_norm(input, self.num_groups, weight, bias, self.eps)


def group_norm_silu(norm: GroupNorm, x: Tensor) -> Tensor:
    """``silu(norm(x))`` of x (B, C, h, w).

    Only x is kept for the backward pass when the norm is frozen and nothing is hooked to it.
    """
    if norm.weight.requires_grad or norm.bias.requires_grad or norm._forward_hooks:
        return F.silu(norm(x))

    def normalize(x: Tensor) -> Tensor:
        weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
        return _lean_group_norm_silu(x, weight, bias, norm.num_groups, norm.eps)

    return _cheaply(normalize, x.contiguous())


class LayerNorm(_Filled, nn.LayerNorm, TensorModule):
    """Layer normalization over the last axis that computes in the input's dtype."""

    def forward(self, input: Tensor) -> Tensor:
        return _cheaply(self._normalize, input)

    def _normalize(self, input: Tensor) -> Tensor:
        weight, bias = _as(self.weight, input.dtype), _as(self.bias, input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class Embedding(_Filled, nn.Embedding, TensorModule):
    """Table look-up: integer ids (...) -> (..., dim), cast to ``dtype`` (default: as stored) after the look-up."""

    def forward(self, input: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        rows = F.embedding(input, self.weight)
        return rows if dtype is None else rows.to(dtype)


class _FusedProjection(Protocol):
    in_proj_weight: Tensor
    in_proj_bias: Tensor | None


class ProjectionRows(TensorModule):
    """One of ``count`` equal row blocks of its owner's ``in_proj_weight`` and ``in_proj_bias``, as a linear layer.

    It has no parameters of its own, so the owner's state dict keeps the fused tensors under their own names, yet
    hooks can be put on it as on any other layer. ``weight`` and ``bias`` are views into the owner's tensors.
    """

    def __init__(self, owner: _FusedProjection, index: int, count: int = 3) -> None:
        super().__init__()
        # In a tuple, because nn.Module would register the owner as a child of its own child.
        self._owner = (owner,)
        self.index, self.count = index, count

    def _rows(self, fused: Tensor) -> Tensor:
        size = fused.shape[0] // self.count
        return fused[self.index * size : (self.index + 1) * size]

    @property
    def weight(self) -> Tensor:
        """(out, in) view of the fused weight."""
        return self._rows(self._owner[0].in_proj_weight)

    @property
    def bias(self) -> Tensor | None:
        """(out,) view of the fused bias."""
        fused = self._owner[0].in_proj_bias
        return None if fused is None else self._rows(fused)

    @property
    def in_features(self) -> int:
        """Size of the last axis of the input."""
        return self._owner[0].in_proj_weight.shape[1]

    @property
    def out_features(self) -> int:
        """Size of the last axis of the output."""
        return self._owner[0].in_proj_weight.shape[0] // self.count

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
