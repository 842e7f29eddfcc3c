"""A merged checkpoint is W + the sum of weighted deltas, rounded once; everything else stays bit for bit."""

from __future__ import annotations

import gc
import json
import re
import shutil
import weakref
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.adapters.attach import attach
from loraloom.adapters.strength import LoraStrength
from loraloom.errors import AdapterError, CheckpointError, LoraloomError, MissingFileError, OutputError, SettingsError
from loraloom.events import Event, Notice
from loraloom.formats.tensors import open_tensors, write_tensors
from loraloom.models.checkpoint import Checkpoint
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.saving import save_checkpoint
from loraloom.studio.weights import parse_lora_weight, read_checkpoint_weights, read_lora_weights, weighted_lora
from loraloom.weights.merge import LoraWeight, merge
from random_loras import random_lora, targets_of
from toys import toy_tensors

CPU = torch.device("cpu")
MakeFile = Callable[..., Path]
FAMILY_NAMES = sorted(FAMILIES)
MODEL = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.")


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def expected_weights(family: str, loras: list[tuple[Mapping[str, Tensor], float, float]]) -> dict[str, Tensor]:
    """Float32 W + sum of weight * alpha / rank * up @ down, from the tensors of the files, layer by layer."""
    changed: dict[str, Tensor] = {}
    for target in targets_of(family):
        total = None
        for tensors, unet, text in loras:
            if f"{target.name}.alpha" not in tensors:
                continue
            up, down = (tensors[f"{target.name}.lora_{role}.weight"].float() for role in ("up", "down"))
            scale = float(tensors[f"{target.name}.alpha"]) / down.shape[0]
            delta = (up.flatten(1) @ down.flatten(1)) * scale * (unet if target.part == "unet" else text)
            total = delta if total is None else total + delta
        if total is not None:
            weight = changed.setdefault(target.tensor, toy_tensors(family)[target.tensor].clone())
            start, stop = target.rows or (0, weight.shape[0])
            weight[start:stop] += total.reshape(weight[start:stop].shape)
    return changed


# ------------------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_weight_is_the_closed_form_and_the_rest_is_untouched(
    family: str, checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path
) -> None:
    first, second = random_lora(family, 1), random_lora(family, 2, conv=False)
    loras = [
        LoraWeight(write_lora("a.safetensors", first), LoraStrength(0.8, 0.5)),
        LoraWeight(write_lora("b.pt", second), LoraStrength(-0.25, 1.5)),
    ]
    report = merge(checkpoint(family), loras, tmp_path / "out.safetensors")

    expected = expected_weights(family, [(first.file_tensors(), 0.8, 0.5), (second.file_tensors(), -0.25, 1.5)])
    source, merged = open_tensors(checkpoint(family)), open_tensors(tmp_path / "out.safetensors")
    assert list(merged) == list(source)
    for name in source:
        assert merged.info(name) == source.info(name)
        assert torch.equal(bits(merged[name]), bits(expected.get(name, source[name]))), name
    kinds = {target.kind for target in targets_of(family)} | {"rows" for t in targets_of(family) if t.rows}
    assert kinds >= {"linear", "conv3x3"} | ({"rows"} if family != "sd1" else {"conv1x1"})
    assert (report.tensors, report.changed) == (len(source), len(expected))
    layers = len(targets_of(family))
    assert [(lora.layers, lora.applied) for lora in report.loras] == [(layers, layers), (len(second), len(second))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", [None, "fp16", "bf16", "float"])
def test_half_precision_is_rounded_once(
    dtype: torch.dtype, precision: str | None, checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path
) -> None:
    lora = random_lora("sd1", 3)
    path = write_lora("a.safetensors", lora)
    merge(
        checkpoint("sd1", dtype),
        [LoraWeight(path, LoraStrength(0.7, 0.7))],
        tmp_path / "out.safetensors",
        precision=precision,
    )
    source, merged = open_tensors(checkpoint("sd1", dtype)), open_tensors(tmp_path / "out.safetensors")
    wanted = {None: dtype, "fp16": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}[precision]
    deltas = {target.tensor: adapter.delta() * 0.7 for target, adapter in lora.items()}
    for name in source:
        weight = source[name]
        if name in deltas:
            exact = weight.float() + deltas[name].reshape(weight.shape)
            assert torch.equal(merged[name], exact.to(wanted)), name
        elif name.startswith(MODEL) and weight.is_floating_point():
            assert merged[name].dtype == wanted
            assert torch.equal(merged[name], weight.to(wanted)), name
        else:  # tables of the noise schedule and position ids: programs compute with what the file holds
            assert torch.equal(bits(merged[name]), bits(weight)), name
            assert merged[name].dtype == weight.dtype


def test_order_of_loras_does_not_matter_and_the_same_one_counts_twice(
    checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path
) -> None:
    first, second = random_lora("sd2", 1, conv=False), random_lora("sd2", 2, conv=False)
    a, b = (
        LoraWeight(write_lora("a.safetensors", first), LoraStrength(0.5, 0.5)),
        LoraWeight(write_lora("b.safetensors", second)),
    )
    merge(checkpoint("sd2"), [a, b], tmp_path / "ab.safetensors")
    merge(checkpoint("sd2"), [b, a], tmp_path / "ba.safetensors")
    left, right = open_tensors(tmp_path / "ab.safetensors"), open_tensors(tmp_path / "ba.safetensors")
    assert all(torch.equal(bits(left[name]), bits(right[name])) for name in left)

    merge(checkpoint("sd2"), [a, a], tmp_path / "aa.safetensors")
    twice = open_tensors(tmp_path / "aa.safetensors")
    for name, weight in expected_weights("sd2", [(first.file_tensors(), 1.0, 1.0)]).items():
        torch.testing.assert_close(twice[name], weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_part_of_weight_zero_is_left_alone(
    part: str, checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path
) -> None:
    strength = LoraStrength(**{"unet": 0.0, "text_encoder": 0.0, part: 1})
    lora = LoraWeight(write_lora("a.safetensors", random_lora("sdxl", 1)), strength)
    report = merge(checkpoint("sdxl"), [lora], tmp_path / "out.safetensors")
    touched = {target.tensor for target in targets_of("sdxl") if (target.part == "unet") == (part == "unet")}
    source, merged = open_tensors(checkpoint("sdxl")), open_tensors(tmp_path / "out.safetensors")
    assert {name for name in source if not torch.equal(bits(source[name]), bits(merged[name]))} == touched
    assert report.changed == len(touched)
    assert report.loras[0].applied == sum((t.part == "unet") == (part == "unet") for t in targets_of("sdxl"))


def test_several_layers_of_one_fused_tensor(checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    """A LoRA on OpenCLIP's v alone must leave the rows of q and k bit for bit, negative zeros too."""
    target = next(target for target in targets_of("sd2") if target.rows and target.name.endswith("v_proj"))
    tensors = toy_tensors("sd2")
    weight = tensors[target.tensor].clone()
    weight[0, :4] = -0.0
    base = tmp_path / "base.ckpt"
    write_tensors(base, tensors | {target.tensor: weight})
    whole = random_lora("sd2", 4).file_tensors()
    lora = write_lora(
        "v.safetensors", {key: value for key, value in whole.items() if key.startswith(target.name + ".")}
    )
    merge(base, [LoraWeight(lora)], tmp_path / "out.safetensors")
    merged = open_tensors(tmp_path / "out.safetensors")[target.tensor]
    start, stop = target.rows or (0, 0)
    assert (start, stop) == (2 * weight.shape[1], 3 * weight.shape[1])
    assert torch.equal(bits(merged[:start]), bits(weight[:start]))
    assert not torch.equal(merged[start:stop], weight[start:stop])


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_diffusers_fuses_to_the_same_weights(
    family: str, checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    model = load_model(checkpoint(family), device=CPU)
    save_checkpoint(model, tmp_path / "folder")
    lora = write_lora("a.safetensors", random_lora(family, 5, conv=False))
    merge(checkpoint(family), [LoraWeight(lora, LoraStrength(0.6, 0.6))], tmp_path / "out.safetensors")

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "folder", torch_dtype=torch.float32, local_files_only=True)
    pipeline.load_lora_weights(lora)
    pipeline.fuse_lora(lora_scale=0.6)
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path / "fused")
    theirs = load_model(tmp_path / "fused", device=CPU).tensors()
    ours = open_tensors(tmp_path / "out.safetensors")
    before = open_tensors(checkpoint(family))
    changed = [name for name in ours if not torch.equal(ours[name], before[name])]
    assert len(changed) == len({target.tensor for target in targets_of(family) if not target.extended})
    for name in changed:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
        assert float((theirs[name] - before[name]).abs().max()) > 1e-4


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_merged_model_does_what_the_lora_does_on_the_fly(
    family: str, checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path
) -> None:
    lora = random_lora(family, 6, size=0.2)
    merge(
        checkpoint(family),
        [LoraWeight(write_lora("a.safetensors", lora), LoraStrength(0.8, 0.4))],
        tmp_path / "out.ckpt",
    )

    def outputs(model: LoadedModel) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        noisy = torch.randn(2, 4, 8, 8, generator=generator)
        text = model.encode_text(["a cat", "a red dog, sitting"])
        return text.context, model.denoise(noisy, torch.tensor([700, 20]), text)

    base = load_model(checkpoint(family), device=CPU, prediction="epsilon")
    plain = outputs(base)
    layers = {target.name: base.layer(target) for target in base.targets}
    with attach(lora, layers, unet=0.8, text_encoder=0.4):
        on_the_fly = outputs(base)
    merged = outputs(load_model(tmp_path / "out.ckpt", device=CPU, prediction="epsilon"))
    for without, beside, inside in zip(plain, on_the_fly, merged, strict=True):
        scale = float(beside.abs().max())
        assert float((beside - inside).abs().max()) < 1e-4 * scale
        assert float((beside - without).abs().max()) > 1e-2 * scale


# ------------------------------------------------------------------------------------------------ forms of files


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("lora_suffix", [".safetensors", ".ckpt", ".pt"])
@pytest.mark.parametrize("out_suffix", [".safetensors", ".ckpt"])
def test_any_mix_of_forms(
    suffix: str, lora_suffix: str, out_suffix: str, checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path
) -> None:
    path, lora = checkpoint("sd1", torch.float32, suffix), random_lora("sd1", 1, conv=False)
    output = tmp_path / f"out{out_suffix}"
    merge(path, [LoraWeight(write_lora(f"a{lora_suffix}", lora), LoraStrength(0.8, 0.5))], output)
    expected = expected_weights("sd1", [(lora.file_tensors(), 0.8, 0.5)])
    if out_suffix == ".ckpt":
        loaded = torch.load(output, weights_only=True)
        tensors = loaded["state_dict"]
        assert (loaded.get("epoch"), loaded.get("global_step")) == ((3, 1000) if suffix == ".ckpt" else (None, None))
    else:
        from safetensors.torch import load_file

        tensors = load_file(output)
    assert set(tensors) == set(toy_tensors("sd1"))
    for name, tensor in toy_tensors("sd1").items():
        assert torch.equal(bits(tensors[name]), bits(expected.get(name, tensor))), name


def test_the_kind_is_told_from_the_content(checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    disguised = shutil.copy(checkpoint("sd1", torch.float32, ".ckpt"), tmp_path / "really-a-ckpt.safetensors")
    lora = write_lora("a.safetensors", random_lora("sd1")).rename(tmp_path / "really-safetensors.pt")
    report = merge(disguised, [LoraWeight(lora)], tmp_path / "out.safetensors")
    assert report.changed == len({target.tensor for target in targets_of("sd1")})


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_diffusers_folder_merges_into_a_single_file(
    family: str, checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path
) -> None:
    model = load_model(checkpoint(family), device=CPU, prediction="v" if family == "sd2" else "epsilon")
    save_checkpoint(model, tmp_path / "folder")
    lora = random_lora(family, 7)
    merge(tmp_path / "folder", [LoraWeight(write_lora("a.safetensors", lora))], tmp_path / "out.safetensors")
    merged = open_tensors(tmp_path / "out.safetensors")
    for name, weight in expected_weights(family, [(lora.file_tensors(), 1.0, 1.0)]).items():
        assert torch.equal(bits(merged[name]), bits(weight)), name
    again = load_model(tmp_path / "out.safetensors", device=CPU)
    assert again.prediction == model.prediction


def test_what_the_model_predicts_survives(checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    """A .yaml beside the source says v; the merged file has no such neighbour, so its metadata must say it."""
    source = shutil.copy(checkpoint("sd2"), tmp_path / "model.safetensors")
    source.with_suffix(".yaml").write_text('model:\n  params:\n    parameterization: "v"\n', encoding="utf-8")
    for suffix in (".safetensors", ".ckpt"):
        merge(source, [LoraWeight(write_lora("a.pt", random_lora("sd2")))], tmp_path / f"out{suffix}")
        assert open_tensors(tmp_path / f"out{suffix}").metadata["modelspec.prediction_type"] == "v"


@pytest.mark.parametrize("suffix", [".safetensors", ".CKPT"])
def test_metadata_records_every_merge(suffix: str, checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    lora, other = (write_lora(f"{name}.safetensors", random_lora("sd1", seed)) for seed, name in enumerate("ab"))
    merge(checkpoint("sd1"), [LoraWeight(lora, LoraStrength(0.8, 0.5))], tmp_path / f"one{suffix}")
    merge(tmp_path / f"one{suffix}", [LoraWeight(other)], tmp_path / f"two{suffix}")
    one, two = (open_tensors(tmp_path / f"{name}{suffix}").metadata for name in ("one", "two"))
    assert one["modelspec.title"] == "Toy"
    assert "modelspec.hash_sha256" not in one
    assert one["modelspec.merged_from"] == "sd1-float32.safetensors, a.safetensors:0.5:0.8"
    first = {
        "checkpoint": "sd1-float32.safetensors",
        "file": "a.safetensors",
        "sha256": sha256(lora.read_bytes()).hexdigest(),
        "unet": 0.8,
        "text_encoder": 0.5,
    }
    assert json.loads(one["loraloom.merged"]) == [first]
    history = json.loads(two["loraloom.merged"])
    assert history[0] == first
    assert (history[1]["checkpoint"], history[1]["file"]) == (f"one{suffix}", "b.safetensors")
    assert two["modelspec.merged_from"] == f"one{suffix}, b.safetensors:1:1"


# ------------------------------------------------------------------------------------------------ memory


@pytest.mark.parametrize("precision", [None, "fp16"])
def test_one_tensor_of_the_checkpoint_at_a_time(
    precision: str | None,
    checkpoint: MakeFile,
    write_lora: MakeFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most, loads = 0, 0
    load = Checkpoint.__getitem__

    def counted(self: Checkpoint, name: str) -> Tensor:
        nonlocal most, loads
        tensor = load(self, name)
        alive.add(tensor)
        most, loads = max(most, len(alive)), loads + 1
        return tensor

    monkeypatch.setattr(Checkpoint, "__getitem__", counted)
    gc.disable()
    try:
        report = merge(
            checkpoint("sd1"),
            [LoraWeight(write_lora("a.pt", random_lora("sd1")))],
            tmp_path / "o.ckpt",
            precision=precision,
        )
    finally:
        gc.enable()
    assert loads == report.tensors
    assert most == 1


# ------------------------------------------------------------------------------------------------ what is refused


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(folder: Path, run: Callable[[], object], kind: type[LoraloomError], message: str) -> None:
    """It raises, with a hint, and nothing in the folder is different."""
    before = tree(folder)
    with pytest.raises(kind, match=message) as error:
        run()
    assert error.value.hint
    assert tree(folder) == before


def test_loras_that_do_not_fit(checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    whole = random_lora("sd1").file_tensors()
    name = next(key for key in whole if key.endswith("attn1_to_q.lora_down.weight"))
    up = name.replace("lora_down", "lora_up")
    layer = name.removesuffix(".lora_down.weight")
    files: dict[str, tuple[Mapping[str, Tensor], str]] = {
        "another family": (random_lora("sdxl").file_tensors(), "do not exist in this model"),
        "another model": ({key.replace("lora_unet_", "lora_unet_x_"): whole[key] for key in (name, up)}, "0 of its 1"),
        "wrong shape": (whole | {name: torch.ones(2, 7)}, r"\(2, 7\)"),
        "no number": (whole | {up: torch.full_like(whole[up], float("nan"))}, f"{layer} .*NaN"),
        "infinite": (whole | {name: torch.full_like(whole[name], float("inf"))}, f"{layer} .*infinite"),
        "half a pair": ({key: value for key, value in whole.items() if key != up}, "no up tensor"),
        "a checkpoint": (toy_tensors("sd1"), "is not a LoRA file"),
        "too strong": ({key: value * 1e20 for key, value in whole.items()}, "beyond the range"),
    }
    for label, (tensors, message) in files.items():
        bad = write_lora("bad.safetensors", tensors)
        good = write_lora("good.safetensors", whole)
        base = shutil.copy(checkpoint("sd1", torch.float16), tmp_path / "base.safetensors")
        loras = [LoraWeight(good), LoraWeight(bad)]
        refused(tmp_path, lambda: merge(base, loras, tmp_path / "out.safetensors"), AdapterError, message)  # noqa: B023
        assert label


def test_requests_that_make_no_sense(checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    base = shutil.copy(checkpoint("sd1"), tmp_path / "base.safetensors")
    path = write_lora("a.safetensors", random_lora("sd1"))
    lora, out = LoraWeight(path), tmp_path / "out.safetensors"
    model = load_model(base, device=CPU)
    save_checkpoint(model, tmp_path / "folder")
    inside = tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors"
    (tmp_path / "file").write_text("x", encoding="utf-8")
    cases: list[tuple[Callable[[], object], type[LoraloomError], str]] = [
        (lambda: merge(base, [], out), AdapterError, "no LoRA"),
        (lambda: merge(base, [lora], base), OutputError, "one of the inputs"),
        (lambda: merge(base, [lora], path), OutputError, "one of the inputs"),
        (lambda: merge(tmp_path / "folder", [lora], inside), OutputError, "one of the inputs"),
        (lambda: merge(base, [lora], tmp_path / "out.bin"), OutputError, r"neither .safetensors nor .ckpt"),
        (lambda: merge(base, [lora], tmp_path / "out"), OutputError, r"neither .safetensors nor .ckpt"),
        (lambda: merge(base, [lora], tmp_path / "none" / "out.ckpt"), OutputError, "does not exist"),
        (lambda: merge(base, [lora], tmp_path / "file" / "out.ckpt"), OutputError, "out.ckpt"),
        (lambda: merge(tmp_path / "none.ckpt", [lora], out), MissingFileError, "none.ckpt"),
        (lambda: merge(base, [LoraWeight(tmp_path / "none.pt")], out), MissingFileError, "none.pt"),
        (lambda: merge(base, [LoraWeight(tmp_path / "none.pt")], base), MissingFileError, "none.pt"),
        (lambda: merge(path, [lora], out), CheckpointError, "is a LoRA, not a checkpoint"),
        (lambda: merge(base, [LoraWeight(path, LoraStrength(0.0, 0.0))], out), AdapterError, "nothing would change"),
    ]
    for run, kind, message in cases:
        refused(tmp_path, run, kind, message)


def test_what_has_no_effect_is_told(checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    both = write_lora("both.safetensors", random_lora("sd1", 1))
    unet = write_lora("unet.safetensors", random_lora("sd1", 2, parts=["unet"]))
    tensors = random_lora("sd1").file_tensors()
    empty = write_lora(
        "empty.safetensors", {key: value if key.endswith("alpha") else value * 0 for key, value in tensors.items()}
    )

    def notices(*loras: LoraWeight) -> list[str]:
        events: list[Event] = []
        merge(checkpoint("sd1"), loras, tmp_path / "out.safetensors", listener=events.append)
        notices = [event for event in events if isinstance(event, Notice)]
        assert all(notice.level == "warning" for notice in notices)
        return [notice.text for notice in notices]

    assert notices(LoraWeight(both), LoraWeight(unet)) == []
    (idle,) = notices(LoraWeight(both), LoraWeight(unet, LoraStrength(0.0, 1.0)))
    assert "unet.safetensors changes nothing" in idle
    (useless,) = notices(LoraWeight(both), LoraWeight(unet, LoraStrength(1.0, 0.5)))
    assert "text encoder weight has no effect" in useless
    (zeros,) = notices(LoraWeight(empty))
    assert "came out unchanged" in zeros
    with pytest.raises(AdapterError, match="nothing would change"):
        merge(checkpoint("sd1"), [LoraWeight(unet, LoraStrength(0.0, 1.0))], tmp_path / "out.safetensors")
    text = write_lora("text.safetensors", random_lora("sd1", 3, parts=["text_encoder"]))
    (useless,) = notices(LoraWeight(text, LoraStrength(0.5, 1.0)))
    assert "text.safetensors holds no U-Net layers: its U-Net weight has no effect" in useless
    assert notices(LoraWeight(text, LoraStrength(0.0, 1.0))) == notices(LoraWeight(text, LoraStrength(0.4, 0.4))) == []
    assert notices(LoraWeight(unet, LoraStrength(0.7, 0.0))) == notices(LoraWeight(unet, LoraStrength(0.7, 0.7))) == []


def test_what_came_out_as_it_was_is_counted(checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    """The text encoder's change is zero, and of the U-Net's layers three are; a value beyond fp16 is refused."""
    lora = random_lora("sd1", 1)
    tensors, layers = lora.file_tensors(), [target.name for target, _ in lora.items()]
    zero = [name for name in layers if not name.startswith("lora_unet")]
    zero += [name for name in layers if name.startswith("lora_unet")][:3]
    cut = {
        key: value * 0 if key.split(".")[0] in zero and "lora_up" in key else value for key, value in tensors.items()
    }
    heard: list[Event] = []
    path = write_lora("cut.safetensors", cut)
    report = merge(checkpoint("sd1"), [LoraWeight(path)], tmp_path / "out.safetensors", listener=heard.append)
    (notice,) = (event for event in heard if isinstance(event, Notice))
    assert notice.text.startswith(f"{len(zero)} of {len(layers)} tensors came out unchanged: ")
    assert report.changed == len(layers) - len(zero)
    output = tmp_path / "no.safetensors"
    with pytest.raises(AdapterError, match="would hold values beyond the range of float16"):
        merge(checkpoint("sd1"), [LoraWeight(path, LoraStrength(1e7, 1.0))], output, precision="fp16")
    assert not output.exists()


# ------------------------------------------------------------------------------------------------ LORA:te:unet


@pytest.mark.parametrize(
    ("text", "path", "text_encoder", "unet"),
    [
        ("a.pt", "a.pt", 1.0, 1.0),
        ("a.pt:0.8", "a.pt", 0.8, 0.8),
        ("a.pt:0.5:0.8", "a.pt", 0.5, 0.8),
        ("a.pt:-1:.25", "a.pt", -1.0, 0.25),
        (r"C:\loras\a.pt", r"C:\loras\a.pt", 1.0, 1.0),
        (r"C:\loras\a.pt:0.5", r"C:\loras\a.pt", 0.5, 0.5),
        ("1:2", "1", 2.0, 2.0),
        ("has:colon.pt:0.5", "has:colon.pt", 0.5, 0.5),
        ("odd:0.5", "odd:0.5", 1.0, 1.0),
    ],
)
def test_weights_of_the_command_line(
    text: str, path: str, text_encoder: float, unet: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd:0.5").write_text("a file of this very name", encoding="utf-8")
    parsed = parse_lora_weight(text)
    assert (parsed.path, parsed.strength.text_encoder, parsed.strength.unet) == (Path(path), text_encoder, unet)


@pytest.mark.parametrize("text", ["", ":0.5", "a.pt:nan", "a.pt:inf:1", "a.pt:much", "a.pt:0.5:0.5:0.5", "a.pt:1,5"])
def test_weights_that_are_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_text("x", encoding="utf-8")
    with pytest.raises(SettingsError, match="is not LORA:weight"):
        parse_lora_weight(text)


def test_nan_in_the_checkpoint_is_an_error_where_it_is_changed_and_told_where_it_is_not(
    write_lora: MakeFile, tmp_path: Path
) -> None:
    layer = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    bare = "model.diffusion_model.out.2.weight"
    lora, output = write_lora("lora.safetensors", random_lora("sd1", 1)), tmp_path / "merged.safetensors"
    for name, value in ((layer, "nan"), (bare, "inf")):
        tensors = {key: tensor.clone() for key, tensor in toy_tensors("sd1").items()}
        tensors[name].view(-1)[3] = float(value)
        write_tensors(tmp_path / f"{value}.safetensors", tensors)
    with pytest.raises(CheckpointError, match=rf"nan\.safetensors: the tensor {re.escape(layer)} holds 1 of"):
        merge(tmp_path / "nan.safetensors", [LoraWeight(lora)], output)
    assert not output.exists()
    for precision in (None, "fp16"):
        heard: list[Event] = []
        merge(tmp_path / "inf.safetensors", [LoraWeight(lora)], output, precision=precision, listener=heard.append)
        told = [event.text for event in heard if isinstance(event, Notice) and event.level == "warning"]
        assert len(told) == 1 and bare in told[0] and "1 tensor that this merge leaves alone" in told[0]


def test_a_door_without_text_says_the_same_as_one_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.touch()
    assert read_lora_weights([f"{path}:0.3:0.7"], ["MID=0.4"]) == [
        weighted_lora(path, text_encoder=0.3, unet=0.7, block_weights="MID=0.4")
    ]
    assert read_lora_weights([str(path)]) == [weighted_lora(path)]
    texts = [str(path), f"{path}:0.3"]
    assert read_checkpoint_weights(texts, adds_difference=False) == [(path, 0.5), (path, 0.3)]
    assert read_checkpoint_weights(texts, adds_difference=True) == [(path, 1.0), (path, 0.3)]
