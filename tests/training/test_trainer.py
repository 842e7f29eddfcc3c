from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from loraloom.adapters.attach import read_adapters
from loraloom.control import Interrupted, Request
from loraloom.errors import DatasetError, NotFiniteError, OutputError, PromptError, SettingsError
from loraloom.events import (
    Event,
    LatentsCached,
    Notice,
    PreviewSaved,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    StepFinished,
    ValidationMeasured,
    WeightsSaved,
    ignore,
)
from loraloom.formats.image_info import read_parameters
from loraloom.models.checkpoint import open_checkpoint
from loraloom.training import saving
from loraloom.training.settings import TrainSettings
from loraloom.training.state import ResumePoint, find_state
from loraloom.training.trainer import TrainingRun, train

MakeSettings = Callable[..., TrainSettings]
WholeRun = Callable[..., tuple[Path, tuple[Event, ...]]]


def run(settings: TrainSettings, folder: Path) -> tuple[Path, list[Event]]:
    events: list[Event] = []
    (folder / "weights").mkdir(parents=True, exist_ok=True)
    (folder / "previews").mkdir(exist_ok=True)
    path = train(settings, folder, listener=events.append)
    return path, events


def only(events: Sequence[Event], kind: type[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def same(one: Path, other: Path) -> bool:
    """Whether two LoRA files hold the same, bit for bit; their metadata tell when they were made."""
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_family_trains_and_reloads(family: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("steps=3", "adapter.conv_rank=2", "mixed_precision=no", family=family)
    path, events = run(settings, tmp_path / "run")
    assert [event.step for event in only(events, StepFinished)] == [1, 2, 3]  # type: ignore[attr-defined]
    checkpoint = open_checkpoint(settings.checkpoint)
    adapters = read_adapters(path, checkpoint.family.adapter_targets(checkpoint.infos))
    assert len(adapters) == len(checkpoint.family.adapter_targets(checkpoint.infos))
    changed = {target.part for target, adapter in adapters.items() if float(adapter.delta().abs().max()) > 0}
    assert changed == {"unet", "text_encoder"} | ({"text_encoder_2"} if family == "sdxl" else set())


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    tensors = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)  # whatever happened to the global generator before must not matter
        path, _ = run(make_settings(f"seed={seed}", "steps=3", "adapter.dropout=0.2"), tmp_path / name)
        tensors.append(load_file(path))
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    assert not all(torch.equal(tensors[0][key], tensors[2][key]) for key in tensors[0])


def test_a_lora_learns_what_it_is_shown(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("epochs=16", "optimizer.lr=1e-2", "adapter.rank=4", "lr_schedule.name=constant")
    _, events = run(settings, tmp_path / "run")
    losses = [event.loss for event in only(events, StepFinished)]  # type: ignore[attr-defined]
    assert sum(losses[-12:]) < 0.9 * sum(losses[:12])


def test_accumulated_batches_equal_one_large_batch(make_settings: MakeSettings, tmp_path: Path) -> None:
    # A large eps keeps Adam from turning the rounding of tiny gradients into whole steps.
    common = ("steps=2", "saving.precision=float", "optimizer.eps=0.01")
    once, _ = run(make_settings("batch_size=6", *common), tmp_path / "once")
    twice, _ = run(make_settings("batch_size=3", "gradient_accumulation=2", *common), tmp_path / "two")
    one, two = load_file(once), load_file(twice)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=2e-6)


def test_checkpointing_and_file_precision_change_nothing(make_settings: MakeSettings, tmp_path: Path) -> None:
    results = []
    for name, extra in (
        ("plain", "steps=2"),
        ("checkpointed", "gradient_checkpointing=true"),
        ("mapped", "keep_file_precision=true"),
        ("offloaded", "low_memory=true"),
    ):
        path, _ = run(make_settings("seed=3", "steps=2", "saving.precision=float", extra), tmp_path / name)
        results.append(load_file(path))
    for other in results[1:]:
        for key, value in results[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-7)


def test_bf16_trains_the_checkpoint_in_bf16_and_the_adapter_in_fp32(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    full, _ = run(make_settings("steps=3", "saving.precision=float"), tmp_path / "full")
    settings = make_settings("steps=3", "mixed_precision=bf16", "saving.precision=float")
    (tmp_path / "half" / "weights").mkdir(parents=True)
    prepared = TrainingRun.prepare(settings, tmp_path / "half", lambda event: None)
    assert {parameter.dtype for parameter in prepared.parts.model.unet.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in prepared.parts.adapters.parameters()} == {torch.float32}
    half = load_file(prepared.loop())
    one, other = (torch.cat([tensors[key].flatten() for key in sorted(tensors)]) for tensors in (load_file(full), half))
    assert torch.nn.functional.cosine_similarity(one, other, dim=0) > 0.99


def test_learning_rates_per_part_and_schedule(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(
        "steps=4", "optimizer.lr=1e-3", "optimizer.text_encoder_lr=2e-4", "lr_schedule.name=linear"
    )
    _, events = run(settings, tmp_path / "run")
    rates = [event.learning_rates for event in only(events, StepFinished)]  # type: ignore[attr-defined]
    assert [rate["unet"] for rate in rates] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert [rate["text_encoder"] for rate in rates] == pytest.approx([2e-4, 1.5e-4, 1e-4, 5e-5])


@pytest.mark.parametrize(("part", "prefix"), [("unet", "lora_unet_"), ("text_encoder", "lora_te_")])
def test_one_part_alone(part: str, prefix: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    other = "text_encoder" if part == "unet" else "unet"
    path, _ = run(make_settings("steps=1", f"adapter.{other}=false"), tmp_path / "run")
    assert all(key.startswith(prefix) for key in load_file(path))


def test_frozen_text_is_encoded_once(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraloom.models.loaded import LoadedModel

    texts: list[object] = []
    encode = LoadedModel.encode_text

    def counting(self: LoadedModel, batch: list[str], **kwargs: object) -> object:
        texts.extend(batch)
        return encode(self, batch, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(LoadedModel, "encode_text", counting)
    run(make_settings("epochs=3", "adapter.text_encoder=false"), tmp_path / "run")
    assert sorted(map(str, texts)) == ["a pale red square", "a red square, bright", "blue"]


def test_saves_previews_and_their_names(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(
        "epochs=2", "name=style", "saving.every_epochs=1", "saving.every_steps=2",
        "preview.prompts=['a red square', 'blue']", "preview.steps=2", "preview.seed=5",
    )  # fmt: skip
    _, events = run(settings, tmp_path / "run")
    weights = sorted(path.name for path in (tmp_path / "run" / "weights").iterdir())
    assert weights == [
        "style-000001.safetensors",
        "style-step00000002.safetensors",
        "style-step00000004.safetensors",
        "style.safetensors",
    ]
    previews = sorted(path.name for path in (tmp_path / "run" / "previews").iterdir() if path.name != "sheet.png")
    assert previews == [f"style_e{epoch:06d}_{prompt:02d}.png" for epoch in (0, 1, 2) for prompt in (0, 1)]
    parameters = read_parameters(tmp_path / "run" / "previews" / previews[1])
    assert parameters is not None and parameters.startswith("blue") and "Seed: 6" in parameters
    assert len(only(events, PreviewSaved)) == 6
    assert [event.final for event in only(events, WeightsSaved)][-1] is True  # type: ignore[attr-defined]
    with Image.open(tmp_path / "run" / "previews" / previews[0]) as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize("prompt", ["a __nothing__", "a <lora:nothing:1>", "a {<lora:nothing:1>|<lora:none:1>}"])
def test_what_preview_prompts_name_is_looked_for_before_the_first_step(
    make_settings: MakeSettings, tmp_path: Path, prompt: str
) -> None:
    with pytest.raises(PromptError, match=r"there is no .*(nothing|none)"):
        run(make_settings(f"preview.prompts=['{prompt}']"), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_previews_are_painted_without_dropout_and_change_nothing(make_settings: MakeSettings, tmp_path: Path) -> None:
    with_previews = make_settings("steps=3", "adapter.dropout=0.5", "preview.prompts=['x']", "preview.steps=2")
    without = make_settings("steps=3", "adapter.dropout=0.5")
    first, second = (load_file(run(s, tmp_path / n)[0]) for s, n in ((with_previews, "with"), (without, "without")))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_stop_saves_and_ends_after_the_step(make_settings: MakeSettings, tmp_path: Path) -> None:
    events: list[Event] = []
    (tmp_path / "run" / "weights").mkdir(parents=True)
    path = train(
        make_settings("epochs=50"),
        tmp_path / "run",
        listener=events.append,
        control=lambda: Request.STOP if len(only(events, StepFinished)) == 2 else Request.GO,
    )
    (finished,) = only(events, RunFinished)
    assert finished.stopped and finished.step == 2  # type: ignore[attr-defined]
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_steps"] == "2"


@pytest.mark.parametrize("wish", [Request.STOP, Request.DISCARD])
def test_stop_while_images_are_encoded(wish: Request, make_settings: MakeSettings, tmp_path: Path) -> None:
    events: list[Event] = []

    def control() -> Request:
        return wish if len(only(events, LatentsCached)) == 3 else Request.GO

    with pytest.raises(Interrupted) as caught:
        train(make_settings(), tmp_path / "run", listener=events.append, control=control)
    assert caught.value.request is wish
    assert len(only(events, LatentsCached)) == 3
    assert only(events, StepFinished) == []


def test_a_stop_before_anything_is_loaded(make_settings: MakeSettings, tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(Interrupted):
        train(make_settings(), tmp_path / "run", listener=events.append, control=lambda: Request.STOP)
    assert only(events, LatentsCached) == []


def test_a_pause_while_images_are_encoded(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("steps=3", "saving.precision=float")
    whole, _ = run(settings, tmp_path / "whole")
    (tmp_path / "run" / "weights").mkdir(parents=True)
    events: list[Event] = []
    waits = iter([Request.PAUSE] * 3)

    def control() -> Request:
        return next(waits, Request.GO) if only(events, LatentsCached) else Request.GO

    path = train(settings, tmp_path / "run", listener=events.append, control=control)
    told = [event for event in events if isinstance(event, (LatentsCached, RunPaused, RunResumed, RunStarted))]
    assert told[:4] == [LatentsCached(1, 4), RunPaused(0), RunResumed(0), LatentsCached(2, 4)]
    assert path is not None and same(path, whole)


def test_a_run_that_is_left_before_its_first_step_keeps_nothing_and_is_paused(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    events: list[Event] = []

    def control() -> Request:
        return Request.LEAVE if only(events, LatentsCached) else Request.GO

    assert train(make_settings(), tmp_path / "run", listener=events.append, control=control) is None
    assert events[-1] == RunPaused(0, freed=True)
    assert not (tmp_path / "run").exists()


BETWEEN = ("epochs=2", "batch_size=1", "saving.precision=float", "saving.every_epochs=0", "validation.share=0.25")
PAINTED = ("preview.prompts=['x', 'y']", "preview.steps=2")


class AskedDuring:
    """A control that wishes something when a validation or a preview is on its way, as ``look`` sees it begin."""

    def __init__(self, *wishes: Request, last: Request, at: int, times: int) -> None:
        self._wishes, self._last, self._at, self._times = iter(wishes), last, at, times
        self.step, self.begun = 0, 0

    def __call__(self) -> Request:
        if self.step != self._at or self.begun < self._times:
            return Request.GO
        return next(self._wishes, self._last)


def watched(
    monkeypatch: pytest.MonkeyPatch, what: str, settings: TrainSettings, folder: Path, control: AskedDuring
) -> tuple[Path | None, list[Event]]:
    """Train, counting how often ``what`` (a function of the trainer or of the validator) has begun at this step."""
    from loraloom.training import previews, validation

    for part in ("weights", "previews"):
        (folder / part).mkdir(parents=True)
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepFinished):
            control.step, control.begun = event.step, 0

    place: Any = validation.Validator if what == "_losses" else previews
    original = getattr(place, what)

    def counted(*args: Any, **kwargs: Any) -> Any:
        control.begun += 1
        return original(*args, **kwargs)

    monkeypatch.setattr(place, what, counted)
    return train(settings, folder, listener=listen, control=control), events


@pytest.mark.parametrize(("what", "extra"), [("_losses", ()), ("text_to_image", PAINTED)])
def test_a_pause_between_two_steps_changes_nothing(
    what: str,
    extra: tuple[str, ...],
    make_settings: MakeSettings,
    whole_run: WholeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_settings(*BETWEEN, *extra)
    whole, plain = whole_run(*BETWEEN, *extra)
    epoch = only(plain, RunStarted)[0].steps_per_epoch
    control = AskedDuring(Request.PAUSE, Request.PAUSE, Request.PAUSE, last=Request.GO, at=epoch, times=1)
    path, events = watched(monkeypatch, what, settings, tmp_path / "run", control)
    assert [event.step for event in only(events, RunPaused)] == [epoch]
    assert [event.step for event in only(events, RunResumed)] == [epoch]
    assert only(events, ValidationMeasured) == only(plain, ValidationMeasured)
    painted = {Path(event.path).name for event in only(plain, PreviewSaved)}
    assert {Path(event.path).name for event in only(events, PreviewSaved)} == painted
    assert path is not None and same(path, whole / "weights" / "lora.safetensors")


@pytest.mark.parametrize("wish", [Request.STOP, Request.LEAVE, Request.DISCARD])
@pytest.mark.parametrize(("what", "extra"), [("_losses", ()), ("text_to_image", PAINTED)])
def test_the_end_between_two_steps_is_heard_there(
    what: str,
    extra: tuple[str, ...],
    wish: Request,
    make_settings: MakeSettings,
    whole_run: WholeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = make_settings(*BETWEEN, *extra)
    whole, plain = whole_run(*BETWEEN, *extra)
    epoch = only(plain, RunStarted)[0].steps_per_epoch
    control = AskedDuring(last=wish, at=epoch, times=1)
    path, events = watched(monkeypatch, what, settings, tmp_path / "run", control)
    assert [event.step for event in only(events, StepFinished)] == list(range(1, epoch + 1))
    (told,) = [event.text for event in only(events, Notice) if "was skipped" in event.text]
    assert f"of step {epoch} was skipped: the run was asked to end" in told
    assert control.begun == 1, "the rest was neither measured nor painted"
    assert [event for event in only(events, PreviewSaved) if event.step == epoch] == [], "not even the one in progress"
    if wish is Request.LEAVE:
        assert events[-1] == RunPaused(epoch, freed=True)
    else:
        assert only(events, RunFinished)[0].stopped
    assert (path is not None) == (wish is Request.STOP)
    if wish is Request.DISCARD:
        return
    state = find_state(tmp_path / "run" / "state", ignore)
    assert state is not None and state.step == epoch
    monkeypatch.undo()
    again = train(settings, tmp_path / "run", listener=events.append, resume=ResumePoint(state))
    assert again is not None
    assert same(again, whole / "weights" / "lora.safetensors")


def test_the_end_before_the_first_step_is_heard_in_its_validation(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = AskedDuring(last=Request.STOP, at=0, times=2)
    with pytest.raises(Interrupted):
        watched(monkeypatch, "_losses", make_settings(*BETWEEN, "batch_size=1"), tmp_path / "run", control)
    assert control.begun == 2
    assert not list((tmp_path / "run" / "weights").iterdir())


def test_nan_stops_the_run_and_keeps_the_last_good_weights(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("epochs=3", "saving.every_steps=1")
    folder = tmp_path / "run"
    (folder / "weights").mkdir(parents=True)
    prepared = TrainingRun.prepare(settings, folder, lambda event: None)

    def poison() -> Request:
        if prepared.progress.step == 2:
            prepared.parts.objective.schedule.signal.fill_(float("nan"))
        return Request.GO

    with pytest.raises(NotFiniteError, match="the loss of step 3 is nan") as caught:
        prepared.loop(poison)
    assert "optimizer.lr" in caught.value.hint
    good = folder / "weights" / "lora-last-good-step00000002.safetensors"
    assert str(good) in caught.value.hint
    for path in (folder / "weights").iterdir():
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    before = load_file(folder / "weights" / "lora-step00000002.safetensors")
    assert all(torch.equal(before[key], value) for key, value in load_file(good).items())


def test_regularization_images_weigh_as_they_are_told(make_settings: MakeSettings, tmp_path: Path) -> None:
    folder = tmp_path / "regularization_images"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64), (10 * index, 200, 10)).save(folder / f"{index}.png")
    settings = make_settings(
        f"dataset.regularization_folder='{folder}'", "prior_loss_weight=0.25", "steps=1", "batch_size=12"
    )
    (tmp_path / "run" / "weights").mkdir(parents=True)
    prepared = TrainingRun.prepare(settings, tmp_path / "run", lambda event: None)
    (draws,) = prepared.plan.epoch_batches(0)[0]
    batch = prepared.batches.batch(0, draws, prepared.progress.step)
    assert sorted(batch.weights.tolist()) == [0.25] * 6 + [1.0] * 6


def test_the_metadata_that_other_programs_read(make_settings: MakeSettings, tmp_path: Path) -> None:
    import hashlib

    settings = make_settings("name=style", "saving.trigger=redsquare", "adapter.alpha=1", "steps=2")
    path, _ = run(settings, tmp_path / "run")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    checkpoint = settings.checkpoint.read_bytes()
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "1.0")
    assert metadata["ss_new_sd_model_hash"] == hashlib.sha256(checkpoint).hexdigest()
    assert metadata["ss_sd_model_hash"] == hashlib.sha256(checkpoint[0x100000:0x110000]).hexdigest()[:8]
    assert json.loads(metadata["ss_tag_frequency"]) == {
        "2_red": {"a red square": 1, "bright": 1, "a pale red square": 1},
        "1_blue": {"blue": 2},
    }
    assert json.loads(metadata["ss_dataset_dirs"])["2_red"] == {"n_repeats": 2, "img_count": 2}
    assert json.loads(metadata["ss_bucket_info"])["buckets"]["0"] == {"resolution": [64, 64], "count": 6}
    assert metadata["ss_num_train_images"] == "6"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.trigger_phrase"] == "redsquare"
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()


def test_long_captions_choose_the_token_length(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    (pictures / "2_red" / "0.txt").write_text("square, " * 60, encoding="utf-8")
    path, events = run(make_settings("steps=1"), tmp_path / "run")
    with safe_open(path, "pt") as file:
        assert file.metadata()["ss_max_token_length"] == "150"
    notices = [event.text for event in only(events, Notice)]  # type: ignore[attr-defined]
    assert any("max_token_length = 150" in text for text in notices)
    _, events = run(make_settings("steps=1", "max_token_length=75"), tmp_path / "cut")
    warnings = [event.text for event in only(events, Notice) if event.level == "warning"]  # type: ignore[attr-defined]
    assert any("are cut" in text for text in warnings)


@pytest.mark.parametrize(("family", "extra", "expected"), [("sd1", "", 512), ("sd2", "prediction=v", 768)])
def test_the_resolution_is_the_familys_unless_set(
    family: str, extra: str, expected: int, make_settings: MakeSettings, tmp_path: Path, pictures: Path
) -> None:
    shutil.rmtree(pictures / "1_blue")
    (pictures / "2_red" / "1.png").unlink()  # one picture of the full size is enough to encode
    settings = make_settings(*([extra] if extra else []), family=family)
    dataset = type(settings.dataset)(folder=pictures)
    notices: list[str] = []
    run = TrainingRun.prepare(
        settings.model_copy(update={"dataset": dataset}),
        tmp_path / "run",
        lambda event: notices.append(event.text) if isinstance(event, Notice) else None,
    )
    assert run.parts.settings.dataset.resolution == expected
    assert {sample.bucket for sample in run.parts.dataset.samples} == {(expected, expected)}
    assert any(f"dataset.resolution = {expected}" in text for text in notices)


def test_the_plan_is_announced(make_settings: MakeSettings, tmp_path: Path) -> None:
    _, events = run(make_settings("epochs=2"), tmp_path / "run")
    (started,) = only(events, RunStarted)
    # 2 pictures x 2 repeats + 2 x 1 = 6 draws, in batches of 2
    assert (started.steps_per_epoch, started.total_steps, started.epochs) == (3, 6, 2)  # type: ignore[attr-defined]


def test_contradictions_are_found_before_anything_is_loaded(make_settings: MakeSettings) -> None:
    with pytest.raises(SettingsError) as caught:
        make_settings("optimizer.name=adamm", "batch_size=0", "dataset.resolution=7")
    assert "batch_size" in str(caught.value)
    with pytest.raises(SettingsError, match="adamw"):
        make_settings("optimizer.name=adamm")


def test_an_empty_dataset_is_an_error(make_settings: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no pictures"):
        run(make_settings(f"dataset.folder='{tmp_path / 'empty'}'"), tmp_path / "run")


# -- disks that take nothing -------------------------------------------------------------------------------------------


def test_a_lora_that_its_disk_does_not_take_goes_elsewhere(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    monkeypatch.setattr("loraloom.training.saving.data_folder", lambda: data)
    write = saving.save_adapter

    def full(path: Path, *arguments: Any) -> None:
        if path.is_relative_to(run):
            raise OutputError(f"{path}: no space left on the disk", "free some space")
        write(path, *arguments)

    monkeypatch.setattr("loraloom.training.preparing.save_adapter", full)
    (run / "weights").mkdir(parents=True)
    events: list[Event] = []
    final = train(make_settings("epochs=2", "saving.state=false"), run, listener=events.append)
    (folder,) = (data / "rescued").iterdir()
    assert final == folder / "lora.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == ["lora-000001.safetensors", "lora.safetensors"]
    assert [Path(event.path) for event in only(events, WeightsSaved)] == [folder / "lora-000001.safetensors", final]
    told = [event.text for event in only(events, Notice) if "is in" in event.text and "instead" in event.text]
    assert len(told) == 2 and "no space left" in told[0]


def test_where_no_disk_takes_anything_training_goes_on(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file on the way is lost, what was learned is not: it is in memory until the disk has room again."""
    write, calls = saving.save_adapter, list[Path]()
    monkeypatch.setattr("loraloom.training.saving._rescue_folders", lambda run: iter(()))

    def full_at_first(path: Path, *arguments: Any) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise OutputError(f"{path}: no space left on the disk", "free some space")
        write(path, *arguments)

    monkeypatch.setattr("loraloom.training.preparing.save_adapter", full_at_first)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    events: list[Event] = []
    final = train(make_settings("epochs=2", "saving.state=false"), tmp_path / "run", listener=events.append)
    assert final is not None and final.is_file() and len(calls) == 2
    assert any("the training goes on, and the next file is tried again" in event.text for event in only(events, Notice))


def test_previews_that_cannot_be_saved_do_not_end_a_run(
    make_settings: MakeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OutputError("previews: no space left on the disk", "free some space")

    monkeypatch.setattr("loraloom.training.preview_series.paint_previews", full)
    (tmp_path / "run" / "weights").mkdir(parents=True)
    events: list[Event] = []
    settings = make_settings("preview.prompts=['a']", "saving.state=false")
    assert train(settings, tmp_path / "run", listener=events.append) is not None
    assert any("the previews of step 3 were not saved" in event.text for event in only(events, Notice))
