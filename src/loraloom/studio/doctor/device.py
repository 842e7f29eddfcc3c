"""Checks of torch and of the graphics card: whether what is there is used."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from loraloom.actions import Action, Sentence
from loraloom.plain_data import size_text
from loraloom.studio.doctor.finding import Finding, Machine, good, note, problem
from loraloom.studio.doctor.nvidia import Driver, ask_driver
from loraloom.studio.doctor.torch_process import DeviceFacts, TorchFacts

__all__ = ["accelerator_findings", "check_accelerator", "check_torch"]

_CHOOSER = "pytorch.org/get-started/locally gives the line"
_BEFORE_TURING = {"Maxwell", "Pascal", "Volta"}
"""Architectures (GTX 900 and 10 series, Titan V) that torch's builds for CUDA 12.6 still have code for, later ones not:
the table in RELEASE.md of pytorch, 2.9 to 2.14."""
_TURING = (7, 5)
_BLACKWELL = (10, 0)
_NO_FAST_HALVES = re.compile(r"GTX 16\d\d")
"""Cards on which fp16 gives NaN: issue 293 of sd-scripts, and many others."""
_CROWDED = 3 * 10**9
"""Bytes; training a LoRA for SD 1.5 takes about as much."""


def check_torch(machine: Machine) -> Iterator[Finding]:
    """Whether torch can be loaded at all."""
    facts = machine.torch.facts()
    if facts.problem:
        yield problem("torch", f"it cannot be loaded: {facts.problem}", _loading_advice(facts.problem))
        return
    yield good("torch", f"{facts.version}, {_build(facts)}")


def check_accelerator(machine: Machine) -> Iterator[Finding]:
    """Whether the graphics card that is there computes, or why not."""
    yield from accelerator_findings(machine.torch.facts(), ask_driver())


def accelerator_findings(facts: TorchFacts, driver: Driver | None) -> Iterator[Finding]:
    """What torch and the driver say of the card, together."""
    if facts.problem:
        return
    for device in facts.devices:
        yield from _device_findings(device, facts)
    if facts.devices:
        return

    # None computes: is there one all the same? NVIDIA's driver knows best, and on a Mac the kind of Python decides.
    if driver is not None and driver.problem:
        advice = "install NVIDIA's driver anew and start the machine again"
        yield problem("graphics card", f"the NVIDIA driver does not answer: {driver.problem}", advice)
    elif driver is not None and driver.cards:
        yield _unused(facts, driver)
    elif Path("/dev/kfd").exists() and not facts.hip:
        advice = f"install torch's build for ROCm in place of this one (`pip uninstall torch`; {_CHOOSER})"
        yield problem("graphics card", "an AMD card is there, and this build of torch cannot use it", advice)
    elif _is_translated():
        advice = "install Python for Apple silicon (arm64), and Loraloom with it"
        yield problem("graphics card", "this Python is one for Intel, so the Apple GPU cannot be used", advice)
    else:
        found = "none: the CPU computes" + (f" ({facts.reason})" if facts.reason else "")
        advice = Sentence(
            "SD 1.5 can be trained so, slowly; ", Action.PLAN_MEMORY, " says how long and how much it takes"
        )
        yield note("graphics card", found, advice)


def _build(facts: TorchFacts) -> str:
    if facts.hip:
        return f"built for ROCm {facts.hip}"
    return f"built for CUDA {facts.cuda}" if facts.cuda else "built without CUDA or ROCm"


def _loading_advice(reason: str) -> str:
    if "No module named" in reason:
        return f"`pip install torch`; for another build, {_CHOOSER}"
    if "WinError" in reason or "DLL" in reason:
        return "install Microsoft's Visual C++ Redistributable (x64) and start the machine again"
    return f"remove it and install it again: `pip uninstall torch`, then {_CHOOSER}"


def _device_findings(device: DeviceFacts, facts: TorchFacts) -> Iterator[Finding]:
    if device.problem:
        yield problem("graphics card", f"{device.name} does not compute: {device.problem}", _other_build(device, facts))
        return
    memory = ""
    if device.total is not None and device.free is not None:
        memory = f", {size_text(device.free)} of {size_text(device.total)} free"
    found = f"{device.name} computes (precision {device.precision}){memory}"
    if _NO_FAST_HALVES.search(device.name):
        yield note("graphics card", found, "where a run ends in NaN, set mixed_precision=no: fp16 is faulty on it")
    elif device.free is not None and device.free < _CROWDED:
        advice = Sentence("close other programs that use it; ", Action.PLAN_MEMORY, " says what fits")
        yield note("graphics card", found, advice)
    else:
        yield good("graphics card", found)


def _other_build(device: DeviceFacts, facts: TorchFacts) -> str:
    """What to install for a card that is seen and cannot compute: most often the build has no code for it."""
    if not device.capability or not facts.cuda:
        return "install the newest driver of the card, and start the machine again"
    version = _version(device.capability)
    if version is not None and version < _TURING and facts.cuda.split(".")[0] != "12":
        return _install("12.6")
    if version is not None and version >= _BLACKWELL and facts.cuda.startswith("12.6"):
        return _install("13.0")
    return Sentence("install the newest driver of the card; where that changes nothing, ", _install(facts.cuda))


def _unused(facts: TorchFacts, driver: Driver) -> Finding:
    """Why a card that the driver knows is not seen by torch, the surest reason first."""
    cards, hidden = ", ".join(driver.cards), os.environ.get("CUDA_VISIBLE_DEVICES")
    if not facts.cuda:
        found = f"{cards} is there, and this build of torch cannot use it ({facts.version}, {_build(facts)})"
        fitting = _fitting(driver)
        first = "" if _runs(driver, fitting) else "install NVIDIA's newest driver for the card, then "
        return problem("graphics card", found, first + _install(fitting))
    if hidden is not None and hidden.strip() in ("", "-1", "NoDevFiles"):
        found = f"{cards} is hidden: CUDA_VISIBLE_DEVICES is {hidden!r}"
        return note("graphics card", found, "unset that environment variable if the card is to be used")
    if driver.cuda is not None and not _runs(driver, facts.cuda):
        runs = f"runs CUDA {driver.cuda[0]} and earlier"
        found = f"{cards}: the driver {driver.version} {runs}, and torch was built for CUDA {facts.cuda}"
        other = f"; or {_install(_fitting(driver))}" if _runs(driver, _fitting(driver)) else ""
        return problem("graphics card", found, f"install NVIDIA's newest driver for the card{other}")
    reason = facts.reason or "torch gives no reason"
    advice = "start the machine again; where that changes nothing, install NVIDIA's newest driver for the card"
    return problem("graphics card", f"{cards} is there, and torch does not see it: {reason}", advice)


def _runs(driver: Driver, cuda: str) -> bool:
    """From CUDA 11 on a driver runs every version of its own major number and of earlier ones."""
    needed = _version(cuda)
    return needed is None or driver.cuda is None or needed[0] <= driver.cuda[0]


def _fitting(driver: Driver) -> str:
    """The CUDA version whose build of torch runs on these cards with this driver."""
    if driver.cuda is not None and driver.cuda[0] < 13:
        return "12.6" if "Blackwell" not in driver.architectures else "13.0"
    return "12.6" if _BEFORE_TURING & set(driver.architectures) else "13.0"


def _install(cuda: str) -> str:
    return f"install torch's build for CUDA {cuda} in place of this one: `pip uninstall torch`, then {_CHOOSER}"


def _version(text: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def _is_translated() -> bool:
    """Whether this is a Python for Intel on an Apple processor."""
    if sys.platform != "darwin" or platform.machine() != "x86_64":
        return False
    asked = subprocess.run(["/usr/sbin/sysctl", "-n", "sysctl.proc_translated"], capture_output=True, check=False)
    return asked.stdout.strip() == b"1"
