"""Counting the memory and the work of a computation, on tensors without data as well as on real ones."""

from __future__ import annotations

import weakref
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["Meter"]


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside: the bytes of tensors made on ``device`` and not yet freed, their peak, and the floating point operations.

    Every operation is seen, those of the backward pass too, so on the meta device a whole training step is followed
    in a second or two without its memory being taken. What an operation takes and frees inside itself is not seen
    but for convolutions, whose ``workspace`` (copies of weight, input and output in the library's own order) is
    added to the peak as ``peak_with_workspace``.
    """

    def __init__(self, device: str = "meta") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.live = 0
        self.peak = 0
        self.peak_with_workspace = 0
        self.largest_workspace = 0
        self.flops = 0
        self._known: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self._outside: dict[int, weakref.ref[Any]] = {}

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        inputs = tensors_in((arguments, options))
        # What comes from outside is not counted, nor what is made of it without a copy.
        for tensor in inputs:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known and key not in self._outside:
                # The address is free for another tensor once this one is gone.
                self._outside[key] = weakref.ref(storage, partial(self._forget, key))
        output = operation(*arguments, **options)
        outputs = tensors_in(output)
        for tensor in outputs:
            self._count(tensor)
        workspace = _workspace(operation, inputs, outputs) if self.device in ("meta", "cpu") else 0
        self.largest_workspace = max(self.largest_workspace, workspace)
        self.peak_with_workspace = max(self.peak_with_workspace, self.live + workspace)
        formula = flop_registry.get(operation._overloadpacket)
        if formula is not None:
            self.flops += int(formula(*arguments, **options, out_val=output))
        return output

    def _forget(self, key: int, _: Any) -> None:
        del self._outside[key]

    def _count(self, tensor: Tensor) -> None:
        if tensor.device.type != self.device:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._outside:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = size, weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)
        self.peak_with_workspace = max(self.peak_with_workspace, self.live)


def tensors_in(tree: Any) -> list[Tensor]:
    """Every tensor of nested arguments."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


_CONVOLUTIONS = {torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default}


def _workspace(operation: Any, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes a CPU convolution takes for itself."""
    if operation not in _CONVOLUTIONS:
        return 0
    return sum(tensor.nbytes for tensor in (*inputs, *outputs) if tensor.ndim == 4)
