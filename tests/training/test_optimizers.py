from __future__ import annotations

import builtins
import copy
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loraloom.errors import HardwareError, SettingsError, UnknownNameError
from loraloom.idle import told
from loraloom.training.idle_choices import OPTIMIZER_ROWS
from loraloom.training.optimizer_names import OPTIMIZERS, find_optimizer, find_recipe, is_adaptive
from loraloom.training.optimizer_state import load_optimizer, optimizer_options, optimizer_values
from loraloom.training.optimizers import create_optimizer, evaluating, optimizer_title, try_optimizer
from loraloom.training.settings import OptimizerSettings, TrainSettings

CPU = torch.device("cpu")
ON_CPU = sorted(name for name in OPTIMIZERS if not find_recipe(name).paged)
RATES = {"sgd_nesterov": 0.05, "sgd_8bit": 0.05, "schedule_free_sgd": 2.0, "lion": 3e-3, "lion_8bit": 3e-3}


def settings_for(name: str, **rest: Any) -> OptimizerSettings:
    lr = rest.pop("lr", 1.0 if is_adaptive(name) else RATES.get(name, 0.01))
    if name.endswith("8bit"):
        rest.setdefault("args", {"min_8bit_size": 16})  # else a toy stays in 32 bits
    return OptimizerSettings.parse({"name": name, "lr": lr, **rest})


class Toy:
    """A product of two factors that is to become a matrix: what a LoRA is. Two groups."""

    def __init__(self, settings: OptimizerSettings, rates: tuple[float, float] | None = None) -> None:
        random = torch.Generator().manual_seed(0)
        self.goal = torch.randn(16, 16, generator=random)
        self.down = torch.nn.Parameter(torch.randn(8, 16, generator=random) / 4)
        self.up = torch.nn.Parameter(torch.zeros(16, 8))
        rates = rates or (settings.learning_rate, settings.learning_rate)
        self.optimizer = create_optimizer(
            [
                {"params": [parameter], "lr": rate, "base_lr": rate, "name": name, "part": "unet"}
                for name, parameter, rate in (("down", self.down, rates[0]), ("up", self.up, rates[1]))
            ],
            settings,
        )

    def loss(self) -> torch.Tensor:
        return (self.up @ self.down - self.goal).square().mean()

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad(set_to_none=True)
            self.loss().backward()
            self.optimizer.step()

    def numbers(self) -> torch.Tensor:
        return torch.cat([self.down.detach().flatten(), self.up.detach().flatten()])


def test_adamw_is_the_paper_s() -> None:
    settings = OptimizerSettings(lr=0.01, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    toy, by_hand = Toy(settings), Toy(settings)
    theta = [by_hand.down.detach().double(), by_hand.up.detach().double()]
    first, second = [torch.zeros_like(t) for t in theta], [torch.zeros_like(t) for t in theta]
    for step in range(1, 6):
        toy.train(1)
        by_hand.down.data, by_hand.up.data = theta[0].float(), theta[1].float()
        gradients = torch.autograd.grad(by_hand.loss(), [by_hand.down, by_hand.up])
        for index, gradient in enumerate(gradients):
            g = gradient.double()
            first[index] = 0.8 * first[index] + 0.2 * g
            second[index] = 0.95 * second[index] + 0.05 * g**2
            m, v = first[index] / (1 - 0.8**step), second[index] / (1 - 0.95**step)
            theta[index] = theta[index] - 0.01 * (m / (v.sqrt() + 1e-6) + 0.1 * theta[index])
    expected = torch.cat([t.flatten() for t in theta]).float()
    assert torch.allclose(toy.numbers(), expected, atol=2e-6)


def test_the_default_is_adamw_with_torch_s_defaults() -> None:
    group = Toy(OptimizerSettings(lr=0.01)).optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.01)


@pytest.mark.parametrize("name", ON_CPU)
def test_every_optimizer_learns(name: str) -> None:
    # With plain descent D-Adaptation runs away on this toy, in the authors' own code as well.
    toy = Toy(settings_for(name, lr=0.1) if name == "dadapt_sgd" else settings_for(name))
    before = float(toy.loss().detach())
    toy.train(150)
    with evaluating(toy.optimizer):
        after = float(toy.loss().detach())
    assert math.isfinite(after)
    assert after < (0.999 if name in ("dadapt_adagrad", "dadapt_sgd") else 0.8) * before


@pytest.mark.parametrize("name", ON_CPU)
def test_a_state_on_disk_goes_on_bit_for_bit(name: str) -> None:
    toy, again = Toy(settings_for(name)), Toy(settings_for(name))
    initial = optimizer_options(toy.optimizer)
    toy.train(7)
    file = io.BytesIO()
    values = optimizer_values(toy.optimizer, {id(toy.down): "down", id(toy.up): "up"}, initial)
    torch.save({"optimizer": values, "down": toy.down, "up": toy.up}, file)
    kept = copy.deepcopy(toy.numbers())
    toy.train(5)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again.down.data.copy_(state["down"])
    again.up.data.copy_(state["up"])
    assert load_optimizer(again.optimizer, state["optimizer"], {id(again.down): "down", id(again.up): "up"}, CPU)
    assert torch.equal(again.numbers(), kept)
    again.train(5)
    assert torch.equal(again.numbers(), toy.numbers())
    assert not torch.equal(again.numbers(), kept)


@pytest.mark.parametrize("name", ON_CPU)
def test_a_parameter_without_gradient_stays_as_it_is(name: str) -> None:
    toy = Toy(settings_for(name, weight_decay=0.1))
    toy.train(3)
    toy.down.requires_grad_(False)
    toy.down.grad = None
    kept = toy.down.detach().clone()
    toy.train(4)
    assert torch.equal(toy.down, kept)
    with evaluating(toy.optimizer):
        pass
    assert torch.equal(toy.down, kept)


# ------------------------------------------------------------------------------------------ rate finders

REFERENCES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "prodigy": ("prodigyopt:Prodigy", {"use_bias_correction": True, "safeguard_warmup": True, "d0": 1e-4}, {}),
    "dadapt_adam": ("dadaptation:DAdaptAdam", {"use_bias_correction": True}, {}),
    "dadapt_lion": ("dadaptation:DAdaptLion", {}, {"betas": (0.9, 0.999)}),
    "dadapt_sgd": ("dadaptation:DAdaptSGD", {}, {}),
    "dadapt_adagrad": ("dadaptation:DAdaptAdaGrad", {"d0": 1e-3}, {"eps": 1e-8}),
    "schedule_free_adamw": ("schedulefree:AdamWScheduleFree", {}, {"weight_decay": 0.05}),
    "schedule_free_radam": ("schedulefree:RAdamScheduleFree", {}, {"weight_decay": 0.05}),
    "schedule_free_sgd": ("schedulefree:SGDScheduleFree", {}, {"weight_decay": 0.05}),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_agrees_with_the_authors_own_implementation(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, args, theirs = REFERENCES[name]
    module, _, attribute = path.partition(":")
    reference_class = getattr(pytest.importorskip(module), attribute)
    rest = {key: value for key, value in theirs.items() if key in ("weight_decay", "eps")}
    toy, reference = Toy(settings_for(name, args=args, **rest)), Toy(OptimizerSettings())
    lr = toy.optimizer.param_groups[0]["lr"]
    reference.optimizer = reference_class([reference.down, reference.up], lr=lr, **args, **theirs)
    if hasattr(reference.optimizer, "train"):
        reference.optimizer.train()
    toy.train(20)
    reference.train(20)
    assert torch.allclose(toy.numbers(), reference.numbers(), atol=2e-5)
    assert not torch.allclose(toy.numbers(), Toy(OptimizerSettings()).numbers(), atol=1e-4, rtol=0)
    with evaluating(toy.optimizer), evaluating(reference.optimizer):
        assert torch.allclose(toy.numbers(), reference.numbers(), atol=2e-5)


ADAPTIVE = sorted(name for name in OPTIMIZERS if find_recipe(name).adaptive)


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if not find_recipe(name).one_rate])
def test_rates_that_differ_between_groups_scale_the_steps(name: str) -> None:
    settings = settings_for(name)
    toy, plain = Toy(settings, rates=(0.5, 16.0)), Toy(settings)
    assert {group["lr"] for group in toy.optimizer.param_groups} == {1.0}
    start = toy.down.detach().clone(), toy.up.detach().clone()
    toy.train(1)
    plain.train(1)
    assert torch.allclose(toy.down - start[0], 0.5 * (plain.down - start[0]), rtol=1e-2, atol=1e-9)
    assert torch.allclose(toy.up - start[1], 16.0 * (plain.up - start[1]), rtol=1e-2, atol=1e-9)
    toy.train(30)
    assert torch.isfinite(toy.numbers()).all()


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if find_recipe(name).one_rate])
def test_rates_that_differ_are_refused_where_steps_cannot_be_scaled(name: str) -> None:
    with pytest.raises(SettingsError, match="one learning rate for everything"):
        Toy(settings_for(name), rates=(1.0, 16.0))


def test_the_rate_of_an_adaptive_optimizer_is_one_where_none_is_given() -> None:
    assert OptimizerSettings.parse({"name": "DAdaptAdam"}).learning_rate == 1.0
    assert OptimizerSettings.parse({"name": "prodigy", "lr": 0.5}).learning_rate == 0.5
    assert OptimizerSettings.parse({"name": "adamw"}).learning_rate == 1e-4
    assert OptimizerSettings.parse({"name": "prodigyplus.ProdigyPlusScheduleFree"}).learning_rate == 1.0


# ------------------------------------------------------------------------------------------ schedule-free


def test_what_is_saved_of_a_schedule_free_run_is_the_average_and_training_goes_on_as_if_nothing_was() -> None:
    settings = settings_for("schedule_free_adamw")
    watched, alone = Toy(settings), Toy(settings)
    for _ in range(5):
        watched.train(2)
        before = watched.numbers()
        with evaluating(watched.optimizer):
            inside = watched.numbers()
        assert not torch.equal(inside, before)
        assert torch.equal(watched.numbers(), before)
    alone.train(10)
    assert torch.equal(watched.numbers(), alone.numbers())


def test_evaluating_restores_after_an_error() -> None:
    toy = Toy(settings_for("schedule_free_adamw"))
    toy.train(3)
    before = toy.numbers()
    with pytest.raises(RuntimeError), evaluating(toy.optimizer):
        raise RuntimeError
    assert torch.equal(toy.numbers(), before)
    assert all(group["train_mode"] for group in toy.optimizer.param_groups)


# ------------------------------------------------------------------------------------------ names

SD_SCRIPTS = {
    "AdamW": "adamw",
    "AdamW8bit": "adamw_8bit",
    "PagedAdamW": "paged_adamw",
    "PagedAdamW8bit": "paged_adamw_8bit",
    "PagedAdamW32bit": "paged_adamw_32bit",
    "Lion": "lion",
    "Lion8bit": "lion_8bit",
    "PagedLion8bit": "paged_lion_8bit",
    "SGDNesterov": "sgd_nesterov",
    "SGDNesterov8bit": "sgd_8bit",
    "DAdaptation": "dadapt_adam_preprint",
    "DAdaptAdamPreprint": "dadapt_adam_preprint",
    "DAdaptAdaGrad": "dadapt_adagrad",
    "DAdaptAdam": "dadapt_adam",
    "DAdaptAdan": "dadapt_adan",
    "DAdaptAdanIP": "dadapt_adan_ip",
    "DAdaptLion": "dadapt_lion",
    "DAdaptSGD": "dadapt_sgd",
    "Prodigy": "prodigy",
    "Adafactor": "adafactor",
    "AdamWScheduleFree": "schedule_free_adamw",
    "RAdamScheduleFree": "schedule_free_radam",
    "SGDScheduleFree": "schedule_free_sgd",
    "CAME": "came",
    "SCHEDULE_FREE_ADAMW": "schedule_free_adamw",
    "DADAPT_ADA_GRAD": "dadapt_adagrad",
    "8bit AdamW": "adamw_8bit",
    "Lion Dadaptation": "dadapt_lion",
}


@pytest.mark.parametrize("theirs", SD_SCRIPTS)
def test_other_programs_names_are_understood_in_any_case(theirs: str) -> None:
    assert {find_optimizer(spelling) for spelling in (theirs, theirs.lower(), theirs.upper())} == {SD_SCRIPTS[theirs]}


def test_an_unknown_name_suggests_the_nearest_and_the_way_to_any_class() -> None:
    with pytest.raises(UnknownNameError) as caught:
        find_optimizer("prodgy")
    assert "'prodigy'" in caught.value.hint and "torch.optim.RAdam" in caught.value.hint


@pytest.mark.parametrize("path", ["torch.optim.RAdam", "pytorch_optimizer.Tiger", "bitsandbytes.optim.RMSprop8bit"])
def test_any_class_can_be_named(path: str) -> None:
    toy = Toy(OptimizerSettings(name=path, lr=0.02))
    before = float(toy.loss().detach())
    toy.train(80)
    assert float(toy.loss().detach()) < 0.9 * before


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("torch.optim.Radam", UnknownNameError, "RAdam"),
        ("torch.nn.Linear", SettingsError, "not an optimizer"),
        ("no_such_library.Adam", SettingsError, "pip install no-such-library"),
        ("torch.optim.LBFGS", HardwareError, "closure"),
    ],
)
def test_a_path_that_does_not_do_is_an_error(path: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        try_optimizer(OptimizerSettings(name=path), CPU)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("prodigy", "pytorch-optimizer", "optimizers"), ("AdamW8bit", "bitsandbytes", "optimizers-8bit")],
)
def test_a_missing_library_is_named_with_the_command(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(module: str, package: str | None = None) -> Any:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module.partition(".")[0])

    monkeypatch.setattr("loraloom.training.optimizer_names.import_module", missing)
    monkeypatch.setattr("loraloom.registry.import_module", builtins.__import__("importlib").import_module)
    with pytest.raises(SettingsError) as caught:
        try_optimizer(OptimizerSettings(name=name), CPU)
    assert f"optimizer {name} needs the package {package}" in caught.value.problem
    assert f"pip install {package}" in caught.value.hint and f"loraloom[{extra}]" in caught.value.hint


# ------------------------------------------------------------------------------------------ arguments


def test_arguments_reach_the_class_by_its_names_and_by_those_of_sd_scripts() -> None:
    args = {"decouple": True, "use_bias_correction": True, "d_coef": 2.0}
    group = Toy(settings_for("Prodigy", args=args, weight_decay=0.1)).optimizer.param_groups[0]
    assert (group["weight_decouple"], group["bias_correction"], group["d_coef"]) == (True, True, 2.0)
    assert group["weight_decay"] == 0.1


def test_wrong_arguments_are_all_reported_with_the_valid_ones() -> None:
    settings = settings_for("Prodigy", args={"d_coeff": 2.0, "lr": 1.0, "nonsense": True})
    with pytest.raises(SettingsError) as caught:
        Toy(settings)
    assert len(caught.value.problems) == 3
    assert "did you mean 'd_coef'" in caught.value.problems[0] and "safeguard_warmup" in caught.value.problems[0]
    assert "optimizer.lr" in caught.value.problems[1]


def test_a_general_setting_that_the_class_lacks_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"optimizer\.eps: Lion has no such argument"):
        Toy(settings_for("lion", eps=1e-6))


def test_a_value_that_the_class_refuses_is_an_error() -> None:
    with pytest.raises(SettingsError, match=r"torch\.optim\.Adam refuses"):
        Toy(settings_for("torch.optim.Adam", args={"fused": True, "foreach": True}))


def test_the_metadata_name_the_class_and_what_was_given() -> None:
    assert optimizer_title(OptimizerSettings()) == "torch.optim.AdamW"
    settings = OptimizerSettings(name="Lion8bit", weight_decay=0.1, args={"min_8bit_size": 64})
    assert optimizer_title(settings) == "bitsandbytes.optim.Lion8bit(weight_decay=0.1,min_8bit_size=64)"


# ------------------------------------------------------------------------------------------ devices, remarks


@pytest.mark.parametrize("name", sorted(name for name in OPTIMIZERS if find_recipe(name).paged))
def test_paged_optimizers_are_refused_on_a_cpu(name: str) -> None:
    with pytest.raises(HardwareError, match="pages its state out of GPU memory"):
        try_optimizer(settings_for(name), CPU)


def test_eight_bits_are_eight_bits_on_a_cpu() -> None:
    toy = Toy(settings_for("AdamW8bit"))
    toy.train(1)
    assert toy.optimizer.state[toy.up]["state1"].dtype is torch.uint8


@pytest.mark.parametrize("options", [{"relative_step": True, "scale_parameter": True, "warmup_init": True}, {}])
def test_adafactor_agrees_with_transformers(options: dict[str, bool]) -> None:
    from transformers.optimization import Adafactor

    toy = Toy(OptimizerSettings(name="adafactor", lr=0.01, args=options))
    reference = Toy(OptimizerSettings())
    theirs = {"relative_step": False, "scale_parameter": False} | options
    lr = None if options else 0.01
    reference.optimizer = Adafactor([reference.down, reference.up], lr=lr, **theirs)
    toy.train(20)
    reference.train(20)
    assert torch.allclose(toy.numbers(), reference.numbers(), atol=1e-5)
    assert not torch.equal(toy.numbers(), Toy(OptimizerSettings()).numbers())


def test_adafactor_with_relative_step_does_without_a_rate() -> None:
    args = {"relative_step": True, "scale_parameter": True, "warmup_init": True}
    toy, other = (Toy(OptimizerSettings(name="adafactor", lr=lr, args=args)) for lr in (1e-3, 1.0))
    toy.train(5)
    other.train(5)
    assert torch.equal(toy.numbers(), other.numbers())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.name=prodigy", "optimizer.lr=1e-4"], "0.0001 is far from 1"),
        (["optimizer.name=prodigy", "lr_schedule.name=cosine_with_restarts"], "restarts"),
        (["optimizer.name=prodigy", "lr_schedule.warmup_steps=10"], "safeguard_warmup"),
        (["optimizer.name=schedule_free_adamw"], "lr_schedule.name=constant"),
        (["optimizer.name=SGDNesterov8bit"], "Nesterov"),
        (["optimizer.name=adafactor", "optimizer.args.relative_step=true"], "relative_step"),
        (["adapter.text_encoder=false", "optimizer.text_encoder_lr=1e-5"], "optimizer.text_encoder_lr has no effect"),
        (["adapter.text_encoder=false", "optimizer.text_encoder_stop=0.5"], "optimizer.text_encoder_stop"),
        (["adapter.unet=false", "optimizer.block_lr.down=sine"], "optimizer.block_lr has no effect"),
        (["lr_schedule.name=constant", "lr_schedule.cycles=3"], "lr_schedule.cycles has no effect"),
    ],
)
def test_settings_that_do_not_go_together_are_remarked(overrides: list[str], words: str) -> None:
    settings = TrainSettings.load(None, ["checkpoint=a.ckpt", "dataset.folder=b", *overrides])
    said = told(OPTIMIZER_ROWS, settings, settings)
    assert any(words in remark for remark in said), said


def test_sound_settings_are_not_remarked() -> None:
    for overrides in (
        [],
        ["optimizer.name=prodigy"],
        ["optimizer.name=schedule_free_sgd", "lr_schedule.name=constant"],
    ):
        settings = TrainSettings.load(None, ["checkpoint=a.ckpt", "dataset.folder=b", *overrides])
        assert told(OPTIMIZER_ROWS, settings, settings) == []


def test_a_run_with_an_optimizer_that_cannot_work_fails_before_the_checkpoint_is_read(
    make_settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    from loraloom.training.trainer import TrainingRun

    settings = make_settings("checkpoint=no_such_file.ckpt", "optimizer.args.nonsense=1")
    with pytest.raises(SettingsError, match="nonsense"):
        TrainingRun.prepare(settings, tmp_path, lambda event: None)
