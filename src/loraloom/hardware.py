"""Device, precision and memory: what is here, and what to use unless told otherwise."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from loraloom.actions import Action, Sentence
from loraloom.errors import HardwareError

if TYPE_CHECKING:
    import torch

__all__ = [
    "PeakMemory",
    "Precision",
    "choose_device",
    "choose_precision",
    "explained_memory_errors",
    "free_memory_bytes",
    "keep_freed_memory",
    "memory_hint",
    "one_thread",
    "own_memory_bytes",
    "return_freed_memory",
    "set_thread_defaults",
]


def set_thread_defaults() -> None:
    """Choose how threads compute, before torch is loaded, which reads it then; a person's own choice stays."""
    # Idle OpenMP threads sleep instead of spinning: on a machine that also does something else, spinning made small
    # models five times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Else MKL takes fewer threads when the machine is busy, adds up in another order, and no run is like the other.
    os.environ.setdefault("MKL_DYNAMIC", "FALSE")
    os.environ.setdefault("MKL_CBWR", "AUTO")


@dataclass(frozen=True)
class Precision:
    """``compute``: the type of activations; ``name``: no (fp32), bf16 or fp16, as trainers call it."""

    name: str
    compute: torch.dtype

    @property
    def needs_loss_scaling(self) -> bool:
        """fp16 gradients underflow without a scaled loss (Micikevicius et al., arXiv:1710.03740)."""
        return self.name == "fp16"


def choose_device(requested: str = "auto") -> torch.device:
    """``auto`` takes CUDA, then Apple's MPS, then the CPU; anything else must be present or HardwareError."""
    import torch

    if requested == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(requested)
    except RuntimeError as error:
        raise HardwareError(f"{requested!r} is not a device", "use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HardwareError(
            f"device {requested!r} was asked for, but {torch.cuda.device_count()} CUDA device(s) are visible here",
            "use device=auto, or install a torch build that matches your driver",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise HardwareError("device 'mps' was asked for, but this machine has none", "use device=auto")
    return device


def choose_precision(device: torch.device, requested: str = "auto") -> Precision:
    """``auto``: bf16 where the GPU has it natively, else fp16 on a GPU; fp32 on CPU and MPS.

    On a CPU without bf16 matrix units bf16 saves memory, not time, so fp32 is the choice there.
    Raises HardwareError for a precision that there is not, or not on this device.
    """
    import torch

    name = requested
    if requested == "auto":
        if device.type == "cuda":
            name = "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        else:
            name = "no"
    compute = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    if compute is None:
        raise HardwareError(f"{requested!r} is not a precision", "use auto, no, bf16 or fp16")
    if name == "fp16" and device.type == "cpu":
        raise HardwareError("fp16 computation is not available on the CPU", "use bf16 (half the memory) or no (fp32)")
    return Precision(name, compute)


def memory_hint() -> Sentence:
    """What a person can do when memory runs out, cheapest first."""
    return Sentence(
        "set gradient_checkpointing=selective or full, lower batch_size or dataset.resolution; ",
        Action.PLAN_MEMORY,
        " says what is enough",
    )


@contextmanager
def explained_memory_errors(what: str) -> Iterator[None]:
    """Inside, running out of memory on any device becomes a HardwareError that says ``what`` was going on."""
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise HardwareError(f"out of memory while {what}", memory_hint()) from error
    except RuntimeError as error:
        # torch has no exception type of its own for the CPU's memory.
        if "DefaultCPUAllocator" not in str(error):
            raise
        raise HardwareError(f"out of memory while {what}", memory_hint()) from error


def own_memory_bytes() -> int:
    """What this process has taken for itself, without pages of mapped files (macOS counts those in)."""
    import psutil

    return without_files(psutil.Process().memory_info())


def without_files(used: Any) -> int:
    """The same out of psutil's account of a process, whose fields are each system's own."""
    if hasattr(used, "private"):  # Windows: what nobody else can see, in memory or paged out
        return int(used.private)
    return int(used.rss - getattr(used, "shared", 0))  # Linux: ``shared`` are the pages of files


def free_memory_bytes(device: torch.device) -> int | None:
    """What can still be taken on the device; None where nobody says (MPS)."""
    if device.type == "cuda":
        import torch

        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    if device.type != "cpu":
        return None
    import psutil

    return int(psutil.virtual_memory().available)


class PeakMemory:
    """The largest memory between :meth:`start` and :meth:`stop`, in bytes; also a context manager.

    On CUDA what torch has allocated; on the CPU the process's own memory, looked at every few milliseconds: the peaks
    that systems keep are those of a process's whole life, and count pages of mapped files. None on MPS.
    """

    INTERVAL_S = 0.02

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.peak: int | None = None
        self.running = False

    def start(self) -> None:
        """Begin to look."""
        self.running = True
        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            self._thread = threading.Thread(target=self._sample, name="peak memory", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look for the last time."""
        self.running = False
        if self._device.type == "cuda":
            import torch

            self.peak = torch.cuda.max_memory_allocated(self._device)
        elif self._thread is not None:
            self._stopped.set()
            self._thread.join()
            self._look()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _sample(self) -> None:
        while not self._stopped.wait(self.INTERVAL_S):
            self._look()

    def _look(self) -> None:
        with self._lock:  # or a thread that read less, earlier, writes it over what another has seen since
            self.peak = max(self.peak or 0, own_memory_bytes())


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks for the next step instead of returning each to the system; whether it could.

    A training step on the CPU frees and takes the same large blocks again and again; handing each back to the kernel
    and clearing it anew took about a sixth of the time of a step. The setting is the process's own and lasts as long.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 * 2**20))
    return all(mallopt(option, value) == 1 for option, value in settings)


def return_freed_memory() -> bool:
    """Give freed pages back to the system, whatever :func:`keep_freed_memory` said; whether it could (glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):  # another C library
        return False


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one CPU thread: for tiny models handing work to others costs more than it saves."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
