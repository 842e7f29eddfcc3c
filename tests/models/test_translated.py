"""Single files in which parts carry other programs' names: the same model, whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraloom.errors import CheckpointError, FileFormatError
from loraloom.formats.tensors import write_tensors
from loraloom.models.checkpoint import open_checkpoint
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import load_model
from loraloom.models.names import pairs_from_checkpoint
from loraloom.models.parts import part_problems
from loraloom.models.saving import save_checkpoint
from loraloom.models.vae_file import read_vae
from loraloom.weights.identify import identify
from loraloom.weights.inspect import inspect_file
from toys import toy_tensors

CPU = torch.device("cpu")
UNET, VAE = "model.diffusion_model.", "first_stage_model."
Tensors = dict[str, Tensor]


def in_diffusers_names(tensors: Tensors, kind: str, own: str, other: str) -> Tensors:
    """The tensors with those of one part under diffusers' names behind another prefix."""
    part = {name.removeprefix(own): tensor for name, tensor in tensors.items() if name.startswith(own)}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(own)}
    pairs = pairs_from_checkpoint(kind, {name: tuple(tensor.shape) for name, tensor in part.items()})  # type: ignore[arg-type]
    return rest | {other + pair.diffusers: pair.to_diffusers(part[pair.checkpoint]).contiguous() for pair in pairs}


def with_attention(query: str, key: str, value: str, out: str, norm: str, *, flat: bool) -> Callable[[str], Tensors]:
    """A checkpoint whose VAE attention has these names, as matrices or as 1x1 convolutions."""
    names = {"q": query, "k": key, "v": value, "proj_out": out, "norm": norm}

    def make(family: str) -> Tensors:
        found = {}
        for name, tensor in toy_tensors(family).items():
            start, middle, rest = name.partition(".mid.attn_1.")
            if name.startswith(VAE) and middle:
                layer, _, end = rest.rpartition(".")
                tensor = tensor.flatten(1) if flat and tensor.ndim == 4 else tensor
                name = f"{start}{middle}{names[layer]}.{end}"
            found[name] = tensor
        return found

    return make


def with_text_encoder(other: str, number: int = 0) -> Callable[[str], Tensors]:
    def make(family: str) -> Tensors:
        part = FAMILIES.load(family)().text_parts[number]
        return in_diffusers_names(toy_tensors(family), part.encoder, part.prefixes[0], other)

    return make


def all_of_diffusers(family: str) -> Tensors:
    tensors = in_diffusers_names(toy_tensors(family), "unet", UNET, "unet.")
    tensors = in_diffusers_names(tensors, "vae", VAE, "vae.")
    for part in FAMILIES.load(family)().text_parts:
        tensors = in_diffusers_names(tensors, part.encoder, part.prefixes[0], f"{part.part}.")
    return tensors


TO_Q = ("to_q", "to_k", "to_v", "to_out.0", "norm")
CASES: dict[str, tuple[str, Callable[[str], Tensors]]] = {
    "to_q, matrices": ("sd1", with_attention(*TO_Q, flat=True)),
    "to_q, convolutions": ("sdxl", with_attention(*TO_Q, flat=False)),
    "to_to_q": ("sd1", with_attention("to_to_q", "to_to_k", "to_to_v", "to_out.0", "group_norm", flat=True)),
    "query": ("sd2", with_attention("query", "key", "value", "proj_attn", "group_norm", flat=True)),
    "to_out": ("sd1", with_attention("to_q", "to_k", "to_v", "to_out", "norm", flat=False)),
    "whole VAE": ("sdxl", lambda family: in_diffusers_names(toy_tensors(family), "vae", VAE, VAE)),
    "U-Net": ("sd1", lambda family: in_diffusers_names(toy_tensors(family), "unet", UNET, UNET)),
    "U-Net of SDXL": ("sdxl", lambda family: in_diffusers_names(toy_tensors(family), "unet", UNET, UNET)),
    "text encoder of SD 2": ("sd2", with_text_encoder("cond_stage_model.transformer.")),
    "second text encoder": ("sdxl", with_text_encoder("conditioner.embedders.1.transformer.", 1)),
    "text encoder elsewhere": ("sd1", with_text_encoder("text_encoders.clip_l.transformer.")),
    "all of diffusers, SD 1": ("sd1", all_of_diffusers),
    "all of diffusers, SD 2": ("sd2", all_of_diffusers),
    "all of diffusers, SDXL": ("sdxl", all_of_diffusers),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_same_model_under_other_names(case: str, tmp_path: Path) -> None:
    family, make = CASES[case]
    write_tensors(tmp_path / "other.safetensors", make(family))
    write_tensors(tmp_path / "own.ckpt", toy_tensors(family))
    other, own = (load_model(tmp_path / name, device=CPU) for name in ("other.safetensors", "own.ckpt"))
    assert other.family.name == family
    assert other.checkpoint.translated
    assert {target.name for target in other.targets} == {target.name for target in own.targets}
    for part, module in own.parts.items():
        expected = module.state_dict()
        found = other.parts[part].state_dict()
        for name in {**expected, **found}:
            # What diffusers does not keep is never read (SD 2's last layer of text).
            if name in found and name in expected:
                assert torch.equal(found[name].flatten(), expected[name].flatten()), name
        assert len(found) > 0.6 * len(expected)
    assert identify(tmp_path / "other.safetensors").family == family
    report = inspect_file(tmp_path / "other.safetensors")
    assert "cannot be used" not in report.facts
    assert "under names of other programs" in report.facts["other names"]


def test_a_file_with_its_own_names_stays_as_it_is(tmp_path: Path) -> None:
    for family in FAMILIES:
        write_tensors(tmp_path / "own.safetensors", toy_tensors(family))
        checkpoint = open_checkpoint(tmp_path / "own.safetensors")
        assert list(checkpoint.translated) == []
        assert set(checkpoint) == set(toy_tensors(family))
        assert part_problems(checkpoint) == []
        assert "other names" not in inspect_file(tmp_path / "own.safetensors").facts


def test_matrices_under_their_own_names_stay_matrices(tmp_path: Path) -> None:
    """Files have them; other programs' names are what is mended, not the form."""
    write_tensors(tmp_path / "a.safetensors", with_attention("q", "k", "v", "proj_out", "norm", flat=True)("sd1"))
    checkpoint = open_checkpoint(tmp_path / "a.safetensors")
    assert len(checkpoint.info(f"{VAE}decoder.mid.attn_1.q.weight").shape) == 2
    assert list(checkpoint.translated) == []


def test_inspect_and_loading_say_the_same_of_what_is_missing(tmp_path: Path) -> None:
    gone = f"{VAE}decoder.mid.attn_1.to_k.weight"
    tensors = with_attention(*TO_Q, flat=True)("sd1")
    del tensors[gone]
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    write_tensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "a.safetensors", device=CPU)
    told = inspect_file(tmp_path / "a.safetensors").facts["cannot be used"]
    first, second = told.split("; ")
    assert first in caught.value.problem
    assert "first_stage_model.decoder.mid.attn_1.k" in first
    assert "final_layer_norm.bias" in second


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    tensors = toy_tensors("sd1")
    twice = {f"{VAE}encoder.mid.attn_1.to_q.weight": tensors[f"{VAE}encoder.mid.attn_1.q.weight"]}
    write_tensors(tmp_path / "a.safetensors", tensors | twice)
    with pytest.raises(FileFormatError, match=r"encoder\.mid\.attn_1\.q\.weight are missing, or there twice"):
        open_checkpoint(tmp_path / "a.safetensors")


def test_a_vae_of_its_own_with_such_names(tmp_path: Path) -> None:
    made = with_attention(*TO_Q, flat=True)("sd1")
    vae = {name.removeprefix(VAE): tensor for name, tensor in made.items() if name.startswith(VAE)}
    write_tensors(tmp_path / "vae.safetensors", vae)
    found = read_vae(tmp_path / "vae.safetensors").state_dict()
    assert all(torch.equal(found[name], toy_tensors("sd1")[VAE + name]) for name in found)


def test_a_merge_writes_the_checkpoints_own_names(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", with_attention(*TO_Q, flat=True)("sd1"))
    source = open_checkpoint(tmp_path / "a.safetensors")
    notice = source.translation_notice()
    assert notice is not None
    assert "16 tensors have names of other programs" in notice.text
    save_checkpoint(source, tmp_path / "b.safetensors")
    written = open_checkpoint(tmp_path / "b.safetensors")
    assert set(written) == set(toy_tensors("sd1"))
    assert all(torch.equal(written[name], tensor) for name, tensor in toy_tensors("sd1").items())


@pytest.mark.parametrize("ends", [("lora_A.weight", "lora_B.weight"), ("lora.down.weight", "lora.up.weight")])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_lora_of_all_attention_is_no_checkpoint(family: str, ends: tuple[str, str], tmp_path: Path) -> None:
    """Its layers have the names of a U-Net in diffusers: every command calls it a LoRA."""
    whole = all_of_diffusers(family)
    layers = {name.removesuffix(".weight"): whole[name] for name in whole if ".attn" in name and whole[name].ndim == 2}
    down, up = ends
    tensors = {"unet.conv_in.bias": whole["unet.conv_in.bias"]} if up == "lora_B.weight" else {}
    tensors |= {f"{name}.{down}": tensor.new_ones(3, tensor.shape[1]) for name, tensor in layers.items()}
    tensors |= {f"{name}.{up}": tensor.new_ones(tensor.shape[0], 3) for name, tensor in layers.items()}
    write_tensors(tmp_path / "a.safetensors", tensors)
    assert inspect_file(tmp_path / "a.safetensors").kind == "LoRA"
    assert identify(tmp_path / "a.safetensors").kind == "lora"
    with pytest.raises(CheckpointError, match="LoRA"):
        open_checkpoint(tmp_path / "a.safetensors")
