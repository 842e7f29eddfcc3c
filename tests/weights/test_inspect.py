"""What a file is, told without reading its tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from loraloom.adapters.attach import create_adapters
from loraloom.adapters.settings import AdapterSettings
from loraloom.adapters.strength import LoraStrength
from loraloom.errors import CheckpointError, FileFormatError, LoraloomError, MissingFileError
from loraloom.formats.adapter_file import read_adapter_file, write_adapter_file
from loraloom.formats.adapter_kinds import ADAPTERS, trained_kinds
from loraloom.formats.image_info import save_image
from loraloom.formats.tensors import TensorFile, write_tensors
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import load_model
from loraloom.models.saving import save_checkpoint
from loraloom.weights.inspect import FileReport, inspect_file
from loraloom.weights.merge import LoraWeight, merge
from random_loras import random_lora, targets_of
from toys import toy_tensors

MakeFile = Callable[..., Path]
CPU = torch.device("cpu")


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of tensors that were taken from files."""
    taken: list[str] = []
    load = TensorFile.__getitem__

    def noted(self: TensorFile, name: str) -> torch.Tensor:
        taken.append(name)
        return load(self, name)

    monkeypatch.setattr(TensorFile, "__getitem__", noted)
    return taken


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_checkpoints(family: str, suffix: str, checkpoint: MakeFile, no_data: list[str]) -> None:
    report = inspect_file(checkpoint(family, torch.float16, suffix))
    title = FAMILIES.load(family).title
    assert (report.kind, report.title) == ("checkpoint", f"a text-to-image checkpoint, {title}")
    facts = report.facts
    assert facts["family"] == title
    assert facts["container"].startswith("safetensors" if suffix == ".safetensors" else "torch zip")
    for part in ("U-Net", "VAE", "text encoder", *(["text encoder 2"] if family == "sdxl" else [])):
        assert facts[part].endswith("float16") or "float16" in facts[part]
    unet = sum(name.startswith("model.diffusion_model.") for name in toy_tensors(family))
    assert facts["U-Net"].startswith(f"{unet} tensors")
    assert facts["title"] == "Toy"
    assert facts.get("step") == ("1000" if suffix == ".ckpt" else None)
    assert no_data == []


def prediction(path: Path) -> str:
    return inspect_file(path).facts["prediction"]


def test_prediction_is_told_with_its_source(checkpoint: MakeFile, tmp_path: Path, no_data: list[str]) -> None:
    assert prediction(checkpoint("sd1")).startswith("epsilon (as usual")
    assert prediction(checkpoint("sd2")).startswith("not in the file")
    with_yaml = shutil.copy(checkpoint("sd2"), tmp_path / "model.safetensors")
    with_yaml.with_suffix(".yaml").write_text('parameterization: "v"', encoding="utf-8")
    assert prediction(with_yaml) == "v (from the .yaml beside the file)"
    said = tmp_path / "said.safetensors"
    write_tensors(said, toy_tensors("sd2"), metadata={"modelspec.prediction_type": "epsilon"})
    no_data.clear()
    assert prediction(said) == "epsilon (from the file's metadata)"
    assert no_data == []
    marked = tmp_path / "marked.safetensors"
    write_tensors(marked, toy_tensors("sdxl") | {"v_pred": torch.ones(1), "ztsnr": torch.ones(1)})
    assert prediction(marked) == "v (from the marker tensor v_pred), zero terminal SNR"


def test_inpainting_missing_vae_and_extra_tensors(tmp_path: Path) -> None:
    first = "model.diffusion_model.input_blocks.0.0.weight"
    tensors = {name: t for name, t in toy_tensors("sd1").items() if not name.startswith("first_stage_model.")}
    tensors[first] = torch.cat([tensors[first], tensors[first], tensors[first][:, :1]], dim=1)
    tensors["model_ema.decay"] = torch.tensor(0.5)
    write_tensors(tmp_path / "a.ckpt", tensors)
    report = inspect_file(tmp_path / "a.ckpt")
    assert report.title == "an inpainting checkpoint, Stable Diffusion 1"
    assert report.facts["VAE"] == "missing"
    assert report.facts["EMA weights"].startswith("1 tensor,")
    assert report.facts["other"]


def test_a_diffusers_folder(checkpoint: MakeFile, tmp_path: Path) -> None:
    save_checkpoint(load_model(checkpoint("sd2"), device=CPU, prediction="v"), tmp_path / "folder")
    report = inspect_file(tmp_path / "folder")
    assert report.facts["container"].startswith("Diffusers folder")
    assert report.facts["family"] == "Stable Diffusion 2"
    assert report.facts["prediction"].startswith("v (from")


def test_a_merged_checkpoint_tells_of_its_loras(checkpoint: MakeFile, write_lora: MakeFile, tmp_path: Path) -> None:
    lora = LoraWeight(write_lora("a.pt", random_lora("sd1")), LoraStrength(0.8, 0.8))
    merge(checkpoint("sd1"), [lora, lora], tmp_path / "out.ckpt")
    facts = inspect_file(tmp_path / "out.ckpt").facts
    assert facts["LoRAs in it"] == "2"
    assert facts["merged from"] == "sd1-float32.safetensors, a.pt:0.8:0.8, a.pt:0.8:0.8"


def test_the_hash_of_a_checkpoint_only_when_asked_for(checkpoint: MakeFile) -> None:
    path = checkpoint("sd1")
    assert "hash" not in inspect_file(path).facts
    assert inspect_file(path, hashes=True).facts["hash"].split()[0] == sha256(path.read_bytes()).hexdigest()[:10]


# ------------------------------------------------------------------------------------------------ LoRAs


def test_a_lora_with_its_recipe(tmp_path: Path, no_data: list[str]) -> None:
    lora = random_lora("sdxl", conv=False)
    metadata = {
        "modelspec.title": "Drawings",
        "modelspec.trigger_phrase": "openmoji",
        "ss_steps": "240",
        "ss_learning_rate": "0.001",
        "ss_text_encoder_lr": "None",
    }
    path = tmp_path / "a.safetensors"
    write_adapter_file(path, lora.file_tensors(), metadata=metadata, dtype=torch.float16)
    no_data.clear()
    report = inspect_file(path)
    facts = report.facts
    assert (report.kind, report.title) == ("LoRA", "a LoRA for SDXL")
    assert facts["dialect"].startswith("kohya")
    assert (facts["rank"], facts["alpha"]) == ("2", "1.5")
    unet, te2 = (sum(target.part == part for target, _ in lora.items()) for part in ("unet", "text_encoder_2"))
    assert f"U-Net {unet}, text encoder 2 {te2}, text encoder {len(lora) - unet - te2}" in facts["layers"]
    assert (facts["title"], facts["trigger words"]) == ("Drawings", "openmoji")
    assert (facts["steps"], facts["learning rate"]) == ("240", "0.001")
    assert "text encoder rate" not in facts
    assert "float16" in facts["in all"]
    assert facts["hash"].startswith(report.metadata["sshs_model_hash"][:12] + " (as the file says")
    assert all(name.endswith(".alpha") for name in no_data)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_flipped_bit_is_told_with_the_hashes(wrapped: bool, tmp_path: Path) -> None:
    """``--hash`` has read the whole file, so it knows what the checksums of its zip say."""
    path, marks = tmp_path / "x.pt", torch.full((3, 5), 0.3)
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{layer}.lora_down.weight": marks, f"{layer}.lora_up.weight": torch.ones(7, 3)}
    torch.save({"state_dict": tensors} if wrapped else tensors, path)
    assert "damaged" not in inspect_file(path, hashes=True).facts
    raw = bytearray(path.read_bytes())
    raw[raw.index(marks.numpy().tobytes()) + 7] ^= 4
    path.write_bytes(raw)
    report = inspect_file(path, hashes=True)
    assert report.kind == "LoRA"
    assert "is damaged (it holds the tensor 'lora_unet_mid_block" in report.facts["damaged"]
    assert "hash" in report.facts
    assert "damaged" not in inspect_file(path).facts


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors"])
def test_a_folder_of_peft_names_the_file_in_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    for read in (inspect_file, read_adapter_file):
        with pytest.raises(LoraloomError, match="is a folder") as caught:
            read(tmp_path)
        assert caught.value.hint.endswith(str(tmp_path / name))


def test_hashes_are_compared_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_adapter_file(path, random_lora("sd1").file_tensors(), metadata={}, dtype=torch.float32)
    raw = path.read_bytes()
    content = sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
    facts = inspect_file(path, hashes=True).facts
    assert facts["hash"] == f"{content[:12]} (AutoV3; agrees with the metadata)"
    assert facts["file hash"].split()[0] == sha256(raw).hexdigest()[:10]

    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    facts = inspect_file(path, hashes=True).facts
    assert f"the metadata says {content[:12]}: damaged or edited" in facts["hash"]
    write_tensors(tmp_path / "b.pt", random_lora("sd1").file_tensors())
    digest = sha256((tmp_path / "b.pt").read_bytes()).hexdigest()
    assert inspect_file(tmp_path / "b.pt", hashes=True).facts["hash"] == f"{digest[:12]} (AutoV3)"


def lora_of(tmp_path: Path, *layers: tuple[str, tuple[int, ...], tuple[int, ...]], **metadata: str) -> FileReport:
    tensors = {}
    for name, down, up in layers:
        tensors |= {f"{name}.lora_down.weight": torch.ones(down), f"{name}.lora_up.weight": torch.ones(up)}
    write_tensors(tmp_path / "x.safetensors", tensors, metadata=metadata)
    return inspect_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("layer", "width", "family"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768, "SD 1.x"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 1024, "SD 2.x"),
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 2048, "SDXL"),
        ("lora_unet_down_blocks_2_attentions_0_transformer_blocks_1_attn1_to_q", 640, "SDXL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", 640, "SDXL"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, "SD 1.x"),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 1024, "SD 2.x"),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 1280, "SDXL"),
        ("lora_unet_mid_block_attentions_0_proj_in", 1280, "an unknown model"),
    ],
)
def test_the_family_of_a_lora(layer: str, width: int, family: str, tmp_path: Path) -> None:
    report = lora_of(tmp_path, (layer, (4, width), (320, 4)))
    assert report.facts["made for"] == family
    assert report.facts["alpha"] == "4 (not in the file: equal to the rank)"


def test_ranks_that_differ_and_metadata_as_last_resort(tmp_path: Path) -> None:
    layers = [(f"lora_unet_mid_block_{index}", (rank, 8), (8, rank)) for index, rank in enumerate((4, 4, 2))]
    report = lora_of(tmp_path, *layers, ss_base_model_version="sd_v2_v")
    assert report.facts["rank"] == "4 (2 layers), 2 (1 layer)"
    assert report.title == "a LoRA for SD 2.x"


def test_loras_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    name = "lora_unet_a"
    pair = {f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.lora_up.weight": torch.ones(4, 2)}
    cases = {
        "OFT": pair | {f"{name}.oft_blocks": torch.ones(4, 2)},
        "do not make an adapter": pair | {f"{name}.hada_w1_a": torch.ones(4, 2)},
        "belong to no LoRA layer": pair | {"something": torch.ones(1)},
    }
    for message, tensors in cases.items():
        write_tensors(path, tensors)
        assert message in inspect_file(path).facts["cannot be used"]
    odd = pair | {f"{name}.alpha": torch.ones(3), "lora_unet_b.lora_down.weight": torch.tensor(1.0)}
    write_tensors(path, odd)
    assert inspect_file(path).facts["alpha"] == "damaged"


def test_peft_names(tmp_path: Path) -> None:
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file({f"{key}.lora_A.weight": torch.ones(4, 768), f"{key}.lora_B.weight": torch.ones(320, 4)}, tmp_path / "p")
    report = inspect_file(tmp_path / "p")
    assert (report.facts["dialect"], report.facts["made for"]) == ("diffusers with PEFT", "SD 1.x")


# ------------------------------------------------------------------------------------------------ other files


def test_other_models_are_named(tmp_path: Path) -> None:
    toy = toy_tensors("sd1")
    vae = {name: tensor for name, tensor in toy.items() if name.startswith("first_stage_model.")}
    unet = {name: tensor for name, tensor in toy.items() if name.startswith("model.diffusion_model.")}
    cases = {
        "is a VAE only": vae,
        "no text encoder": unet,
        "Flux": {"double_blocks.0.x": torch.ones(1)},
        "textual inversion": {"emb_params": torch.ones(1)},
        "not a known kind": {"weight": torch.ones(1)},
    }
    for words, tensors in cases.items():
        write_tensors(tmp_path / "x.safetensors", tensors)
        report = inspect_file(tmp_path / "x.safetensors")
        assert report.kind == "other"
        assert words in report.title
        assert report.facts["in all"].startswith(f"{len(tensors)} tensor")


def test_what_cannot_be_read(checkpoint: MakeFile, tmp_path: Path) -> None:
    (tmp_path / "page.safetensors").write_text("<!DOCTYPE html>", encoding="utf-8")
    (tmp_path / "cut.safetensors").write_bytes(checkpoint("sd1").read_bytes()[:-100])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    for name in ("page.safetensors", "cut.safetensors", "empty.ckpt"):
        with pytest.raises(FileFormatError):
            inspect_file(tmp_path / name)
    with pytest.raises(MissingFileError):
        inspect_file(tmp_path / "absent")
    with pytest.raises(MissingFileError, match="not a Diffusers folder"):
        inspect_file(tmp_path)
    (tmp_path / "other" / "transformer").mkdir(parents=True)
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="FluxPipeline"):
        inspect_file(tmp_path / "other")


def test_the_layers_of_a_lora(write_lora: MakeFile, tmp_path: Path) -> None:
    """Norms and effective ranks by closed form; what is dead, broken or far too strong is named."""
    tensors = {}
    names = [f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_{name}" for name in "qkv"]
    for name in names:
        tensors[f"{name}.lora_down.weight"] = torch.eye(2, 8)
        tensors[f"{name}.lora_up.weight"] = torch.eye(8, 2) * 3
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    other = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors |= {f"{other}.lora_down.weight": torch.eye(2, 8), f"{other}.lora_up.weight": torch.zeros(8, 2)}
    strong = "lora_unet_mid_block_attentions_0_proj_in"
    tensors |= {f"{strong}.lora_down.weight": torch.eye(1, 8) * 500, f"{strong}.lora_up.weight": torch.eye(8, 1)}
    path = write_lora("x.safetensors", tensors, {"ss_tag_frequency": '{"a": {"cat": 3, "dog": 5}}'})
    report = inspect_file(path, layers=True)
    assert report.anatomy is not None and report.facts["tags"] == "dog (5), cat (3)"
    blocks = {block.block: block for block in report.anatomy.blocks}
    assert list(blocks) == ["TE", "IN01", "MID"]
    # Each of the three is 0.5 * 3 * a diagonal of two ones.
    assert blocks["IN01"].norm == pytest.approx((3 * 2 * 1.5**2) ** 0.5)
    assert blocks["IN01"].effective_rank == pytest.approx(2)
    assert blocks["MID"].share == pytest.approx(500**2 / (500**2 + 3 * 2 * 1.5**2))
    assert report.facts["dead"].startswith("1 layer that change nothing: lora_te")
    assert strong in report.facts["exploded"] and "not finite" not in report.facts
    tensors[f"{strong}.lora_up.weight"][0] = float("nan")
    broken = inspect_file(write_lora("y.safetensors", tensors), layers=True)
    assert strong in broken.facts["not finite"]


@pytest.mark.parametrize(
    "kind", [*(kind for kind in trained_kinds() if not ADAPTERS.load(kind).layout.is_pair), "lokr_full"]
)
def test_norms_of_other_kinds(kind: str, tmp_path: Path) -> None:
    """Against the change that the adapter itself gives."""
    settings: dict[str, Any] = {"kind": kind.removesuffix("_full"), "rank": 2, "alpha": 1.5}
    if kind == "lokr_full":
        settings["lokr_full_matrix"] = True
    target = next(t for t in targets_of("sd1") if t.name.endswith("attn1_to_q"))
    weight = torch.randn(target.shape)
    adapters = create_adapters(AdapterSettings(**settings), [target], seed=1, weight=lambda t: weight)
    random = torch.Generator().manual_seed(2)
    for parameter in adapters.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    write_tensors(tmp_path / "x.safetensors", {key: t.detach() for key, t in adapters.file_tensors().items()})
    anatomy = inspect_file(tmp_path / "x.safetensors", layers=True).anatomy
    assert anatomy is not None
    adapter = adapters.adapter(target.name)
    if adapter.needs_base:  # measured without the checkpoint
        expected = float(adapter.norm())
    else:
        expected = float(adapter.delta(weight).detach().norm())
    assert anatomy.layers[0].norm == pytest.approx(expected, rel=1e-4)


def test_an_image_tells_how_it_was_made(tmp_path: Path) -> None:
    save_image(
        Image.new("RGB", (8, 8)), tmp_path / "x.png", "a fox\nNegative prompt: blur\nSteps: 5, Seed: 3, Size: 8x8"
    )
    report = inspect_file(tmp_path / "x.png")
    assert report.kind == "image"
    assert dict(report.facts) == {
        "prompt": "a fox", "negative prompt": "blur", "Steps": "5", "Seed": "3", "Size": "8x8",
    }  # fmt: skip
    Image.new("RGB", (8, 8)).save(tmp_path / "y.webp")
    assert inspect_file(tmp_path / "y.webp").title == "an image without generation parameters"
