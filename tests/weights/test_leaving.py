"""Work on model files is left between two tensors or layers, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from controls import Asked, asked_to_stop_at, unfinished
from loraloom.adapters.strength import LoraStrength
from loraloom.control import Control, Interrupted, Request, keep_going
from loraloom.events import Event, Listener, PieceFinished, ignore
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.file_hashes import compute_hashes
from loraloom.formats.files import sha256_of
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.weights.anatomy import dissect
from loraloom.weights.checkpoint_merge import CheckpointWeight, merge_checkpoints
from loraloom.weights.combine import combine_loras
from loraloom.weights.convert import convert_lora
from loraloom.weights.extract import extract_lora
from loraloom.weights.inspect import inspect_file
from loraloom.weights.merge import LoraWeight, merge
from loraloom.weights.metadata import edit_metadata
from loraloom.weights.resize import resize_lora
from random_loras import random_lora
from toys import toy_tensors

Work = Callable[[Listener, Control], None]


@pytest.fixture(params=["merge", "merge to .ckpt", "merge_checkpoints", "combine", "extract", "resize", "convert"])
def job(
    request: pytest.FixtureRequest, checkpoint: Callable[..., Path], write_lora: Callable[..., Path], tmp_path: Path
) -> tuple[Work, Path, str]:
    """A job, the file that it writes, what its pieces are."""
    base, lora = checkpoint("sd1"), write_lora("a.safetensors", random_lora("sd1", 1))
    output = tmp_path / ("out.ckpt" if request.param.endswith(".ckpt") else "out.safetensors")

    def other() -> Path:
        path = tmp_path / "other.safetensors"
        changed = {name: tensor * 1.07 if tensor.dim() == 2 else tensor for name, tensor in toy_tensors("sd1").items()}
        write_tensors(path, changed)
        return path

    jobs: dict[str, tuple[Work, str]] = {
        "merge": (
            lambda listener, control: merge(
                base, [LoraWeight(lora, LoraStrength(0.3))], output, listener=listener, control=control
            ) and None,
            "tensors",
        ),
        "merge_checkpoints": (
            lambda listener, control: merge_checkpoints(
                base, [CheckpointWeight(other(), 0.3)], output, listener=listener, control=control
            ) and None,
            "tensors",
        ),
        "combine": (
            lambda listener, control: combine_loras(
                [LoraWeight(lora, LoraStrength(weight)) for weight in (0.3, 0.6)],
                output, rank=3, listener=listener, control=control,
            ) and None,
            "layers",
        ),
        "extract": (
            lambda listener, control: extract_lora(
                base, other(), output, rank=3, listener=listener, control=control
            ) and None,
            "layers",
        ),
        "resize": (
            lambda listener, control: resize_lora(lora, output, rank=1, listener=listener, control=control) and None,
            "layers",
        ),
        "convert": (
            lambda listener, control: convert_lora(
                lora, output, to="diffusers", listener=listener, control=control
            ) and None,
            "layers",
        ),
    }  # fmt: skip
    work, what = jobs[request.param.removesuffix(" to .ckpt")]
    return work, output, what


def test_it_is_left_between_two_pieces_and_nothing_is_half_written(job: tuple[Work, Path, str], tmp_path: Path) -> None:
    work, output, what = job
    heard: list[Event] = []
    pause = iter([Request.PAUSE])

    def control() -> Request:
        done = [event for event in heard if isinstance(event, PieceFinished) and event.what == what]
        return next(pause, Request.STOP if len(done) == 3 else Request.GO)

    with pytest.raises(Interrupted):
        work(heard.append, control)
    done = [event for event in heard if isinstance(event, PieceFinished) and event.what == what]
    assert [event.done for event in done] == [1, 2, 3]
    assert done[0].total > 4
    assert not output.exists()
    assert unfinished(tmp_path) == []

    work(ignore, keep_going)  # the same command again
    first = output.read_bytes()
    work(ignore, Asked(Request.PAUSE, Request.GO))
    assert output.read_bytes() == first


def test_progress_counts_every_piece_once(job: tuple[Work, Path, str]) -> None:
    work, output, what = job
    heard: list[Event] = []
    work(heard.append, keep_going)
    told = [event for event in heard if isinstance(event, PieceFinished) and event.what == what]
    assert [event.done for event in told] == list(range(1, told[0].total + 1))
    if what == "tensors":
        assert told[0].total == len(open_tensors(output))


def test_what_was_there_stays_when_writing_over_it_is_left(job: tuple[Work, Path, str], tmp_path: Path) -> None:
    work, output, _ = job
    write_tensors(output, {"old": torch.arange(3.0)})
    before = output.read_bytes()
    with pytest.raises(Interrupted):
        work(ignore, asked_to_stop_at(3))
    assert output.read_bytes() == before
    assert unfinished(tmp_path) == []


def test_a_hash_is_left_between_two_pieces_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(3 << 20) + b"end")
    for hashed in (sha256_of, compute_hashes):
        asked = Asked(Request.GO)
        hashed(path, asked)
        assert asked.times == 4
        with pytest.raises(Interrupted):
            hashed(path, asked_to_stop_at(3))


def test_layers_are_measured_one_by_one(write_lora: Callable[..., Path]) -> None:
    path = write_lora("a.safetensors", random_lora("sd1", 1))
    heard: list[Event] = []
    anatomy = dissect(read_adapter_file(path), heard.append)
    assert heard == [PieceFinished("layers", n + 1, len(heard)) for n in range(len(anatomy.layers))]

    heard.clear()
    with pytest.raises(Interrupted):
        dissect(read_adapter_file(path), heard.append, asked_to_stop_at(4))
    assert len(heard) == 2  # the pause and the first question are before the first layer
    with pytest.raises(Interrupted):
        inspect_file(path, layers=True, control=asked_to_stop_at(len(anatomy.layers) + 1))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_hashing_what_is_inspected_is_left(checkpoint: Callable[..., Path], suffix: str) -> None:
    path = checkpoint("sd1", suffix=suffix)
    asked = Asked(Request.GO)
    inspect_file(path, hashes=True, control=asked)
    assert asked.times > 4
    for question in (2, asked.times // 2, asked.times):
        with pytest.raises(Interrupted):
            inspect_file(path, hashes=True, control=asked_to_stop_at(question))
    asked = Asked(Request.GO)
    inspect_file(path, control=asked)
    assert asked.times == 0  # without hashes nothing long is done


def test_a_copy_with_other_metadata_is_left(write_lora: Callable[..., Path], tmp_path: Path) -> None:
    path = write_lora("a.safetensors", random_lora("sd1", 1), {"ss_steps": "3", "sshs_legacy_hash": "0"})
    before = path.read_bytes()
    asked = Asked(Request.GO)
    edit_metadata(path, tmp_path / "b.safetensors", {"ss_steps": "7"}, control=asked)
    for question in (2, asked.times // 2, asked.times):
        for output in (path, tmp_path / "c.safetensors"):
            with pytest.raises(Interrupted):
                edit_metadata(path, output, {"ss_steps": "7"}, control=asked_to_stop_at(question))
    assert path.read_bytes() == before
    assert not (tmp_path / "c.safetensors").exists()
    assert unfinished(tmp_path) == []


def test_a_lora_that_is_being_written_is_left(write_lora: Callable[..., Path], tmp_path: Path) -> None:
    """Behind the last layer come the hash and the file itself, tensor by tensor."""
    path, output = write_lora("a.safetensors", random_lora("sd1", 1)), tmp_path / "b.safetensors"
    asked = Asked(Request.GO)
    layers = convert_lora(path, output, control=asked).layers
    assert asked.times > 2 * layers
    output.unlink()
    for question in (layers + 2, asked.times):
        with pytest.raises(Interrupted):
            convert_lora(path, output, control=asked_to_stop_at(question))
        assert not output.exists()
    assert unfinished(tmp_path) == []
