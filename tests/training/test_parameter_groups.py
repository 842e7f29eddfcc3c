from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraloom.adapters.attach import AdapterSet, create_adapters
from loraloom.adapters.blocks import block_index
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import SettingsError
from loraloom.events import Event, StepFinished
from loraloom.formats.adapter_file import AdapterTarget, read_adapter_file
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.family import FAMILIES
from loraloom.training.block_shapes import block_weights
from loraloom.training.lr_schedules import create_lr_schedule
from loraloom.training.optimizers import create_optimizer
from loraloom.training.parameter_groups import (
    parameter_groups,
    plan_groups,
    rates_at,
    set_learning_rates,
    stop_step,
    text_encoder_stopped,
)
from loraloom.training.settings import LrScheduleSettings, OptimizerSettings, TrainSettings
from loraloom.training.trainer import TrainingRun, train
from toys import toy_tensors

MakeSettings = Callable[..., TrainSettings]
FACTORS = ("down", "up")


def targets(family: str, tmp_path: Path) -> list[AdapterTarget]:
    write_tensors(tmp_path / "toy.safetensors", toy_tensors(family))
    return FAMILIES.load(family)().adapter_targets(open_checkpoint(tmp_path / "toy.safetensors").infos)


@pytest.fixture
def layers(tmp_path: Path) -> Callable[[str], list[tuple[AdapterTarget, tuple[str, ...]]]]:
    return lambda family: [(target, FACTORS) for target in targets(family, tmp_path) if not target.extended]


Layers = Callable[[str], list[tuple[AdapterTarget, tuple[str, ...]]]]


def optimizer_settings(**values: object) -> OptimizerSettings:
    return OptimizerSettings.parse({"lr": 1e-4, **values})


# ------------------------------------------------------------------------------------------ parts


def test_without_more_there_is_one_group_for_each_part(layers: Layers) -> None:
    plan = plan_groups(layers("sdxl"), optimizer_settings(unet_lr=2e-4), "sdxl")
    assert [(group.name, group.rate) for group in plan] == [
        ("unet", 2e-4),
        ("text_encoder", 1e-4),
        ("text_encoder_2", 1e-4),
    ]
    members = [member for group in plan for member in group.members]
    assert members == [(target.name, name) for target, names in layers("sdxl") for name in names]


def test_the_two_encoders_of_sdxl_may_have_a_rate_each(layers: Layers) -> None:
    settings = optimizer_settings(text_encoder_lr=[5e-5, 1e-5])
    plan = plan_groups(layers("sdxl"), settings, "sdxl")
    assert [group.rate for group in plan] == [1e-4, 5e-5, 1e-5]
    with pytest.raises(SettingsError, match="has one text encoder"):
        plan_groups(layers("sd1"), settings, "sd1")


# ------------------------------------------------------------------------------------------ blocks


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("sine", [math.sin(math.pi * i / 11 / 2) for i in range(12)]),
        ("cosine", [math.sin(math.pi * i / 11 / 2) for i in reversed(range(12))]),
        ("linear+0.25", [i / 11 + 0.25 for i in range(12)]),
        ("reverse_linear", [i / 11 for i in reversed(range(12))]),
        ("zeros", [0.0] * 12),
        ("zeros+0.5", [0.5] * 12),
    ],
)
def test_shapes_are_those_of_sd_scripts(shape: str, expected: list[float]) -> None:
    assert block_weights(shape, 12) == pytest.approx(expected, abs=1e-12)


def test_every_layer_learns_at_the_rate_of_its_block(layers: Layers) -> None:
    down = [0.1 * i for i in range(12)]
    block_lr = {"down": down, "mid": 3.0, "up": "cosine+0.5", "zero_threshold": 0.2}
    settings = optimizer_settings(unet_lr=1e-3, block_lr=block_lr)
    plan = plan_groups(layers("sd1"), settings, "sd1")
    rates = {layer: group.rate for group in plan for layer, _ in group.members}
    up = [math.sin(math.pi * i / 11 / 2) + 0.5 for i in reversed(range(12))]
    expected = {}
    for target, _ in layers("sd1"):
        block = block_index(target, "sd1")
        factor = 1.0 if block is None else [*(f if f > 0.2 else 0.0 for f in down), 3.0, *up][block]
        if factor:
            expected[target.name] = (1e-4 if block is None else 1e-3) * factor
    assert rates == pytest.approx(expected)
    assert len(expected) < len(layers("sd1"))
    names = [group.name for group in plan]
    assert len(set(names)) == len(names) and "unet block 12" in names and names[-1] == "text_encoder"


def test_blocks_with_one_factor_are_one_group(layers: Layers) -> None:
    plan = plan_groups(layers("sdxl"), optimizer_settings(block_lr={"down": "zeros+0.5", "mid": [2.0]}), "sdxl")
    assert [(group.name, group.rate) for group in plan[:3]] == [
        ("unet blocks 5-6,8-9", 0.5e-4),
        ("unet block 11", 2e-4),
        ("unet blocks 13-18", 1e-4),
    ]


@pytest.mark.parametrize(
    ("family", "block_lr", "words"),
    [
        ("sdxl", {"down": [1.0] * 12}, "down has 12 factors; sdxl has 9"),
        ("sd1", {"mid": [1.0] * 3, "up": [1.0] * 9}, "mid has 3 factors; sd1 has 1"),
        ("sd1", {"down": "zeros", "mid": 0, "up": 0}, None),
    ],
)
def test_factors_that_do_not_fit_are_errors(
    layers: Layers, family: str, block_lr: dict[str, object], words: str | None
) -> None:
    unet = [(target, names) for target, names in layers(family) if target.part == "unet"]
    with pytest.raises(SettingsError, match=words or "every trained block is 0"):
        plan_groups(unet, optimizer_settings(block_lr=block_lr), family)


@pytest.mark.parametrize(("key", "value"), [("down", "sinus"), ("up", "sine+x"), ("mid", "sine"), ("down", [-1.0])])
def test_wrong_shapes_are_errors_of_the_settings(key: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"block_lr.{key}"):
        optimizer_settings(block_lr={key: value})


def test_numbers_may_be_written_as_sd_scripts_does() -> None:
    assert optimizer_settings(block_lr={"down": "0,0.5,1"}).block_lr.down == (0.0, 0.5, 1.0)


# ------------------------------------------------------------------------------------------ LoRA+


def test_the_up_matrices_learn_faster(layers: Layers) -> None:
    settings = optimizer_settings(loraplus_ratio=16, loraplus_text_encoder_ratio=4, text_encoder_lr=1e-5)
    plan = plan_groups(layers("sd1"), settings, "sd1")
    assert [(group.name, group.rate) for group in plan] == [
        ("unet", 1e-4),
        ("unet up", pytest.approx(16e-4)),
        ("text_encoder", 1e-5),
        ("text_encoder up", pytest.approx(4e-5)),
    ]
    assert all((name == "up") == group.name.endswith(" up") for group in plan for _, name in group.members)


def test_the_up_matrix_inside_another_adapter_counts(layers: Layers) -> None:
    dora = [(target, ("dora_scale", "inner.down", "inner.up")) for target, _ in layers("sd1")]
    plan = plan_groups(dora, optimizer_settings(loraplus_ratio=2), "sd1")
    assert {name for group in plan if group.name.endswith(" up") for _, name in group.members} == {"inner.up"}


def test_an_adapter_without_up_matrices_cannot_have_it(layers: Layers) -> None:
    other = [(target, ("w1_a", "w1_b")) for target, _ in layers("sd1")]
    with pytest.raises(SettingsError, match="needs up matrices"):
        plan_groups(other, optimizer_settings(loraplus_ratio=2), "sd1")


# ------------------------------------------------------------------------------------------ the stop


@pytest.mark.parametrize(
    ("stop", "step"), [(None, 40), (0.5, 20), (1, 40), (1.0, 40), (0, 0), (0.26, 10), (7, 7), (2, 2), (100, 40)]
)
def test_the_stop_is_a_share_or_a_number_of_steps(stop: float | None, step: int) -> None:
    settings = optimizer_settings(text_encoder_stop=stop)
    assert stop_step(settings, 40) == step
    assert [s for s in range(40) if text_encoder_stopped(settings, s, 40)] == list(range(step, 40))


def test_a_stop_with_nothing_left_to_train_is_an_error() -> None:
    with pytest.raises(SettingsError, match="nothing would be trained"):
        TrainSettings.load(
            None, ["checkpoint=a", "dataset.folder=b", "adapter.unet=false", "optimizer.text_encoder_stop=0.5"]
        )
    with pytest.raises(SettingsError, match="whole"):
        optimizer_settings(text_encoder_stop=2.5)


def toy_adapters(tmp_path: Path) -> AdapterSet:
    return create_adapters(AdapterSettings(rank=2), targets("sd1", tmp_path), seed=0)


@pytest.mark.parametrize("name", ["adamw", "prodigy", "schedule_free_adamw", "dadapt_lion"])
def test_rates_of_a_step_are_those_of_the_plan(name: str, tmp_path: Path) -> None:
    settings = optimizer_settings(name=name, lr=1.0, text_encoder_lr=0.5, loraplus_ratio=4.0, text_encoder_stop=3)
    adapters = toy_adapters(tmp_path)
    optimizer = create_optimizer(parameter_groups(adapters, settings, "sd1"), settings)
    layers = [(target, [key for key, _ in adapter.named_parameters()]) for target, adapter in adapters.items()]
    plan = plan_groups(layers, settings, "sd1")
    schedule = create_lr_schedule(LrScheduleSettings(name="linear"), 8)
    for step in (0, 2, 3, 7, 1):
        rates = set_learning_rates(optimizer, settings, schedule, step, 8)
        assert rates == pytest.approx(rates_at(plan, settings, schedule, step, 8))
        assert rates["unet up"] == pytest.approx(4.0 * (1 - step / 8))
        assert rates["text_encoder"] == (0.0 if step >= 3 else pytest.approx(0.5 * (1 - step / 8)))
        resting = [p.requires_grad for t, a in adapters.items() if t.part != "unet" for p in a.parameters()]
        assert set(resting) == {step < 3}


@pytest.mark.parametrize("name", ["adamw", "prodigy", "schedule_free_adamw"])
def test_from_the_stop_on_the_text_encoder_is_bit_for_bit_the_same(
    name: str, make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(
        "steps=4",
        f"optimizer.name={name}",
        f"optimizer.lr={1e-2 if name != 'prodigy' else 1.0}",
        "optimizer.weight_decay=0.1",
        "optimizer.text_encoder_stop=0.5",
        "saving.every_steps=1",
        "saving.every_epochs=0",
        "saving.precision=float",
        "adapter.dropout=0.3",
    )
    (tmp_path / "run" / "weights").mkdir(parents=True)
    events: list[Event] = []
    train(settings, tmp_path / "run", listener=events.append)
    found = [tensors_of(tmp_path / "run" / "weights" / f"lora-step{step:08d}.safetensors") for step in range(1, 4)]
    found.append(tensors_of(tmp_path / "run" / "weights" / "lora.safetensors"))
    text = [key for key in found[0] if key.startswith("lora_te") and not key.endswith("alpha")]
    unet = [key for key in found[0] if key.startswith("lora_unet") and not key.endswith("alpha")]
    assert any(not torch.equal(found[0][key], found[1][key]) for key in text)
    assert all(torch.equal(found[1][key], later[key]) for later in found[2:] for key in text)
    assert any(not torch.equal(found[2][key], found[3][key]) for key in unet)
    rates = [event.learning_rates for event in events if isinstance(event, StepFinished)]
    assert [rate["text_encoder"] > 0 for rate in rates] == [True] * 2 + [False] * 2


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    tensors = open_tensors(path)
    return {key: tensors[key].clone() for key in tensors}


def test_blocks_with_factor_zero_are_left_as_they_were(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("steps=2", "optimizer.block_lr.down=zeros", "optimizer.weight_decay=0.5")
    (tmp_path / "run" / "weights").mkdir(parents=True)
    run = TrainingRun.prepare(settings, tmp_path / "run", lambda event: None)
    before = {key: tensor.clone() for key, tensor in run.parts.adapters.file_tensors().items()}
    final = run.loop()
    assert final is not None
    after = run.parts.adapters.file_tensors()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert not any("down_blocks" in key for key in changed)
    assert any("mid_block" in key for key in changed) and any("up_blocks" in key for key in changed)
    metadata = read_adapter_file(final).metadata
    assert metadata["ss_optimizer"] == "torch.optim.AdamW(weight_decay=0.5)"
    assert '"down_lr_weight": "zeros"' in metadata["ss_network_args"]
    run.parts.attachment.detach()


@pytest.mark.parametrize("name", ["prodigy", "dadapt_adam"])
def test_loraplus_with_an_optimizer_that_finds_its_rate(name: str, make_settings: MakeSettings, tmp_path: Path) -> None:
    (tmp_path / "run" / "weights").mkdir(parents=True)
    losses: list[float] = []
    settings = make_settings("steps=4", f"optimizer.name={name}", "optimizer.lr=1", "optimizer.loraplus_ratio=16")
    train(
        settings,
        tmp_path / "run",
        listener=lambda event: losses.append(event.loss) if isinstance(event, StepFinished) else None,
    )
    assert len(losses) == 4 and all(math.isfinite(loss) for loss in losses)
