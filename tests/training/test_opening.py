"""What contradicts itself is said at once, all of it, before anything is loaded, encoded or created."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loraloom.errors import MissingFileError, SettingsError
from loraloom.events import Event, Notice, ignore
from loraloom.formats.adapter_kinds import trained_kinds
from loraloom.formats.tensors import write_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.loaded import load_model
from loraloom.studio.plan import plan_run
from loraloom.studio.runs.training import run_training
from loraloom.training.opening import open_run, planned_groups
from loraloom.training.settings import TrainSettings
from loraloom.training.work import count_work
from toys import toy_tensors

MakeSettings = Callable[..., TrainSettings]

FAULTS = {
    "optimizer.args.speed=3": "optimizer.args.speed: AdamW has no such argument",
    "optimizer.text_encoder_lr=[1e-4,1e-5]": "optimizer.text_encoder_lr has two values",
    "optimizer.block_lr.down=[1,2]": "optimizer.block_lr.down has 2 factors",
    "adapter.block_ranks=[4,4]": "adapter.block_ranks has 2 values",
    "objective.scale_v_like_noise=true": "objective.scale_v_like_noise is for v models",
    "clip_skip=12": "clip_skip is 12, but this model allows 1 to",
    "lr_schedule.name=torch.optim.lr_scheduler.StepLR": "lr_schedule.args do not suit",
    "adapter.base_loras=['nothing.safetensors']": "nothing.safetensors does not exist",
    "preview.prompts=['a cat <lora:nowhere:1>']": "nowhere",
    "objective.preserve_class=cat": "no caption has the trigger word",
    "device=cuda:77": "cuda:77",
}


def told(settings: TrainSettings, start: Callable[[TrainSettings], object]) -> str:
    with pytest.raises(SettingsError) as caught:
        start(settings)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize("start", [run_training, lambda settings: plan_run(settings, dry=True)], ids=["run", "plan"])
def test_one_command_names_every_fault_and_leaves_nothing_but_its_record(
    make_settings: MakeSettings, pictures: Path, tmp_path: Path, start: Callable[[TrainSettings], object]
) -> None:
    concepts = f"dataset.concepts=[{{folder='{pictures / '2_red'}', last_epoch=2}}]"
    cache = [f"dataset.cache_folder='{tmp_path / 'cache'}'", "dataset.cache_to_disk=true"]
    settings = make_settings(*FAULTS, "saving.trigger=sks", "steps=500", concepts, *cache)
    said = told(settings, start)
    for words in FAULTS.values():
        assert words in said, words
    assert "the concepts' last epoch, 2, ends after 4 steps" in said
    assert not (tmp_path / "cache").exists()
    # A plan makes no run at all; a run that could not begin holds what it was to be, and why it is not.
    files = {path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert files in (set(), {".lock", "events.jsonl", "settings.toml"})
    assert bool(files) == (start is run_training)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["adapter.include=['nowhere']"], "'nowhere' matches no layer"),
        (["adapter.kind=loha", "optimizer.loraplus_ratio=4"], "LoRA\\+ needs up matrices"),
        (["adapter.kind=dora", "adapter.conv_rank=2", "adapter.unet=false", "adapter.text_encoder=false"], "nothing"),
        (["method=full", "adapter.unet=false", "adapter.text_encoder=false"], "nothing is trained"),
        (["method=full", "quantize=int8"], "quantize=int8"),
        (
            [
                "lr_schedule.name=warmup_stable_decay",
                "lr_schedule.warmup_steps=2",
                "lr_schedule.decay_steps=1",
                "steps=2",
            ],
            "do not fit into a run",
        ),
        (["lr_schedule.name=warmup_stable_decay", "lr_schedule.warmup_steps=9", "epochs=2"], "into a run of 6"),
        (["prediction=v", "objective.v_like_loss=1"], "v_like_loss is for models that predict noise"),
    ],
)
def test_what_does_not_fit_is_known_from_the_header(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: str
) -> None:
    monkeypatch.setattr("loraloom.training.preparing.load_model", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(SettingsError, match=words):
        run_training(make_settings(*overrides))


def test_a_single_fault_keeps_its_kind_and_its_hint(make_settings: MakeSettings, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError) as caught:
        open_run(make_settings(f"checkpoint='{tmp_path / 'no.ckpt'}'"), ignore, device="cpu")
    assert caught.value.hint


def test_faults_are_named_without_the_checkpoint_too(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(
        f"checkpoint='{tmp_path / 'no.ckpt'}'", f"dataset.folder='{tmp_path / 'none'}'", "optimizer.args.speed=3"
    )
    said = told(settings, lambda settings: open_run(settings, ignore, device="cpu"))
    for words in ("no.ckpt", f"{tmp_path / 'none'} does not exist", "optimizer.args.speed"):
        assert words in said


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_the_header_tells_how_deep_clip_skip_may_go(family: str, checkpoints: Callable[[str], Path]) -> None:
    import torch

    checkpoint = open_checkpoint(checkpoints(family))
    model = load_model(checkpoint, device=torch.device("meta"), prediction="epsilon")
    deepest = model.max_clip_skip()
    checkpoint.family.check_clip_skip(checkpoint.infos, deepest)
    with pytest.raises(SettingsError, match=f"allows 1 to {deepest}"):
        checkpoint.family.check_clip_skip(checkpoint.infos, deepest + 1)


@pytest.mark.parametrize("kind", trained_kinds())
def test_the_planned_groups_are_those_of_the_run(make_settings: MakeSettings, kind: str, tmp_path: Path) -> None:
    from loraloom.training.preparing import prepare_parts

    overrides = [f"adapter.kind={kind}", "adapter.conv_rank=2", "adapter.include=['attn', 'resnets']"]
    if kind in ("lora", "dora"):
        overrides += ["optimizer.loraplus_unet_ratio=4", "adapter.init=pissa"]
    settings = make_settings(*overrides)
    parts = prepare_parts(settings, tmp_path / "run", ignore)
    planned = planned_groups(settings, open_checkpoint(settings.checkpoint))
    assert [(group.name, group.rate, len(group.members)) for group in planned] == [
        (group["name"], group["base_lr"], len(group["params"])) for group in parts.optimizer.param_groups
    ]


def own_resolution_run(make_settings: MakeSettings, path: Path, said: str, *overrides: str) -> TrainSettings:
    """Settings of a checkpoint that says its resolution, with none set unless it is among the overrides."""
    write_tensors(path, toy_tensors("sd1"), metadata={"modelspec.resolution": said})
    settings = make_settings(f"checkpoint='{path}'", *overrides)
    data = settings.model_dump(exclude_unset=True)
    if not any(text.startswith("dataset.resolution") for text in overrides):
        del data["dataset"]["resolution"]
    return TrainSettings.parse(data)


@pytest.mark.parametrize(
    ("said", "overrides", "resolution", "words"),
    [
        ("96x96", (), 96, "dataset.resolution = 96: what own.safetensors says of itself"),
        ("96x64", (), (96, 64), "dataset.resolution = (96, 64)"),
        ("96x96", ("dataset.resolution=72",), 72, None),
        ("96x96", ("dataset.resolution=512",), 512, None),
        ("99999x1", (), 512, "'99999x1', which is not a size to paint at"),
    ],
)
def test_the_checkpoints_own_resolution_unless_one_is_set(
    make_settings: MakeSettings, tmp_path: Path, said: str, overrides: tuple[str, ...], resolution: object,
    words: str | None,
) -> None:  # fmt: skip
    settings = own_resolution_run(make_settings, tmp_path / "own.safetensors", said, *overrides)
    events: list[Event] = []
    opened = open_run(settings, events.append, device="cpu")
    assert opened.settings.dataset.resolution == resolution
    told = [event.text for event in events if isinstance(event, Notice)]
    assert words is None or any(words in text for text in told), told
    plan, _ = plan_run(settings, dry=True)
    assert plan.work.largest[:2] == count_work(opened.settings, opened.dataset).largest[:2]
