"""LoRAs merged in memory before training, and files that training starts from."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from loraloom.adapters.attach import attach, read_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import FileError, MissingFileError
from loraloom.events import Event, Notice, StepFinished
from loraloom.formats.adapter_file import read_adapter_file, write_adapter_file
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.loaded import load_model
from loraloom.training.base_loras import merge_base_loras, origin_metadata
from loraloom.training.memory import Memory, predict_memory
from loraloom.training.settings import TrainSettings
from loraloom.training.trainer import train
from random_loras import random_lora

MakeSettings = Callable[..., TrainSettings]
CPU = torch.device("cpu")


def run(settings: TrainSettings, folder: Path) -> tuple[Path, list[Event]]:
    events: list[Event] = []
    (folder / "weights").mkdir(parents=True)
    (folder / "previews").mkdir()
    path = train(settings, folder, listener=events.append)
    assert path is not None
    return path, events


def lora_file(path: Path, family: str, seed: int = 0) -> Path:
    write_adapter_file(path, random_lora(family, seed, size=0.2).file_tensors(), metadata={}, dtype=torch.float32)
    return path


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_merged_in_memory_is_attached(family: str, keep: bool, make_settings: MakeSettings, tmp_path: Path) -> None:
    one, two = (lora_file(tmp_path / f"{seed}.safetensors", family, seed) for seed in (1, 2))
    settings = make_settings(f"adapter.base_loras=['{one}:0.5', '{two}:0.25:-1']", family=family)
    before = sha256(settings.checkpoint.read_bytes()).hexdigest()
    merged = load_model(settings.checkpoint, device=CPU, prediction="epsilon", keep_file_precision=keep)
    merge_base_loras(merged, settings.adapter)
    beside = load_model(settings.checkpoint, device=CPU, prediction="epsilon", keep_file_precision=keep)
    layers = {target.name: beside.layer(target) for target in beside.targets}
    attach(read_adapters(one, beside.targets), layers, unet=0.5, text_encoder=0.5)
    attach(read_adapters(two, beside.targets), layers, unet=-1.0, text_encoder=0.25)
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for model in (merged, beside):
        with torch.no_grad():
            text = model.encode_text(["a cat"])
            model.result = model.denoise(noisy, torch.tensor([300]), text)  # type: ignore[attr-defined]
    ours, expected = merged.result, beside.result  # type: ignore[attr-defined]
    assert torch.allclose(ours, expected, atol=1e-4 * float(expected.abs().max()))
    assert sha256(settings.checkpoint.read_bytes()).hexdigest() == before


def test_the_plan_counts_weights_that_are_no_longer_the_files(make_settings: MakeSettings, tmp_path: Path) -> None:
    path = lora_file(tmp_path / "a.safetensors", "sd1")

    def predicted(*overrides: str) -> Memory:
        settings = make_settings(*overrides)
        return predict_memory(settings, open_checkpoint(settings.checkpoint), (64, 64, 1), process=0)

    plain, both, one = (
        predicted(*more) for more in ((), (f"adapter.base_loras=['{path}']",), (f"adapter.base_loras=['{path}:0:1']",))
    )
    settings = make_settings(f"adapter.base_loras=['{path}']")
    model = load_model(settings.checkpoint, device=CPU)
    before = {name: weight for part in model.parts.values() for name, weight in part.named_parameters()}
    merge_base_loras(model, settings.adapter)
    after = {name: weight for part in model.parts.values() for name, weight in part.named_parameters()}
    own = sum(weight.nbytes for name, weight in after.items() if before[name] is not weight)
    assert (plain.weights, both.weights) == (0, own)
    assert both.mapped == plain.mapped - own
    assert 0 < one.weights < both.weights


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_quantized_weights_stay_quantized(method: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    from loraloom.models.quantized import QuantizedWeight

    path = lora_file(tmp_path / "a.safetensors", "sd1")
    settings = make_settings(f"adapter.base_loras=['{path}']")
    plain, merged = (load_model(settings.checkpoint, device=CPU, quantize=method) for _ in range(2))  # type: ignore[arg-type]
    merge_base_loras(merged, settings.adapter)
    count = 0
    for target in plain.targets:
        before, after = plain.weight_of(target), merged.weight_of(target)
        assert isinstance(before, QuantizedWeight) == isinstance(after, QuantizedWeight)
        count += isinstance(after, QuantizedWeight)
        assert not torch.allclose(before.float() + 0, after.float() + 0)
    assert count > 0


def test_a_run_on_top_of_others_says_so(make_settings: MakeSettings, tmp_path: Path) -> None:
    base, start = (
        lora_file(tmp_path / "base.safetensors", "sd1", 1),
        lora_file(tmp_path / "start.safetensors", "sd1", 2),
    )
    more = (f"adapter.base_loras=['{base}:0.5']", f"adapter.start_from='{start}'", "adapter.conv_rank=2")
    path, events = run(make_settings("steps=2", *more), tmp_path / "run")
    plain, _ = run(make_settings("steps=2", "adapter.conv_rank=2"), tmp_path / "plain")
    first = [event.loss for event in events if isinstance(event, StepFinished)]
    assert len(first) == 2
    metadata = read_adapter_file(path).metadata
    told = json.loads(metadata["loraloom.base_loras"])
    assert told == [
        {
            "file": "base.safetensors",
            "sha256": sha256(base.read_bytes()).hexdigest(),
            "text_encoder": 0.5,
            "unet": 0.5,
        }
    ]
    assert json.loads(metadata["loraloom.started_from"])["sha256"] == sha256(start.read_bytes()).hexdigest()
    assert "loraloom.base_loras" not in read_adapter_file(plain).metadata
    # It went on from the file: two steps of 1e-3 are far less than the file's values.
    ours, theirs = read_adapter_file(path).layers, read_adapter_file(start).layers
    for name, roles in theirs.items():
        assert torch.allclose(ours[name]["up"].float(), roles["up"], atol=5e-3)


def test_a_file_that_is_missing_is_said_before_anything_else_is_done(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    for override in ("adapter.base_loras=['gone.safetensors:0.5']", "adapter.start_from='gone.safetensors'"):
        with pytest.raises(MissingFileError, match=r"gone\.safetensors"):
            run(make_settings(override), tmp_path / override[8:14])


@pytest.mark.parametrize("kind", ["dora", "loha", "lokr", "lora_fa"])
def test_a_run_of_each_kind_is_recognised_by_others(kind: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    path, events = run(make_settings("steps=2", f"adapter.kind={kind}", "adapter.dropout=0.1"), tmp_path / "run")
    metadata = read_adapter_file(path).metadata
    wanted = "networks.lora_fa" if kind == "lora_fa" else "lycoris.kohya"
    assert metadata["ss_network_module"] == wanted
    if kind in ("loha", "lokr"):
        assert json.loads(metadata["ss_network_args"])["algo"] == kind
        assert any("adapter.dropout has no effect" in e.text for e in events if isinstance(e, Notice))


def test_no_change_is_longer_than_max_norm(make_settings: MakeSettings, tmp_path: Path) -> None:
    path, _ = run(
        make_settings("steps=3", "optimizer.lr=1e-1", "adapter.max_norm=0.05", "saving.precision=float"),
        tmp_path / "run",
    )
    model = load_model(make_settings().checkpoint, device=CPU)
    norms = [float(adapter.delta().norm()) for _, adapter in read_adapters(path, model.targets).items()]
    assert max(norms) == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("setting", ["start_from", "base_loras"])
def test_a_folder_is_called_one(setting: str, tmp_path: Path) -> None:
    value = (f"{tmp_path}:0.7",) if setting == "base_loras" else tmp_path
    with pytest.raises(FileError, match=rf"adapter\.{setting}: .* is a folder, not a file"):
        origin_metadata(AdapterSettings.model_validate({setting: value}))
