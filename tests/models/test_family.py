"""The contract of every registered family, over the registry; and its layouts against the real files."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch

from layouts import LAYOUTS, read_layout
from loraloom.formats.tensors import TensorInfo
from loraloom.models.family import FAMILIES, Family, recognise
from loraloom.models.layouts import noise_schedule_layout

FAMILY_OF_LAYOUT = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}


def infos_of_layout(layout: str) -> dict[str, TensorInfo]:
    return {key: TensorInfo(dtype, shape) for key, (dtype, shape) in read_layout(layout).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_files_are_recognised(layout: str) -> None:
    family = recognise(infos_of_layout(layout))
    assert family is not None
    assert family.name == FAMILY_OF_LAYOUT[layout]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_layers_of_real_files(layout: str) -> None:
    """kohya's module counts: 72 + 192, 138 + 192, 264 + 722 by default."""
    infos = infos_of_layout(layout)
    family = recognise(infos)
    assert family is not None
    default = [target for target in family.adapter_targets(infos) if not target.extended]
    unet = sum(target.part == "unet" for target in default)
    assert (len(default) - unet, unet) == {"sd15": (72, 192), "sd21": (138, 192), "sdxl": (264, 722)}[layout]
    assert len({target.name for target in default}) == len(default)


def test_layout_functions_give_the_real_files() -> None:
    """What a family says of its full-size checkpoint, by the functions that make toys, is what is in the real file."""
    tables = {name: tuple(table.shape) for name, table in noise_schedule_layout().items()}
    for layout, name in FAMILY_OF_LAYOUT.items():
        made = FAMILIES.load(name)().full_size() | ({} if name == "sdxl" else tables)
        assert made == {key: shape for key, (_, shape) in read_layout(layout).items()}


def test_toy_is_recognised_as_its_own_family_only(family: Family) -> None:
    toy = family.toy()
    infos = {name: TensorInfo(tensor.dtype, tuple(tensor.shape)) for name, tensor in toy.items()}
    assert [name for name in FAMILIES if FAMILIES.load(name)().recognise(infos)] == [family.name]


@pytest.mark.parametrize("seed", range(12))
def test_the_layers_of_a_damaged_checkpoint_are_those_that_are_whole(family: Family, seed: int) -> None:
    """Tensors that are gone or of another shape: their layers are no targets, and nothing fails over them."""
    chance = random.Random(seed)
    share = (0.1, 0.5, 0.9, 0.99)[seed % 4]
    infos = {name: TensorInfo(torch.float16, shape) for name, shape in family.full_size().items()}
    kept = {name: info for name, info in infos.items() if chance.random() < share}
    for name in chance.sample(sorted(kept), 40):
        kept[name] = TensorInfo(torch.float16, chance.choice([(), (3,), (4, 4), (2, 2, 1, 1), (0,), (1, 2, 3)]))
    found = family.file_targets(kept)
    assert all(target.tensor in kept for target in found)
    whole = {t.name for t in family.file_targets(infos) if kept.get(t.tensor) == infos[t.tensor]}
    # Names are counted from what is there, so a file with whole blocks missing has others.
    assert share < 0.9 or len(whole & {target.name for target in found}) > 0.6 * len(whole)


def test_a_checkpoint_without_a_layer_in_its_text_encoder(family: Family) -> None:
    infos = {name: TensorInfo(torch.float16, shape) for name, shape in family.full_size().items()}
    stacks = ("encoder.layers.", "resblocks.")
    kept = {name: info for name, info in infos.items() if not any(stack in name for stack in stacks)}
    assert [part.layers(kept) for part in family.text_parts] == [0] * len(family.text_parts)
    assert not [target for target in family.adapter_targets(kept) if target.part != "unet"]


def test_toy_is_a_function_of_the_seed(family: Family) -> None:
    first, again, other = family.toy(3), family.toy(3), family.toy(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    weights = [name for name in first if name.startswith(family.unet_prefix)]
    assert all(not torch.equal(first[name], other[name]) for name in weights)


def test_toy_has_the_key_names_of_the_real_file(family: Family) -> None:
    """Every key of a toy is a key of the real file: toys are only narrower and shallower."""
    layout = next(layout for layout, name in FAMILY_OF_LAYOUT.items() if name == family.name)
    real, toy = read_layout(layout), family.toy()
    assert {name for name in toy if name not in real and "skip_connection" not in name} == set()
    assert {toy[name].dtype == real[name][0] for name in toy if name in real} == {True}


def test_noise_schedule_tables_follow_the_closed_form() -> None:
    tables = noise_schedule_layout()
    assert tables["betas"][0].item() == pytest.approx(0.00085)
    assert tables["betas"][-1].item() == pytest.approx(0.012)
    alphas = torch.cumprod(1 - tables["betas"].double(), 0)
    torch.testing.assert_close(tables["alphas_cumprod"].double(), alphas, rtol=1e-4, atol=1e-6)
    first, second = tables["posterior_mean_coef1"].double(), tables["posterior_mean_coef2"].double()
    # The posterior mean of a noiseless x_t = sqrt(alphas) x_0 is sqrt(alphas of the step before) x_0.
    got = first + second * alphas.sqrt()
    torch.testing.assert_close(got, tables["alphas_cumprod_prev"].double().sqrt(), rtol=1e-3, atol=1e-3)


def test_metadata_of_families() -> None:
    said = {
        name: (f.base_model_version_for("epsilon"), f.base_model_version_for("v"), f.modelspec_architecture_for("v"))
        for name in FAMILIES
        for f in [FAMILIES.load(name)()]
    }
    assert said == {
        "sd1": ("sd_v1", "sd_v1_v", "stable-diffusion-v1"),
        "sd2": ("sd_v2", "sd_v2_v", "stable-diffusion-v2-768-v"),
        "sdxl": ("sdxl_base_v1-0", "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
    }


def test_the_table_of_families_imports_no_torch() -> None:
    code = "import sys, loraloom.models.family as f; list(f.FAMILIES); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("end", ["input_blocks.0.0.weight", "token_embedding.weight"])
def test_a_name_alone_makes_no_checkpoint(layout: str, end: str) -> None:
    """A file of strangers may call a single number by the name of a weight."""
    infos = infos_of_layout(layout)
    named = [key for key in infos if key.endswith(end)]
    assert named
    for key in named:
        infos[key] = TensorInfo(torch.float32, ())
    assert recognise(infos) is None
