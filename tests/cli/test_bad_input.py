"""Whatever is wrong with what a command is given: one problem, one hint, exit code 1, and no trace on the disk."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pytest

Command = Callable[..., Any]


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder with its content."""
    paths = sorted(folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.fixture
def refused(command: Command, files: Path) -> Iterator[Callable[..., None]]:
    """Runs a command that must be refused, and compares the disk before and after."""
    before = tree(files)

    def run(arguments: tuple[str, ...], message: str) -> None:
        outcome = command(*(argument.replace("FILES", str(files)) for argument in arguments))
        assert "Traceback" not in outcome.out + outcome.err
        assert outcome.code == 1, outcome
        problem, hint = outcome.error_lines
        assert problem.startswith("error: ")
        assert message in problem + hint, outcome.err
        assert hint.startswith("hint: ")
        assert len(hint) > len("hint:  ")

    yield run
    after = tree(files)
    after.pop("out", None)  # an empty folder, made to see whether images can be saved before the model is loaded
    assert {name: data for name, data in after.items() if not is_record(name)} == before
    assert tree(Path.cwd()) == {}


def is_record(name: str) -> bool:
    """Whether this is what a run leaves that could not begin: what it was to be, and why it is not."""
    path = PurePath(name)
    kept = {".lock", "events.jsonl", "settings.toml", "previews", "weights", "state"}
    return path.parts[0] == "runs" and (len(path.parts) < 3 or (len(path.parts) == 3 and path.name in kept))


class Case(NamedTuple):
    label: str
    arguments: tuple[str, ...]
    message: str


def train(*changed: str) -> tuple[str, ...]:
    """A command line that would train, with some of it changed."""
    given = {
        "checkpoint": "FILES/sd1.safetensors",
        "dataset.folder": "FILES/pictures",
        "dataset.resolution": "64",
        "output": "FILES/runs",
        "device": "cpu",
        "adapter.rank": "2",
        "steps": "1",
    }
    given |= dict(change.split("=", 1) for change in changed)
    return ("train", *(f"{key}={value}" for key, value in given.items()))


def generate(*changed: str, checkpoint: str = "FILES/sd1.safetensors", prompt: str = "a cat") -> tuple[str, ...]:
    given = {"width": "64", "height": "64", "steps": "1", "device": "cpu", "output_folder": "FILES/out"}
    given |= dict(change.split("=", 1) for change in changed)
    return ("generate", checkpoint, prompt, *(f"{key}={value}" for key, value in given.items()))


def merge(checkpoint: str, lora: str, output: str = "FILES/out.safetensors") -> tuple[str, ...]:
    return ("merge", f"FILES/{checkpoint}", f"FILES/{lora}", "-o", output)


BAD_CHECKPOINTS = {
    "absent.safetensors": "absent.safetensors",
    "cut.safetensors": "not downloaded completely",
    "empty.ckpt": "is empty",
    "page.ckpt": "web page",
    "file": "file",
    "lora-sd1.safetensors": "is a LoRA, not a checkpoint",
    "vae.safetensors": "is a VAE only",
    "flux.safetensors": "Flux",
    "pictures": "not a Diffusers folder",
}
BAD_LORAS = {
    "absent.safetensors": "absent",
    "cut.safetensors": "not downloaded completely",
    "lora-sdxl.safetensors": "do not exist in this model",
    "lora-shapes.safetensors": "(2, 7)",
    "vae.safetensors": "is not a LoRA file",
}
LONG = "x" * 5000
CASES = [
    *(Case(f"train {n}", train(f"checkpoint=FILES/{n}"), m) for n, m in BAD_CHECKPOINTS.items()),
    *(Case(f"generate {n}", generate(checkpoint=f"FILES/{n}"), m) for n, m in BAD_CHECKPOINTS.items()),
    *(
        Case(f"merge {n}", merge(n, "lora-sd1.safetensors"), m)
        for n, m in BAD_CHECKPOINTS.items()
        if n != "lora-sd1.safetensors"  # LoRAs are merged into a LoRA
    ),
    *(
        Case(f"{tool} {n}", (tool, f"FILES/{n}", "FILES/sd1.safetensors", "-o", "FILES/out.safetensors"), m)
        for tool in ("extract", "merge-checkpoints")
        for n, m in BAD_CHECKPOINTS.items()
    ),
    *(Case(f"merge with {n}", merge("sd1.safetensors", f"{n}:0.5"), m) for n, m in BAD_LORAS.items()),
    *(Case(f"generate with {n}", generate(prompt=f"<lora:FILES/{n}:1>"), m) for n, m in BAD_LORAS.items()),
    *(
        Case(f"inspect {n}", ("inspect", f"FILES/{n}"), BAD_CHECKPOINTS[n])
        for n in ("absent.safetensors", "cut.safetensors", "empty.ckpt", "page.ckpt", "file", "pictures")
    ),
    Case("train, unknown setting", train("adapter.rnak=4"), "did you mean 'adapter.rank'"),
    Case("train, setting of sd-scripts", train("network_dim=4"), "is called 'adapter.rank' here"),
    Case("train, wrong value", train("adapter.rank=many"), "adapter.rank"),
    Case("train, unknown optimizer", train("optimizer.name=adamv"), "adamw"),
    Case("train, no checkpoint given", ("train", "dataset.folder=FILES/pictures"), "'checkpoint' is required"),
    Case("train, no settings file", ("train", "FILES/absent.toml"), "absent.toml"),
    Case("train, settings file is no TOML", ("train", "FILES/page.ckpt"), "not valid TOML"),
    Case("train, two settings files", ("train", "a.toml", "b.toml"), "2 settings files"),
    Case("train, missing dataset", train("dataset.folder=FILES/absent"), "absent"),
    Case("train, empty dataset", train("dataset.folder=FILES/empty"), "empty"),
    Case("train, dataset is a file", train("dataset.folder=FILES/file"), "file"),
    Case("train, output under a file", train("output=FILES/file/runs"), "runs"),
    Case("train, output is a file", train("output=FILES/file"), "file"),
    Case("train, name with a slash", train("name=a/b"), "name"),
    Case("train, preview of a missing LoRA", train("preview.prompts=['<lora:absent:1>']"), "absent"),
    Case("train, clip skip too deep", train("clip_skip=9"), "clip_skip"),
    Case("train, no such device", train("device=tpu"), "tpu"),
    Case("train, long path", train(f"checkpoint={LONG}"), "xxx"),
    Case("generate, unknown setting", generate("stepz=4"), "did you mean 'steps'"),
    Case("generate, unknown sampler", generate("sampler=Eular"), "Euler"),
    Case("generate, output under a file", generate("output_folder=FILES/file/out"), "out"),
    Case("generate, output is a file", generate("output_folder=FILES/file"), "file"),
    Case("generate, long path", generate(checkpoint=LONG), "xxx"),
    Case(
        "merge, output in a missing folder", merge("sd1.safetensors", "lora-sd1.safetensors", "FILES/no/o.ckpt"), "no"
    ),
    Case("merge, output under a file", merge("sd1.safetensors", "lora-sd1.safetensors", "FILES/file/o.ckpt"), "file"),
    Case("merge, output is a folder", merge("sd1.safetensors", "lora-sd1.safetensors", "FILES/empty"), "empty"),
    Case(
        "merge, output is the input",
        merge("sd1.safetensors", "lora-sd1.safetensors", "FILES/sd1.safetensors"),
        "one of",
    ),
    Case("merge, unknown suffix", merge("sd1.safetensors", "lora-sd1.safetensors", "FILES/out.pth"), "neither"),
    Case("merge, weight is a word", merge("sd1.safetensors", "lora-sd1.safetensors:much"), "'much' is not a number"),
    Case("merge, weight zero", merge("sd1.safetensors", "lora-sd1.safetensors:0"), "nothing would change"),
    Case("merge, long output", merge("sd1.safetensors", "lora-sd1.safetensors", f"{LONG}.ckpt"), "xxx"),
    Case("inspect, long path", ("inspect", LONG), "xxx"),
    Case("dataset check, missing", ("dataset", "check", "FILES/absent"), "absent"),
    Case("dataset check, a file", ("dataset", "check", "FILES/file"), "file"),
    Case("dataset check, unknown setting", ("dataset", "check", "FILES/pictures", "resolutoin=64"), "'resolution'"),
    Case("dataset check, long path", ("dataset", "check", LONG), "xxx"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_bad_input(case: Case, refused: Callable[..., None]) -> None:
    refused(case.arguments, case.message)


def test_an_empty_dataset_is_reported(command: Command, files: Path) -> None:
    outcome = command("dataset", "check", files / "empty")
    assert outcome.code == 1
    assert "no usable picture" in outcome.out
    assert "Traceback" not in outcome.out + outcome.err


def test_one_bad_file_does_not_keep_the_others_from_being_inspected(command: Command, files: Path) -> None:
    outcome = command("inspect", files / "cut.safetensors", files / "sd1.safetensors")
    assert outcome.code == 1
    assert len(outcome.error_lines) == 2
    assert "Stable Diffusion 1" in outcome.out


# ------------------------------------------------------------------------------------------------ a full disk

WRITERS = [
    Case("train", train(), "no space left"),
    Case("generate", generate(), "no space left"),
    Case("merge", merge("sd1.safetensors", "lora-sd1.safetensors"), "no space left"),
    Case("merge to ckpt", merge("sd1.safetensors", "lora-sd1.safetensors", "FILES/out.ckpt"), "no space left"),
]


def full_disk(monkeypatch: pytest.MonkeyPatch, *, larger_than: int) -> None:
    """Files of more bytes cannot be finished: some file systems say so only when data is flushed."""

    def fsync(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > larger_than:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fsync)


@pytest.mark.parametrize("case", WRITERS, ids=lambda case: case.label)
def test_a_disk_that_fills_up_at_once(
    case: Case, files: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, larger_than=0)
    before = tree(files)
    outcome = command(*(argument.replace("FILES", str(files)) for argument in case.arguments))
    assert outcome.code == 1
    problem, hint = outcome.error_lines
    assert case.message in problem
    assert "free some space" in hint
    assert set(tree(files)) - set(before) <= {"out", "runs"}
    assert {name: data for name, data in tree(files).items() if name in before} == before


def test_a_disk_that_fills_up_during_the_run(files: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stays with its record, and holds no half of a LoRA."""
    full_disk(monkeypatch, larger_than=40_000)
    outcome = command(*(argument.replace("FILES", str(files)) for argument in train()))
    assert outcome.code == 1
    assert "no space left" in outcome.error_lines[0]
    run = files / "runs" / "lora"
    folders = {"previews", "state", "weights"}
    assert {path.name for path in run.rglob("*")} - {".lock", "curves.png"} == {
        "events.jsonl",
        "settings.toml",
        *folders,
    }
    assert "RunFailed" in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()[-1]


def test_too_little_space_is_seen_before_anything_is_written(
    files: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(files)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10_000))
    before = tree(files)
    outcome = command(*(a.replace("FILES", str(files)) for a in merge("sd1.safetensors", "lora-sd1.safetensors")))
    assert outcome.code == 1
    assert "not enough space" in outcome.error_lines[0]
    assert tree(files) == before


def test_a_merge_that_is_interrupted_leaves_nothing(
    files: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("loraloom.weights.merge.merged_tensor", interrupt)
    before = tree(files)
    outcome = command(*(a.replace("FILES", str(files)) for a in merge("sd1.safetensors", "lora-sd1.safetensors")))
    assert outcome.code == 130
    assert outcome.error_lines == []
    assert tree(files) == before
