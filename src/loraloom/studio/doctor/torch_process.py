"""What torch says of itself and its devices, asked in a process of its own, so that whoever asks needs no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

__all__ = ["DeviceFacts", "TorchFacts", "TorchProcess", "facts_from_record"]

_PATIENCE_S = 180.0
"""On a slow disk the first import of torch takes a minute."""


@dataclass(frozen=True)
class DeviceFacts:
    """A device that torch sees. ``problem``: why it cannot compute, in torch's words; memory in bytes."""

    name: str
    kind: str
    """cuda (with ROCm too) or mps."""
    capability: str = ""
    """NVIDIA's version of what it can do, such as 8.6."""
    total: int | None = None
    free: int | None = None
    precision: str = ""
    """What is chosen for it: bf16, fp16 or no."""
    problem: str = ""


@dataclass(frozen=True)
class TorchFacts:
    """torch as it is installed here. ``problem``: why it cannot be used at all."""

    version: str = ""
    problem: str = ""
    cuda: str = ""
    """The CUDA version that it was built for; empty in a build without."""
    hip: str = ""
    """The ROCm version, likewise."""
    devices: tuple[DeviceFacts, ...] = ()
    reason: str = ""
    """What it said when it looked for a device in vain."""
    optimizer_8bit: str = ""
    """Why an 8-bit optimizer cannot take a step; empty where it can, or bitsandbytes is not installed."""


class TorchProcess:
    """The process that asks torch; it works from the moment this is made."""

    def __init__(self, module: str = "loraloom.studio.doctor.torch_facts") -> None:
        # -P: the present folder, in which strangers' files may lie, is no place to look for modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._facts: TorchFacts | None = None

    def facts(self) -> TorchFacts:
        """What it found out; waits for it, up to three minutes."""
        if self._facts is None:
            self._facts = self._asked()
        return self._facts

    def close(self) -> None:
        """End the process where nobody waits for it any more."""
        if self._process.poll() is None:
            self._process.kill()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process.wait()

    def _asked(self) -> TorchFacts:
        try:
            out, err = self._process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.close()
            return TorchFacts(problem=f"it was not loaded within {_PATIENCE_S:g} seconds")
        try:
            return facts_from_record(json.loads(out.decode("utf-8").splitlines()[-1]))
        except (ValueError, LookupError, TypeError):
            said = err.decode("utf-8", "replace").strip().splitlines()
            reason = said[-1] if said else f"its process ended with {_ending(self._process.returncode)}"
            return TorchFacts(problem=reason)


def facts_from_record(record: dict[str, Any]) -> TorchFacts:
    """The inverse of what the process prints. Raises TypeError for other fields."""
    devices = tuple(DeviceFacts(**device) for device in record.pop("devices"))
    return TorchFacts(**record, devices=devices)


def _ending(code: int) -> str:
    """How a process ended without a word. On Windows a number above 2**31 is the system's, as people search for it."""
    if code < 0:
        return f"signal {-code}"
    return f"code {code:#010x}" if code >= 2**31 else f"code {code}"
