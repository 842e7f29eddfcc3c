"""Tensor shapes of a model part as a tree of modules: sizes are read from it, and layers built to fit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import nn

from loraloom.errors import CheckpointError
from loraloom.models.layers import Conv2d, GroupNorm, LayerNorm, Linear

__all__ = ["ShapeTree"]

_GROUPS = 32


class ShapeTree:
    """The shapes below one dotted path. ``tree["a.b"]`` goes down; a missing tensor raises CheckpointError by name."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, path: str) -> None:
        self._path = path
        self._shapes = dict(shapes)

    def __getitem__(self, path: str) -> ShapeTree:
        start = path + "."
        below = {key.removeprefix(start): shape for key, shape in self._shapes.items() if key.startswith(start)}
        if not below:
            raise self._missing(path)
        return ShapeTree(below, path=f"{self._path}.{path}")

    def __contains__(self, path: str) -> bool:
        return path in self._shapes or any(key.startswith(path + ".") for key in self._shapes)

    def numbered(self) -> Iterator[tuple[int, ShapeTree]]:
        """The children whose names are numbers, in order."""
        numbers = {int(match[0]) for key in self._shapes if (match := re.match(r"\d{1,4}(?=\.)", key, re.ASCII))}
        return ((number, self[str(number)]) for number in sorted(numbers))

    def shape(self, name: str, *, axes: int | None = None) -> tuple[int, ...]:
        """Shape of one tensor; CheckpointError when it is missing or has another number of axes."""
        if name not in self._shapes:
            raise self._missing(name)
        shape = tuple(self._shapes[name])
        if axes is not None and len(shape) != axes:
            raise CheckpointError(
                f"{self._path}.{name} has {len(shape)} axes instead of {axes}", "the file is damaged or of another kind"
            )
        return shape

    def require_fit(self, module: nn.Module) -> None:
        """CheckpointError unless every tensor of ``module`` is here in its shape; more may be here."""
        for name, tensor in module.state_dict().items():
            if self.shape(name) != tuple(tensor.shape):
                raise CheckpointError(
                    f"{self._path}.{name} is {self._shapes[name]} where {tuple(tensor.shape)} would fit its neighbours",
                    "the file is damaged or of another kind",
                )

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(
            f"the tensor {self._path}.{name} is missing", "the file is incomplete, or not a Stable Diffusion checkpoint"
        )

    def linear(self) -> Linear:
        """A linear layer of these sizes."""
        outputs, inputs = self.shape("weight", axes=2)
        return Linear(inputs, outputs, bias="bias" in self)

    def convolution(self, *, stride: int = 1, padding: int | None = None) -> Conv2d:
        """A square convolution of these sizes; the padding keeps the image size unless given."""
        outputs, inputs, kernel, _ = self.shape("weight", axes=4)
        return Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2 if padding is None else padding)

    def projection(self) -> Linear | Conv2d:
        """A linear layer or a 1x1 convolution: files hold the same projection in either form."""
        return self.linear() if len(self.shape("weight")) == 2 else self.convolution()

    def group_norm(self, *, eps: float) -> GroupNorm:
        """A group norm of 32 groups."""
        (channels,) = self.shape("weight", axes=1)
        if channels % _GROUPS:
            raise CheckpointError(
                f"{self._path} has {channels} channels, which {_GROUPS} groups do not divide",
                "the file is not a Stable Diffusion checkpoint",
            )
        return GroupNorm(_GROUPS, channels, eps=eps)

    def layer_norm(self) -> LayerNorm:
        """A norm over the last axis."""
        return LayerNorm(self.shape("weight", axes=1))
