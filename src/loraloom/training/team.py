"""The processes that train one run together, started by torchrun; alone unless it was.

Every process sees the same steps and takes its share of each step's pictures, so the number of processes changes how
long a run takes and not what it learns. Only gradients of what is trained travel. Process 0 leads: it alone writes,
validates, paints previews, and hears whoever stops or pauses the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from loraloom.errors import HardwareError, SettingsError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from loraloom.data.batches import Draw

__all__ = ["ALONE", "Team", "is_leader", "joined_team", "launched_together"]

T = TypeVar("T")
PATIENCE = timedelta(hours=24)
"""How long a process waits for another: previews and validation of the leader may take long."""


def launched_together() -> int:
    """How many processes torchrun started; 1 without it."""
    text = os.environ.get("WORLD_SIZE", "1")
    return int(text) if text.isdecimal() and "RANK" in os.environ else 1


def is_leader() -> bool:
    """Whether this process is the one that writes: always, unless torchrun says otherwise."""
    return launched_together() == 1 or os.environ["RANK"] == "0"


@dataclass(frozen=True)
class Team:
    """``size`` processes of which this is number ``rank``, from 0; ``local`` is its number on this machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def device(self, requested: str) -> str:
        """The device of this process: on a machine with several GPUs each process takes its own."""
        import torch

        if self.size == 1 or requested not in ("auto", "cuda") or not torch.cuda.is_available():
            return requested
        if self.local >= torch.cuda.device_count():
            raise HardwareError(
                f"torchrun started process {self.local} on this machine, which has {torch.cuda.device_count()} GPU(s)",
                "give --nproc-per-node the number of GPUs",
            )
        return f"cuda:{self.local}"

    def share(self, batches: Sequence[list[Draw]]) -> list[list[Draw]]:
        """This process's part of a step's batches: of the pictures in order every ``size``-th, buckets kept apart."""
        if self.size == 1:
            return list(batches)
        shares, seen = [], 0
        for draws in batches:
            mine = [draw for index, draw in enumerate(draws, seen) if index % self.size == self.rank]
            seen += len(draws)
            if mine:
                shares.append(mine)
        return shares

    def sum(self, value: Tensor) -> Tensor:
        """The sum of every process's tensor, the same everywhere."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        with _explained():
            dist.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in one message for each type.

        A parameter that no process has a gradient for keeps none, as it would in one process.
        """
        if self.size == 1:
            return
        import torch

        if not parameters:
            return
        device = parameters[0].device
        present = self.sum(torch.tensor([float(p.grad is not None) for p in parameters], device=device)).tolist()
        touched = [parameter for parameter, count in zip(parameters, present, strict=True) if count]
        for dtype in dict.fromkeys(parameter.dtype for parameter in touched):
            group = [parameter for parameter in touched if parameter.dtype == dtype]
            flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in group])
            self.sum(flat)
            parts = torch.split(flat, [parameter.numel() for parameter in group])
            for parameter, part in zip(group, parts, strict=True):
                parameter.grad = part.view_as(parameter).clone()

    def from_leader(self, make: Callable[[], T]) -> T:
        """What ``make`` gives in the leading process, which alone calls it, in every process."""
        if self.size == 1:
            return make()
        import torch.distributed as dist

        box: list[Any] = [make() if self.leads else None]
        with _explained():
            dist.broadcast_object_list(box, src=0)
        value: T = box[0]
        return value

    def exchange(self, value: T) -> list[T]:
        """Every process's value, in their order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with _explained():
            dist.all_gather_object(values, value)
        return values


ALONE = Team()


@contextmanager
def joined_team(device: str) -> Iterator[Team]:
    """Inside, this process works with the others that torchrun started (none: it is alone).

    ``device``: the setting; gloo connects CPUs, NCCL connects NVIDIA GPUs. HardwareError when the others are not found.
    """
    size = launched_together()
    if size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise HardwareError("this build of torch has no torch.distributed", "start the run without torchrun")
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if device.startswith("cuda:"):
        raise SettingsError(
            [f"device={device} under torchrun: every process takes a GPU of its own"], "set device=cuda or auto"
        )
    if on_gpu:
        torch.cuda.set_device(local % torch.cuda.device_count())
    backend = "cuda:nccl,cpu:gloo" if on_gpu and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise HardwareError(
            f"process {rank} of {size} did not find the others: {str(error).splitlines()[0]}",
            "check --nnodes, --rdzv-endpoint and the firewall between the machines",
        ) from error
    try:
        yield Team(rank, size, local)
    finally:
        dist.destroy_process_group()


@contextmanager
def _explained() -> Iterator[None]:
    """A broken connection means that another process has ended, which says why itself."""
    try:
        yield
    except RuntimeError as error:
        raise HardwareError(
            f"another process of this run is gone: {str(error).splitlines()[0]}",
            "its own message says why; the run can go on with --resume",
        ) from error
