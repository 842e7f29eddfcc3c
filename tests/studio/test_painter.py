"""A model that stays: read once, and no job sees anything of another."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from controls import Asked, asked_to_stop_at
from loraloom.adapters.attach import create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.control import Interrupted, Request
from loraloom.errors import CheckpointError, FileError, OutputError, PromptError
from loraloom.events import Event, Notice
from loraloom.formats.adapter_file import write_adapter_file
from loraloom.formats.tensors import write_tensors
from loraloom.generation.settings import GenerateSettings
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import load_model
from loraloom.studio import images
from loraloom.studio.painter import Loading, Painter
from painting_jobs import painted, painted_afresh, painted_in_turn

CPU = Loading(device="cpu")

JOBS: dict[str, dict[str, Any]] = {
    "side": {"prompt": "a cat <lora:ada:0.7>", "lora_mode": "side", "count": 2, "batch_size": 2},
    "merge": {"prompt": "a cat <lora:ada:0.3:0.9>", "lora_mode": "merge"},
    "blocks": {"prompt": "a cat <lora:ada:0.7:lbw=BASE=1,MID=0.3>", "lora_mode": "merge"},
    "none": {"prompt": "a dog"},
    "vae": {"prompt": "a cat <lora:ada:0.7>", "vae": "other.safetensors"},
    "low memory": {"prompt": "a cat <lora:ada:0.7>", "low_memory": True, "keep_file_precision": True},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint, another one (whose VAE a job takes), a LoRA."""
    small = {"channels": 32, "text_width": 32, "text_layers": 2, "vae_channels": 32}
    write_tensors(tmp_path / "base.safetensors", FAMILIES.load("sd1")().toy(seed=2, **small))
    write_tensors(tmp_path / "other.safetensors", FAMILIES.load("sd1")().toy(seed=3, **small))
    write_lora(tmp_path / "ada.safetensors", 1)
    return tmp_path


def write_lora(path: Path, seed: int) -> None:
    targets = load_model(path.with_name("base.safetensors"), device=torch.device("cpu")).targets
    adapters = create_adapters(AdapterSettings(rank=2), targets, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _, adapter in adapters.items():
        up: Tensor = adapter.up.data  # type: ignore[union-attr, assignment]
        up += torch.randn(up.shape, generator=generator) * 0.05
    write_adapter_file(path, adapters.file_tensors(), metadata={}, dtype=torch.float32)


def paint(painter: Painter | None, folder: Path, **changes: Any) -> bytes:
    if "vae" in changes:
        changes["vae"] = folder / changes["vae"]
    return painted(painter, folder / "base.safetensors", folder, changes)


def unlike(pixels: bytes, others: bytes) -> tuple[int, ...]:
    """How many values differ, and by how much at most; empty where none does."""
    assert len(pixels) == len(others)
    differences = [abs(a - b) for a, b in zip(pixels, others, strict=True) if a != b]
    return (len(differences), max(differences)) if differences else ()


def test_one_job_after_another_paints_what_a_fresh_process_paints(folder: Path) -> None:
    vae = {"vae": folder / "other.safetensors"}
    jobs = {name: {**job, **vae} if "vae" in job else job for name, job in JOBS.items()}
    base = folder / "base.safetensors"
    fresh = dict(zip(jobs, painted_afresh(base, folder, list(jobs.values())), strict=True))
    assert len(set(fresh.values())) == len(JOBS)

    same_model = ["side", "merge", "side", "blocks", "none", "merge", "blocks", "side"]
    others = ["vae", "side", "low memory", "low memory", "side"]
    names = same_model + others
    in_turn = painted_in_turn(base, folder, [jobs[name] for name in names])
    assert [
        (name, off) for name, (pixels, _) in zip(names, in_turn, strict=True) if (off := unlike(pixels, fresh[name]))
    ] == []
    assert [loads for _, loads in in_turn] == [1] * 8 + [2, 3, 4, 4, 5]  # one with low memory found its model


def test_files_that_changed_are_read_again(folder: Path) -> None:
    painter = Painter()
    first = paint(painter, folder, **JOBS["side"])
    write_lora(folder / "ada.safetensors", 7)
    second = paint(painter, folder, **JOBS["side"])
    assert painter.loads == 1
    assert second != first
    assert second == paint(None, folder, **JOBS["side"])

    shutil.copy(folder / "other.safetensors", folder / "new.safetensors")
    (folder / "new.safetensors").replace(folder / "base.safetensors")
    assert paint(painter, folder, **JOBS["none"]) == paint(None, folder, **JOBS["none"])
    assert painter.loads == 2


def test_a_name_means_what_it_means_now(folder: Path) -> None:
    painter = Painter()
    earlier = folder / "earlier"
    earlier.mkdir()
    where = {"lora_folders": [earlier, folder]}
    first = paint(painter, folder, **JOBS["side"], **where)
    write_lora(folder / "new.safetensors", 7)
    (folder / "new.safetensors").rename(earlier / "ada.safetensors")
    second = paint(painter, folder, **JOBS["side"], **where)
    assert second != first
    assert second == paint(None, folder, **JOBS["side"], **where)
    (earlier / "ada.safetensors").unlink()
    (folder / "ada.safetensors").unlink()
    with pytest.raises(PromptError):
        paint(painter, folder, **JOBS["side"], **where)


@pytest.mark.parametrize("mode", ["side", "merge"])
def test_what_was_left_in_the_middle_leaves_nothing(folder: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Painter()
    plain = paint(painter, folder, **JOBS["none"])
    chosen = {"prompt": "a cat <lora:ada:0.7>", "lora_mode": mode, "count": 3}

    def full(image: Image.Image, path: Path, text: str) -> None:
        raise OutputError(f"{path}: there is no space left")

    with monkeypatch.context() as patch:
        patch.setattr(images, "save_image", full)
        with pytest.raises(OutputError) as held:  # whose traceback holds on to all
            paint(painter, folder, **chosen)
    assert paint(painter, folder, **JOBS["none"]) == plain
    assert held.traceback

    settings = GenerateSettings.parse({**chosen, "lora_folders": [folder], "width": 64, "height": 48, "steps": 3})
    with pytest.raises(Interrupted), painter.job(folder / "base.safetensors", CPU, control=asked_to_stop_at(4)) as job:
        next(iter(job.paint(settings)))
    assert paint(painter, folder, **JOBS["none"]) == plain
    assert painter.loads == 1


def test_what_nobody_foresaw_makes_the_model_be_read_again(folder: Path) -> None:
    painter = Painter()
    with pytest.raises(ZeroDivisionError), painter.job(folder / "base.safetensors", CPU):
        _ = 1 // 0
    with pytest.raises(KeyboardInterrupt), painter.job(folder / "base.safetensors", CPU):
        raise Interrupted  # a signal, anywhere: not a control that was heeded
    with painter.job(folder / "base.safetensors", CPU):
        assert painter.loads == 3


def test_a_checkpoint_that_cannot_be_used_is_refused_every_time(folder: Path) -> None:
    painter = Painter()
    for _ in range(2):
        with pytest.raises(FileError), painter.job(folder / "absent.safetensors", CPU):
            pass
        with pytest.raises(CheckpointError), painter.job(folder / "ada.safetensors", CPU):
            pass
    with painter.job(folder / "base.safetensors", CPU):
        assert painter.loads == 1


def test_each_job_hears_what_there_is_to_say_of_the_checkpoint(folder: Path) -> None:
    painter = Painter()
    heard: tuple[list[Event], list[Event]] = ([], [])
    for listen in heard:
        with painter.job(folder / "base.safetensors", CPU, listener=listen.append):
            pass
    assert heard[0] == heard[1]
    assert any(isinstance(event, Notice) and "Stable Diffusion 1" in event.text for event in heard[0])


def test_release_gives_the_memory_back(folder: Path) -> None:
    painter = Painter()
    paint(painter, folder, **JOBS["merge"])
    with painter.job(folder / "base.safetensors", CPU) as job:
        model = weakref.ref(job.model)
    del job
    painter.release()
    gc.collect()
    assert model() is None
    painter.release()
    paint(painter, folder, **JOBS["none"])
    assert painter.loads == 2


def test_one_job_at_a_time_from_any_thread(folder: Path) -> None:
    alone = {name: paint(None, folder, **JOBS[name]) for name in ("side", "merge", "none")}
    painter, inside, most = Painter(), [0], [0]
    found: dict[tuple[str, int], bytes] = {}

    def listen(event: Event) -> None:
        if inside[0] > 1:
            most[0] = inside[0]

    def work(name: str, turn: int) -> None:
        with painter.job(folder / "base.safetensors", CPU, listener=listen) as job:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            small = {"width": 64, "height": 48, "steps": 3, "cfg_scale": 3.0, "seed": 5, "lora_folders": [folder]}
            settings = GenerateSettings.parse({"prompt": "a cat", **small, **JOBS[name]})
            found[name, turn] = b"".join(image.image.tobytes() for image in job.paint(settings))
            inside[0] -= 1

    threads = [threading.Thread(target=work, args=(name, turn)) for turn in range(2) for name in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert painter.loads == 1
    assert {key: pixels == alone[key[0]] for key, pixels in found.items()} == dict.fromkeys(found, True)
    assert len(found) == 6


def test_who_waits_can_be_stopped_and_nobody_waits_for_himself(folder: Path) -> None:
    painter = Painter()
    with painter.job(folder / "base.safetensors", CPU):
        waiting = threading.Thread(target=_give_up, args=(painter, folder, given_up := list[bool]()))
        waiting.start()
        waiting.join()
        assert given_up == [True]
        with pytest.raises(RuntimeError, match="in this thread already"), painter.job(folder / "base.safetensors", CPU):
            pass
    with painter.job(folder / "base.safetensors", CPU):
        assert painter.loads == 1


def _give_up(painter: Painter, folder: Path, given_up: list[bool]) -> None:
    try:
        with painter.job(folder / "base.safetensors", CPU, control=Asked(Request.GO, Request.STOP)):
            given_up.append(False)
    except Interrupted:
        given_up.append(True)


def test_loading_is_left_between_two_tensors(folder: Path) -> None:
    painter: Painter = Painter()
    attempt: Callable[..., Any] = painter.job
    with pytest.raises(Interrupted), attempt(folder / "base.safetensors", CPU, control=asked_to_stop_at(3)):
        pass
    assert painter.loads == 0
