"""The plan: counts of steps and images, exact memory of a step without data, and a peak that is near the real one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from loraloom.adapters.attach import attach, create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.cli.plan import advice, describe
from loraloom.cli.words import worded
from loraloom.data.dataset import load_dataset
from loraloom.errors import OutputError, SettingsError
from loraloom.events import Event, LatentsCached, MemoryMeasured, MemoryPredicted, Notice, RunStarted
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.layers import recomputing
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.studio.plan import least_peak, parse_size, plan_run
from loraloom.training.memory import predict_memory
from loraloom.training.meter import Meter
from loraloom.training.plan import cheapest_changes, make_plan
from loraloom.training.settings import TrainSettings
from loraloom.training.trainer import train
from loraloom.training.work import count_work
from work import HANGS_AFTER_S

MakeSettings = Callable[..., TrainSettings]
RECOMPUTE = pytest.mark.parametrize("recompute", ["none", "selective", "full"])


def prepared(checkpoint: Path, device: str, recompute: str) -> tuple[LoadedModel, list[torch.nn.Parameter]]:
    model = load_model(checkpoint, device=torch.device(device), prediction="epsilon")
    adapters = create_adapters(AdapterSettings(rank=4), model.targets, seed=0).to(device).train()
    attach(adapters, {target.name: model.layer(target) for target in model.targets})
    for part, module in model.parts.items():
        if part != "vae":
            module.gradient_checkpointing = recompute  # type: ignore[assignment]
    return model, list(adapters.parameters())


def step(model: LoadedModel, device: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 16, 16, generator=random).to(device)
    text = model.encode_text(["a cat", "a dog on a hill"])
    return (model.denoise(noisy, torch.tensor([3, 700]).to(device), text) - noisy).square().mean()


@RECOMPUTE
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_without_data_as_many_bytes_are_counted_as_a_real_step_takes(
    family: str, recompute: str, checkpoints: Callable[[str], Path]
) -> None:
    counted = {}
    for device in ("meta", "cpu"):
        model, _ = prepared(checkpoints(family), device, recompute)
        with Meter(device) as meter:
            loss = step(model, device)
            kept = meter.live
            loss.backward()  # type: ignore[no-untyped-call]
        counted[device] = (kept, meter.peak, meter.flops)
    real, planned = counted["cpu"], counted["meta"]
    assert planned[0] == real[0]
    assert planned[1] == pytest.approx(real[1], rel=0.005)  # small tensors that are on the CPU in both cases
    assert planned[2] == real[2]


def test_what_the_meter_counts_is_what_the_graph_saves(checkpoints: Callable[[str], Path]) -> None:
    model, parameters = prepared(checkpoints("sd1"), "cpu", "none")
    frozen = {weight.untyped_storage()._cdata for part in model.parts.values() for weight in part.parameters()}
    frozen |= {parameter.untyped_storage()._cdata for parameter in parameters}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in frozen:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with Meter("cpu") as meter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step(model, "cpu")
    assert loss.requires_grad
    assert sum(saved.values()) == pytest.approx(meter.live, rel=0.03)


def test_each_way_keeps_less_and_gives_the_same_gradients(checkpoints: Callable[[str], Path]) -> None:
    kept, gradients = {}, {}
    for recompute in ("none", "selective", "full"):
        model, parameters = prepared(checkpoints("sd1"), "cpu", recompute)
        for index, parameter in enumerate(parameters):  # away from the start, where half of the gradients are zero
            with torch.no_grad():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
        with Meter("cpu") as meter:
            loss = step(model, "cpu")
            kept[recompute] = meter.live
        loss.backward()  # type: ignore[no-untyped-call]
        gradients[recompute] = [loss.detach(), *(parameter.grad for parameter in parameters)]
    assert kept["selective"] < 0.85 * kept["none"]
    assert kept["full"] < 0.5 * kept["none"]
    for recompute in ("selective", "full"):
        assert all(torch.equal(a, b) for a, b in zip(gradients["none"], gradients[recompute], strict=True))  # type: ignore[arg-type]


def test_a_tensor_changed_in_place_is_not_computed_again_from_the_wrong_values() -> None:
    from loraloom.models.layers import geglu

    x, weight = torch.randn(2, 8), torch.randn(3, 4, requires_grad=True)
    with recomputing():
        loss = (geglu(x) @ weight.T).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match="in place"):
        loss.backward()  # type: ignore[no-untyped-call]


# ------------------------------------------------------------------------------------------------ the plan of a run


def test_steps_and_images_are_those_of_the_run(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraloom.training.memory.SMALL_BYTES", 0)
    settings = make_settings("epochs=2", "gradient_accumulation=2")
    work = count_work(settings, load_dataset(settings.dataset))
    events: list[Event] = []
    run = tmp_path / "run"
    for name in ("weights", "previews"):
        (run / name).mkdir(parents=True)
    train(settings, run, listener=events.append)
    started = next(event for event in events if isinstance(event, RunStarted))
    assert (work.steps, work.steps_per_epoch, work.epochs) == (started.total_steps, started.steps_per_epoch, 2)
    assert work.images == {"1_blue": 4, "2_red": 8}
    assert work.buckets == {"64x64": 3}
    assert work.largest == (64, 64, 2)
    assert work.share_of_largest == 6
    predicted = next(event for event in events if isinstance(event, MemoryPredicted))
    assert predicted.peak > 0
    measured = next(event for event in events if isinstance(event, MemoryMeasured))
    assert measured.predicted == predicted.peak


@pytest.mark.parametrize("source", ["share", "folder"])
def test_pictures_that_are_held_out_take_no_steps(make_settings: MakeSettings, tmp_path: Path, source: str) -> None:
    extra = tmp_path / "extra"
    extra.mkdir()
    Image.new("RGB", (64, 64), "#808000").save(extra / "a.png")
    held = "validation.share=0.5" if source == "share" else f"validation.folder='{extra}'"
    cached = ["dataset.cache_to_disk=true", f"dataset.cache_folder='{tmp_path / 'cache'}'"]
    settings = make_settings("epochs=2", "batch_size=1", held, *cached)
    plan, _ = plan_run(settings, dry=True)
    events: list[Event] = []
    for name in ("weights", "previews"):
        (tmp_path / "run" / name).mkdir(parents=True)
    train(settings, tmp_path / "run", listener=events.append)
    started = next(event for event in events if isinstance(event, RunStarted))
    assert plan.work.steps == started.total_steps < (12 if source == "share" else 13)
    kept = len(list((tmp_path / "cache").rglob("*.safetensors")))
    assert plan.disk.latents == kept * 2 * 4 * 4 * 8 * 8


def test_with_steps_the_last_epoch_is_cut(make_settings: MakeSettings) -> None:
    settings = make_settings("steps=4")
    work = count_work(settings, load_dataset(settings.dataset))
    assert (work.steps, work.epochs, work.steps_per_epoch) == (4, 2, 3)
    assert sum(work.images.values()) == 6 + 2


@pytest.mark.parametrize("length", ["epochs=1000000007", "steps=3000000022"])
def test_a_run_of_any_length_is_counted(
    length: str, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going through all of its epochs would take days."""
    monkeypatch.setattr("loraloom.training.work._LOOKED_AT", 20)
    settings = make_settings(length)
    work = count_work(settings, load_dataset(settings.dataset))
    if settings.steps is None:
        assert (work.steps, work.epochs) == (3 * 1_000_000_007, 1_000_000_007)
        assert work.images == {"1_blue": 2 * 1_000_000_007, "2_red": 4 * 1_000_000_007}
    else:
        assert (work.steps, work.epochs) == (3_000_000_022, 1_000_000_008)
        assert sum(work.images.values()) == 2 * 3_000_000_022
    assert work.share_of_largest == pytest.approx(work.steps)


def test_the_parts_of_the_memory(make_settings: MakeSettings) -> None:
    settings = make_settings()
    checkpoint = open_checkpoint(settings.checkpoint)
    memory = predict_memory(settings, checkpoint, (64, 64, 2), process=0)
    targets = checkpoint.family.adapter_targets(checkpoint.infos)
    numbers = sum(p.numel() for p in create_adapters(settings.adapter, targets, seed=0).parameters())
    assert memory.adapter == 4 * numbers
    assert memory.optimizer == 2 * 4 * numbers
    assert memory.weights == 0  # an fp32 file on the CPU stays mapped
    parts = ("model.", "first_stage_model.", "cond_stage_model.")
    assert memory.mapped == sum(
        info.nbytes for name, info in checkpoint.infos.items() if name.startswith(parts) and info.dtype == torch.float32
    )
    sgd = predict_memory(make_settings("optimizer.name=sgd_nesterov"), checkpoint, (64, 64, 2), process=0)
    assert sgd.optimizer == 4 * numbers
    more = predict_memory(settings, checkpoint, (64, 64, 4), process=0)
    assert 1.8 * memory.kept < more.kept < 2.1 * memory.kept
    assert memory.flops == pytest.approx(more.flops / 2, rel=0.05)


def test_the_cheapest_change_that_fits_is_named(make_settings: MakeSettings) -> None:
    settings = make_settings("batch_size=4")
    checkpoint = open_checkpoint(settings.checkpoint)
    work = count_work(settings, load_dataset(settings.dataset))
    memory = predict_memory(settings, checkpoint, work.largest, process=0)
    assert cheapest_changes(settings, checkpoint, work, memory.peak, memory) == []

    def needed(*overrides: str) -> int:
        images = 1 if "batch_size=1" in overrides else work.largest[2]
        changed = make_settings("batch_size=4", *overrides)
        return predict_memory(changed, checkpoint, (64, 64, images), process=0).peak

    selective, full = needed("gradient_checkpointing=selective"), needed("gradient_checkpointing=full")
    assert full < selective < memory.peak
    for limit, wanted in ((selective, "selective"), (full, "full")):
        (change,) = cheapest_changes(settings, checkpoint, work, limit, memory)
        assert change.overrides == {"gradient_checkpointing": wanted}
        assert change.peak <= limit


def test_the_plan_in_words(make_settings: MakeSettings) -> None:
    settings = make_settings("epochs=2")
    dry, changes = plan_run(settings, dry=True, limit=2**40)
    text = "\n".join([*describe(dry), *advice(dry, changes, 2**40)])
    assert "6 in 2 epochs of 3" in text
    assert "1_blue 4, 2_red 8" in text
    assert "assumed" in text
    assert "as it is" in text
    timed, _ = plan_run(settings)
    assert timed.timed
    assert "from two real steps" in "\n".join(describe(timed))
    full = "\n".join(describe(replace(timed, free_disk=2**20 * 3 // 10)))
    assert timed.work.images_seen == 12
    assert timed.trial is not None and timed.trial.peak is not None and timed.off_percent is not None
    assert timed.trial.peak * (1 + timed.off_percent / 100) == pytest.approx(timed.memory.peak)
    assert dry.off_percent is None
    assert replace(timed, free_disk=None).fits_disk and replace(timed, free_disk=timed.disk.total).fits_disk
    assert not replace(timed, free_disk=timed.disk.total - 1).fits_disk
    assert least_peak(dry, changes) == dry.memory.peak
    assert "too much, only 0.3 MiB are free: set output to a folder on another disk" in full
    assert timed.seconds_per_batch > 0
    assert not settings.output.exists()


@pytest.mark.parametrize(("text", "size"), [("6GB", 6 * 2**30), ("800 MiB", 800 * 2**20), ("1.5g", 3 * 2**29)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_a_size_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        parse_size("a lot")
    assert caught.value.problem == "the memory 'a lot' is not a size"
    assert worded(caught.value.problem) == "--memory 'a lot' is not a size"
    assert worded(caught.value.hint) == "for example --memory 6GB"


CHILD = """
import json, sys
from pathlib import Path
import torch
from loraloom.events import MemoryMeasured
from loraloom.training.settings import TrainSettings
from loraloom.training import memory
from loraloom.training.trainer import train
memory.SMALL_BYTES = 0
torch.set_num_threads(1)
run = Path(sys.argv[1])
for name in ("weights", "previews"):
    (run / name).mkdir(parents=True)
found = []
train(TrainSettings.load(None, sys.argv[2:]), run, listener=found.append)
print(json.dumps([[event.predicted, event.measured] for event in found if isinstance(event, MemoryMeasured)][0]))
"""


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_predicted_peak_is_near_the_measured_one(
    recompute: str, tmp_path: Path, checkpoints: Callable[[str], Path], pictures: Path
) -> None:
    """A toy at 256 px with a large batch, in a process of its own, so that the step weighs as much as the program."""
    overrides = [
        f"checkpoint='{checkpoints('sd1')}'",
        f"dataset.folder='{pictures}'",
        "dataset.resolution=256",
        "batch_size=6",
        "adapter.rank=4",
        "steps=2",
        "device=cpu",
        "saving.state=false",
        f"gradient_checkpointing={recompute}",
    ]
    command = [sys.executable, "-c", CHILD, str(tmp_path / "run"), *overrides]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=HANGS_AFTER_S)
    predicted, measured = json.loads(done.stdout.splitlines()[-1])
    assert predicted == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("quantize", ["int8", "nf4"])
def test_a_lora_on_a_quantized_checkpoint_learns_and_is_an_ordinary_file(
    quantize: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    losses: dict[str, list[float]] = {}
    for method in ("none", quantize):
        run = tmp_path / method
        for name in ("weights", "previews"):
            (run / name).mkdir(parents=True)
        events: list[Event] = []
        settings = make_settings("steps=6", f"quantize={method}", "optimizer.lr=1e-2")
        lora = train(settings, run, listener=events.append)
        losses[method] = [event.loss for event in events if hasattr(event, "learning_rates")]
        assert lora is not None
        file = read_adapter_file(lora)
        assert file.metadata.get("ss_quantize") == (None if method == "none" else method)
        assert all(tensor.dtype == torch.float16 for role in file.layers.values() for tensor in role.values())
        assert any(bool(roles["up"].any()) for roles in file.layers.values())
    assert losses[quantize] != losses["none"]
    assert losses[quantize] == pytest.approx(losses["none"], rel=0.25)


def test_the_plan_says_what_has_no_effect(make_settings: MakeSettings) -> None:
    heard: list[Event] = []
    plan_run(make_settings("ema.decay=0.5"), dry=True, listener=heard.append)
    told = [event.text for event in heard if isinstance(event, Notice)]
    assert "ema.decay has no effect without ema.enabled" in told


# ------------------------------------------------------------------------------------------------ bounds and room


def test_the_trial_is_given_up_when_its_time_is_over(make_settings: MakeSettings) -> None:
    heard: list[Event] = []
    ticks = iter(range(10**9))
    plan = make_plan(make_settings(), listener=heard.append, bound_s=30, clock=lambda: float(next(ticks)))
    assert plan.trial is None and not plan.timed
    assert plan.seconds_per_batch > 0
    assert next(ticks) < 40  # nothing goes on behind the bound
    assert any("had not ended after 30 s: the time is counted" in e.text for e in heard if isinstance(e, Notice))


def test_a_hopeless_trial_is_not_begun(make_settings: MakeSettings) -> None:
    def never() -> float:
        raise AssertionError("the steps were begun")

    heard: list[Event] = []
    plan = make_plan(make_settings(), listener=heard.append, bound_s=1e-12, clock=never)
    assert plan.trial is None
    assert any("2 pictures of 64x64 would take about" in e.text for e in heard if isinstance(e, Notice))


def test_the_start_asks_for_the_room_that_the_plan_shows(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings("epochs=3", "saving.state_every_steps=2", "saving.keep_states=0")
    plan = make_plan(settings, dry=True)
    # epochs 1 and 2 and the end; states besides after every second of nine steps, of which the sixth ends an epoch
    assert (plan.disk.loras, plan.disk.states) == (3, 3 + 3)
    (tmp_path / "run").mkdir()
    certain = sum(need.nbytes for need in plan.disk.needs(tmp_path, None) if need.certain)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=certain - 1))
    events: list[Event] = []
    with pytest.raises(OutputError, match="not enough space") as caught:
        train(settings, tmp_path / "run", listener=events.append)
    assert "LoRA files" in caught.value.problem and "states" in caught.value.problem
    assert not any(isinstance(event, LatentsCached | RunStarted) for event in events)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_goes_on_needs_one_more_of_each(make_settings: MakeSettings, tmp_path: Path) -> None:
    disk = make_plan(make_settings("epochs=3", "saving.keep_states=0"), dry=True).disk
    whole = {need.what: need.nbytes for need in disk.needs(tmp_path, None)}
    left = {need.what: need.nbytes for need in disk.needs(tmp_path, None, goes_on=True)}
    assert whole["LoRA files"] == 3 * left["LoRA files"] == 3 * disk.lora
    assert whole["states"] == 3 * left["states"] == 3 * disk.state
