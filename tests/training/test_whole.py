"""Training the checkpoint's own weights: what changes, what comes out, that it goes on exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.adapters.attach import AdapterSet, Attachment, attach, create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import SettingsError
from loraloom.events import Event, Notice, ignore
from loraloom.formats.tensors import open_tensors
from loraloom.idle import told
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.loaded import load_model
from loraloom.training.idle_choices import WHOLE_ROWS
from loraloom.training.memory import predict_memory
from loraloom.training.settings import TrainSettings
from loraloom.training.state import ResumePoint, find_state
from loraloom.training.step import training_loss
from loraloom.training.trained import Trained, View
from loraloom.training.trainer import TrainingRun, train
from loraloom.training.whole import WholeModel, WholeView

MakeSettings = Callable[..., TrainSettings]
FULL = ("method=full", "optimizer.lr=1e-4", "saving.precision=float")


def folders(path: Path) -> Path:
    (path / "weights").mkdir(parents=True)
    (path / "previews").mkdir()
    return path


@pytest.mark.parametrize(
    ("contract", "meets"), [(Trained, AdapterSet), (Trained, WholeModel), (View, Attachment), (View, WholeView)]
)
def test_what_is_trained_meets_a_contract_without_inheritance(contract: type, meets: type) -> None:
    """mypy compares the signatures wherever a run is put together; here, that none of them leans on another."""
    asked = {name for name in vars(contract) if not name.startswith("_")}
    assert len(asked) >= 2
    assert [name for name in sorted(asked) if not callable(getattr(meets, name, None))] == []
    leaned_on = {AdapterSet, WholeModel, Attachment, WholeView, contract} & set(meets.__mro__)
    assert leaned_on == {meets}


def test_a_checkpoint_comes_out_in_which_the_trained_parts_are_other(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(*FULL, "steps=3", "adapter.text_encoder=false")
    written = train(settings, folders(tmp_path / "run"))
    assert written is not None
    before, after = open_checkpoint(settings.checkpoint), open_checkpoint(written)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    unet = {name for name in before if name.startswith("model.diffusion_model.")}
    assert changed <= unet, "text encoder, VAE and tables stay as they were"
    assert len(changed) > 0.95 * len(unet)
    assert after.metadata["modelspec.title"] == settings.name
    assert not after.metadata["modelspec.architecture"].endswith("/lora")
    assert "ss_network_dim" not in after.metadata


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_gradient_of_a_weight_is_that_of_its_full_difference(
    family: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(*FULL, "adapter.text_encoder=false", family=family)
    run = TrainingRun.prepare(settings, tmp_path / "run", ignore)
    (draws,) = run.plan.epoch_batches(0)[0]
    batch = run.batches.batch(0, draws, 0)
    training_loss(run.parts.model, batch, run.parts.objective).mean().backward()

    frozen = load_model(settings.checkpoint, device=torch.device("cpu"), prediction=run.parts.model.prediction)
    adapter = AdapterSettings(kind="full", conv_rank=1, text_encoder=False)
    adapters = create_adapters(adapter, frozen.targets, seed=0, family=family, weight=frozen.weight_of)
    with attach(adapters, {target.name: frozen.layer(target) for target in frozen.targets}):
        training_loss(frozen, batch, run.parts.objective).mean().backward()
    for target, found in adapters.items():
        weight = run.parts.model.layer(target).weight
        assert isinstance(weight, torch.Tensor)
        assert weight.grad is not None
        (diff,) = found.parameters()
        assert diff.grad is not None
        torch.testing.assert_close(weight.grad, diff.grad.reshape(weight.shape), rtol=1e-3, atol=1e-6)


def test_weight_0_shows_the_checkpoint_and_1_what_is_trained(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(*FULL, "steps=2")
    run = TrainingRun.prepare(settings, folders(tmp_path / "run"), ignore)
    run.loop()
    trained = {name: tensor.clone() for name, tensor in run.parts.adapters.state_dict().items()}
    base = load_model(settings.checkpoint, device=torch.device("cpu"))
    noisy, time = torch.ones(1, 4, 8, 8), torch.tensor([500])

    def answer(model: object) -> torch.Tensor:
        with torch.no_grad():
            return run.parts.model.denoise(noisy, time, run.parts.model.encode_text(["a red square"]))

    after = answer(run.parts.model)
    run.parts.attachment.set_weights(unet=0.0, text_encoder=0.0)
    for part, module in base.parts.items():
        shown = dict(run.parts.model.parts[part].named_parameters())
        assert all(torch.equal(shown[name], weight) for name, weight in module.named_parameters())
    with torch.no_grad():  # where weights lie in memory may change how their products are rounded
        bare = base.denoise(noisy, time, base.encode_text(["a red square"]))
    assert torch.allclose(answer(run.parts.model), bare, atol=2e-5)
    assert not torch.allclose(answer(run.parts.model), after, atol=2e-5)
    run.parts.attachment.set_weights(unet=0.5, text_encoder=0.5)
    half = answer(run.parts.model)
    run.parts.attachment.set_weights(unet=1.0, text_encoder=1.0)
    assert torch.equal(answer(run.parts.model), after)
    assert not torch.equal(half, after)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in run.parts.adapters.state_dict().items())


def test_it_goes_on_exactly(make_settings: MakeSettings, tmp_path: Path) -> None:
    more = ("lr_schedule.name=constant", "ema.enabled=true", "saving.every_epochs=0")
    straight = train(make_settings(*FULL, *more, "steps=4"), folders(tmp_path / "straight"))
    train(make_settings(*FULL, *more, "steps=2"), folders(tmp_path / "halves"))
    state = find_state(tmp_path / "halves" / "state", ignore)
    assert state is not None
    resumed = train(make_settings(*FULL, *more, "steps=4"), tmp_path / "halves", resume=ResumePoint(state))
    assert straight is not None
    assert resumed is not None
    one, two = open_tensors(straight), open_tensors(resumed)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_needs_an_adapter_is_refused_all_at_once(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(
        *FULL, "quantize=int8", "saving.format=pt", "optimizer.loraplus_ratio=4", "adapter.max_norm=1"
    )
    with pytest.raises(SettingsError) as caught:
        train(settings, folders(tmp_path / "run"))
    assert len(caught.value.problems) == 4


def test_settings_of_adapters_are_said_to_do_nothing(make_settings: MakeSettings) -> None:
    settings = make_settings(*FULL, "adapter.rank=64", "adapter.dropout=0.1")
    said = "\n".join(told(WHOLE_ROWS, settings, settings))
    assert "adapter.rank has no effect" in said
    assert "adapter.dropout has no effect" in said
    assert "1e-6 to 5e-6" in said, "1e-4 is a rate for LoRA"
    quiet = make_settings("method=full", "optimizer.lr=2e-6", "adapter.rank=16")
    assert told(WHOLE_ROWS, quiet, quiet) == []


def test_both_encoders_of_a_run_are_named(make_settings: MakeSettings, tmp_path: Path) -> None:
    events: list[Event] = []
    run = TrainingRun.prepare(make_settings(*FULL, family="sdxl"), tmp_path / "run", events.append)
    assert run.parts.adapters.parts() == ["unet", "text_encoder", "text_encoder_2"]
    assert any("own weights are trained" in event.text for event in events if isinstance(event, Notice))


def test_the_plan_counts_every_weight(make_settings: MakeSettings) -> None:
    settings = make_settings(*FULL)
    checkpoint = open_checkpoint(settings.checkpoint)
    memory = predict_memory(settings, checkpoint, (64, 64, 2), process=0)
    trained = sum(
        math.prod(checkpoint.info(name).shape) * 4
        for name in checkpoint
        if name.startswith(("model.diffusion_model.", "cond_stage_model.")) and "position_ids" not in name
    )
    assert memory.adapter == trained
    assert memory.optimizer == pytest.approx(2 * trained, rel=0.01)
