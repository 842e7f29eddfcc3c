"""One training over several single-threaded processes (``torchrun --nproc-per-node 2``): gradients are averaged.

Single-threaded processes that wait for each other once a step keep their speed on a busy machine, where threads that
wait for each other at every layer become a hundred times slower.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed
from torch import Tensor


class Workers:
    """The processes of this training: this one's ``rank`` and how many there are."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        torch.set_num_threads(1)
        if self.count > 1:
            # A long timeout: the processes may be stopped for a while by whoever needs the machine.
            torch.distributed.init_process_group("gloo", timeout=timedelta(hours=12))

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace float32 tensors by their mean over the processes."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def same(self, value: float) -> float:
        """The first process's value, everywhere."""
        if self.count == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64)
        torch.distributed.broadcast(box, 0)
        return float(box)
