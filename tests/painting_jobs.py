"""Jobs for a painter, and the same jobs in processes that never painted anything before."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from loraloom.generation.settings import GenerateSettings
from loraloom.studio.images import generate_images
from loraloom.studio.painter import Painter

__all__ = ["painted", "painted_afresh", "painted_in_turn"]


def painted(painter: Painter | None, checkpoint: Path, folder: Path, changes: Mapping[str, Any]) -> bytes:
    """The pixels of the pictures of a job, one behind the other."""
    small = {"prompt": "a cat", "width": 64, "height": 48, "steps": 3, "cfg_scale": 3.0, "seed": 5, "device": "cpu"}
    settings = GenerateSettings.parse({**small, "lora_folders": [folder], "output_folder": folder / "out", **changes})
    pixels = b""
    for saved in generate_images(checkpoint, settings, painter=painter):
        with Image.open(saved.path) as image:
            pixels += image.tobytes()
    return pixels


def _afresh(checkpoint: Path, folder: Path, changes: Mapping[str, Any]) -> bytes:
    import torch

    torch.set_num_threads(1)
    return painted(None, checkpoint, folder, changes)


def _in_turn(checkpoint: Path, folder: Path, jobs: Sequence[Mapping[str, Any]]) -> list[tuple[bytes, int]]:
    import torch

    torch.set_num_threads(1)
    painter = Painter()
    return [(painted(painter, checkpoint, folder, job), painter.loads) for job in jobs]


def painted_afresh(checkpoint: Path, folder: Path, jobs: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """The same for several jobs, each in a process of its own."""
    with _new_processes() as pool:
        return [pool.submit(_afresh, checkpoint, folder, job).result() for job in jobs]


def painted_in_turn(checkpoint: Path, folder: Path, jobs: Sequence[Mapping[str, Any]]) -> list[tuple[bytes, int]]:
    """The same by one painter in one process, each with the number of checkpoints that were loaded so far.

    Not in the process of the tests: what other tests have left in it may change the last bit of a sum.
    """
    with _new_processes() as pool:
        return pool.submit(_in_turn, checkpoint, folder, jobs).result()


def _new_processes() -> ProcessPoolExecutor:
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["painting_jobs"])  # imports are done once; a fork of them painted nothing
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)
