"""The process that loads torch and tries each device; it prints one line of JSON (``torch_process`` reads it)."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from loraloom.errors import LoraloomError
from loraloom.hardware import choose_precision, free_memory_bytes, set_thread_defaults
from loraloom.plain_text import one_line
from loraloom.studio.doctor.torch_process import DeviceFacts, TorchFacts

if TYPE_CHECKING:
    import torch

__all__ = ["look", "main"]


def main() -> None:
    """Print the facts."""
    set_thread_defaults()
    facts = look()
    sys.stdout.write("\n" + json.dumps(asdict(facts)) + "\n")


def look() -> TorchFacts:
    """Load torch and have every device compute something."""
    try:
        import torch
    except (ImportError, OSError) as error:  # missing; or one of its libraries is, which Windows calls an OSError
        return TorchFacts(problem=_said(error))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        devices = _devices()
    facts = TorchFacts(
        version=torch.__version__,
        cuda=torch.version.cuda or "",
        hip=torch.version.hip or "",
        devices=devices,
        reason=next((one_line(str(warning.message)) for warning in caught if "CUDA" in str(warning.message)), ""),
    )
    return replace(facts, optimizer_8bit=_optimizer_trouble(devices))


def _devices() -> tuple[DeviceFacts, ...]:
    import torch

    if torch.cuda.is_available():
        return tuple(_tried(torch.device("cuda", index)) for index in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        return (_tried(torch.device("mps")),)
    return ()


def _tried(device: torch.device) -> DeviceFacts:
    """A device after a product of two matrices: only that tells whether the build has code for it."""
    import torch

    facts = DeviceFacts("Apple GPU", device.type)
    try:
        if device.type == "cuda":
            known = torch.cuda.get_device_properties(device)
            version = f"{known.major}.{known.minor}"
            facts = DeviceFacts(known.name, device.type, "" if torch.version.hip else version, known.total_memory)
        precision = choose_precision(device)
        ones = torch.ones(64, 64, device=device, dtype=precision.compute)
        total = float((ones @ ones).float().sum())
        facts = replace(facts, free=free_memory_bytes(device), precision=precision.name)
    except (RuntimeError, AssertionError, LoraloomError) as error:
        return replace(facts, problem=_said(error))
    return facts if total == 64**3 else replace(facts, problem=f"it computes wrongly: {total:g} where it is {64**3}")


def _optimizer_trouble(devices: tuple[DeviceFacts, ...]) -> str:
    """Why AdamW with 8-bit state takes no step on the device that runs are trained on."""
    if find_spec("bitsandbytes") is None or any(device.problem for device in devices):
        return ""
    import torch

    from loraloom.training.optimizers import try_optimizer
    from loraloom.training.settings import OptimizerSettings

    try:
        try_optimizer(OptimizerSettings(name="adamw_8bit"), torch.device(devices[0].kind if devices else "cpu"))
    except LoraloomError as error:
        return error.problem
    except Exception as error:  # noqa: BLE001 (a foreign library that cannot be imported raises what it likes)
        return _said(error)
    return ""


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__


if __name__ == "__main__":
    main()
