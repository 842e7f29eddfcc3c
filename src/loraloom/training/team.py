"""The processes that train one run together, started by torchrun; alone unless it was.

Every process sees the same steps and takes its share of each step's pictures, so the number of processes changes how
long a run takes and not what it learns. Only gradients of what is trained travel. Process 0 leads: it alone writes,
validates, paints previews, and listens for a stop or a pause.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from loraloom.actions import Action, Sentence
from loraloom.errors import HardwareError, LoraloomError, SettingsError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed.distributed_c10d import Store

    from loraloom.data.batches import Draw
    from loraloom.training.steps import Share

__all__ = ["ALONE", "Team", "is_leader", "joined_team", "launched_together", "one_voice"]

T = TypeVar("T")
PATIENCE = timedelta(hours=24)
"""How long a process waits for another: previews and validation of the leader may take long."""
MEETING = timedelta(minutes=5)
"""How long they look for one another at the start."""
MESSAGE_ELEMENTS = 2**26
"""Numbers in a message: a quarter of a GiB beside the gradients themselves."""
_FAILED, _FAILURE = "loraloom/failed", "loraloom/failure"
_HEARSAY = timedelta(seconds=5)
"""How long to look for the reason why another process is gone."""


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
    on_cuda: bool = False
    """Whether tensors on CUDA devices travel between them (through NCCL); others go through the CPU (gloo)."""
    store: Store | None = field(default=None, repr=False, compare=False)
    """What all of them can read and write, and which lives on when one of them ends."""

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    @property
    def name(self) -> str:
        """What to call this process in a message."""
        return f"process {self.rank} on {socket.gethostname()}"

    def device(self, requested: str) -> str:
        """The device of this process: on a machine with several GPUs each process takes its own.

        Raises SettingsError for a GPU that all would share, HardwareError when there are too few.
        """
        if self.size > 1 and requested.startswith("cuda:"):
            raise SettingsError(
                [f"device={requested} under torchrun: every process takes a GPU of its own"], "set device=cuda or auto"
            )
        import torch

        if self.size == 1 or requested not in ("auto", "cuda") or not torch.cuda.is_available():
            return requested
        if self.local >= torch.cuda.device_count():
            raise HardwareError(
                f"torchrun started process {self.local} on this machine, which has {torch.cuda.device_count()} GPU(s)",
                Sentence(Action.COUNT_PROCESSES),
            )
        torch.cuda.set_device(self.local)
        return f"cuda:{self.local}"

    # -- work that is shared -----------------------------------------------------------------------------------

    def check(self, batch_size: int, gradient_accumulation: int) -> None:
        """Raise SettingsError when some processes could never have a picture to learn from."""
        pictures = batch_size * gradient_accumulation
        if self.size > pictures:
            raise SettingsError(
                [
                    f"{self.size} processes share the {pictures} picture(s) of a step (batch_size={batch_size} x "
                    f"gradient_accumulation={gradient_accumulation}, in all, not for each process)"
                ],
                f"set batch_size={self.size} or more, or start fewer processes",
            )

    def share(self, batches: Sequence[list[Draw]]) -> list[Share]:
        """This process's part of a step's batches: of the pictures in order every ``size``-th, buckets kept apart."""
        from loraloom.training.steps import Share

        shares, seen = [], 0
        for number, draws in enumerate(batches):
            rows = tuple(row for row in range(len(draws)) if (seen + row) % self.size == self.rank)
            seen += len(draws)
            if rows:
                shares.append(Share(draws, number, rows))
        return shares

    def sum_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Add up the gradients and losses of all processes; returns the sum of the losses, a scalar.

        The gradients of a LoRA are one message, those of a whole checkpoint several. Sums are made in float32 and are
        the same in every process, bit for bit. A parameter that no process has a gradient for keeps none, as it would
        in one process.
        """
        if self.size == 1:
            return loss
        import torch

        present = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=loss.device)
        head = self._summed(torch.cat([loss.detach().reshape(1).float(), present]))
        for group in _in_messages(parameters, head[1:].tolist()):
            grads = [p.grad.flatten().float() if p.grad is not None else loss.new_zeros(p.numel()) for p in group]
            parts = torch.split(self._summed(torch.cat(grads)), [parameter.numel() for parameter in group])
            for parameter, part in zip(group, parts, strict=True):
                parameter.grad = part.view_as(parameter).to(parameter.dtype)
        return head[0]

    # -- messages ----------------------------------------------------------------------------------------------

    def _summed(self, tensor: Tensor) -> Tensor:
        import torch.distributed as dist

        travels = tensor if self._can_travel(tensor) else tensor.cpu()
        with self._explained():
            dist.all_reduce(travels)
        return travels.to(tensor.device)

    def copy_leader(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors of any shape with the leading process's: what two machines compute differs by rounding."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            for tensor in tensors:
                travels = tensor.contiguous() if self._can_travel(tensor) else tensor.cpu().contiguous()
                with self._explained():
                    dist.broadcast(travels, src=0)
                tensor.copy_(travels)

    def _can_travel(self, tensor: Tensor) -> bool:
        return tensor.device.type == "cpu" or (self.on_cuda and tensor.device.type == "cuda")

    def from_leader(self, make: Callable[[], T]) -> T:
        """What ``make`` gives in the leading process, which alone calls it, in every process."""
        if self.size == 1:
            return make()
        import torch.distributed as dist

        box: list[Any] = [make() if self.leads else None]
        with self._explained():
            dist.broadcast_object_list(box, src=0)
        value: T = box[0]
        return value

    def exchange(self, value: T) -> list[T]:
        """Every process's value, in their order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with self._explained():
            dist.all_gather_object(values, value)
        return values

    # -- failures ----------------------------------------------------------------------------------------------

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """A broken connection means that another process has ended: the error says why."""
        try:
            yield
        except RuntimeError as error:
            problem, hint = self._heard() or (_first_sentence(error), "")
            raise HardwareError(
                f"another process of this run is gone: {problem}",
                hint or Sentence("the run can go on ", Action.RESUME_RUN),
            ) from error

    def _heard(self) -> tuple[str, str] | None:
        """What the process that failed first said about itself."""
        if self.store is None:
            return None
        try:
            self.store.wait([_FAILURE], _HEARSAY)
            problem, _, hint = self.store.get(_FAILURE).decode().partition("\n")
        except RuntimeError:  # it was killed, or the store went with it
            return None
        return problem, hint

    def fails_first(self, error: BaseException) -> bool:
        """Whether no other process has failed before; then the others hear the reason, and this one is to say it."""
        if self.store is None:
            return True
        with suppress(RuntimeError):
            if self.store.add(_FAILED, 1) > 1:
                return False
            problem, hint = str(error) or type(error).__name__, ""
            if isinstance(error, LoraloomError):
                problem, hint = error.problem, error.hint
            self.store.set(_FAILURE, f"{self.name}: {problem}\n{hint}")
        return True


def _in_messages(parameters: Sequence[nn.Parameter], present: Sequence[float]) -> Iterator[list[nn.Parameter]]:
    """Those that any process has a gradient for, in groups that fit into a message."""
    group: list[nn.Parameter] = []
    elements = 0
    for parameter, count in zip(parameters, present, strict=True):
        if not count:
            continue
        if group and elements + parameter.numel() > MESSAGE_ELEMENTS:
            yield group
            group, elements = [], 0
        group.append(parameter)
        elements += parameter.numel()
    if group:
        yield group


ALONE = Team()


@contextmanager
def one_voice() -> Iterator[None]:
    """Inside, while the processes do not know one another yet, only the first of each machine lets an error out."""
    try:
        yield
    except LoraloomError as error:
        if launched_together() > 1 and os.environ.get("LOCAL_RANK", "0") != "0":
            raise SystemExit(1) from error
        raise


@contextmanager
def joined_team() -> Iterator[Team]:
    """Inside, this process works with the others that torchrun started (none: it is alone).

    gloo connects CPUs, NCCL connects NVIDIA GPUs. HardwareError when the others are not found. Of several processes
    that fail, one lets the error out and the others end without a word.
    """
    size = launched_together()
    if size == 1:
        yield ALONE
        return
    team = _join(size)
    try:
        yield team
    except BaseException as error:
        # No farewell to the group: it would wait for processes that are gone.
        is_first = team.fails_first(error)
        if isinstance(error, LoraloomError):
            if not is_first:
                raise SystemExit(1) from error
            if not team.leads:
                error.problem = f"{team.name}: {error.problem}"
        raise
    import torch.distributed as dist

    dist.destroy_process_group()


def _first_sentence(error: Exception) -> str:
    """What gloo or NCCL say, without where in their source they say it."""
    text = re.sub(r"^\[[^\]]*\]\s*", "", str(error)).partition("\n")[0]
    return text.partition(". ")[0]


def _join(size: int) -> Team:
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise HardwareError("this build of torch has no torch.distributed", "start the run without torchrun")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if not dist.is_gloo_available():
        raise HardwareError("this build of torch has no gloo, which connects the processes", "install one that has it")
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    on_cuda = torch.cuda.is_available() and dist.is_nccl_available()
    try:
        store, rank, size = next(rendezvous("env://", timeout=MEETING))
        backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
        group = PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise HardwareError(
            f"process {rank} of {size} did not find the others: {_first_sentence(error)}",
            Sentence(Action.MEETING_PLACE, " and the firewall between the machines"),
        ) from error
    return Team(rank, size, local, on_cuda, store)
