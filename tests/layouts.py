"""Every key, dtype and shape of real SD 1.5, SD 2.1 and SDXL checkpoints, for tests."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path

import torch

__all__ = ["LAYOUTS", "part_shapes", "read_layout"]

LAYOUTS = ("sd15", "sd21", "sdxl")


@cache
def read_layout(name: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Key -> (dtype, shape) of the checkpoint ``sd15``, ``sd21`` or ``sdxl``, in the file's order."""
    path = Path(__file__).parent / "data_files" / "layouts" / f"{name}.tsv.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()[1:]
    rows = (line.split("\t") for line in lines)
    return {key: (getattr(torch, dtype), _shape(shape)) for key, dtype, shape in rows}


def _shape(text: str) -> tuple[int, ...]:
    return () if text == "-" else tuple(int(size) for size in text.split("x"))


def part_shapes(name: str, prefix: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors whose keys start with ``prefix``, by the rest of the key."""
    layout = read_layout(name)
    return {key.removeprefix(prefix): shape for key, (_, shape) in layout.items() if key.startswith(prefix)}
