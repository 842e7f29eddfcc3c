"""NVIDIA's driver, asked through its own program: what is there, whatever torch can do with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["Driver", "ask_driver"]

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Driver:
    """The driver. ``problem``: why it gives no answer; ``cuda``: the newest CUDA version that it can run."""

    version: str = ""
    cuda: tuple[int, int] | None = None
    cards: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    """Such as Ampere, one for each card, where the driver tells."""
    problem: str = ""


def ask_driver() -> Driver | None:
    """What ``nvidia-smi`` says; None where there is no such program."""
    program = _on_path("nvidia-smi.exe" if sys.platform == "win32" else "nvidia-smi")
    if program is None:
        return None
    try:
        asked = subprocess.run(
            [str(program), "-q", "-x"], capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(problem=f"nvidia-smi gives no answer: {error}")
    try:
        return _read(ElementTree.fromstring(asked.stdout))
    except ElementTree.ParseError:
        said = (asked.stdout + asked.stderr).decode("utf-8", "replace").strip().splitlines()
        return Driver(problem=said[0] if said else f"nvidia-smi ended with code {asked.returncode}")


def _read(log: ElementTree.Element) -> Driver:
    cards = log.findall("gpu")
    cuda = re.match(r"(\d+)\.(\d+)", log.findtext("cuda_version", ""))
    return Driver(
        log.findtext("driver_version", ""),
        (int(cuda[1]), int(cuda[2])) if cuda else None,
        tuple(card.findtext("product_name", "a card without a name") for card in cards),
        tuple(card.findtext("product_architecture", "") for card in cards),
    )


def _on_path(name: str) -> Path | None:
    """A program in a folder of PATH; never one of the present folder, which Windows would look into first."""
    for folder in map(Path, os.get_exec_path()):
        program = folder / name
        if folder.is_absolute() and program.is_file() and os.access(program, os.X_OK):
            return program
    return None
