"""Every dialect of LoRA files against the library that defines it: read, used, merged, converted.

cloneofsimo's files are made after their description: the modules of a real diffusers U-Net in the order of diffusers
0.11, whose transformer blocks had the feed-forward layer between the attentions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn

from loraloom.adapters.attach import attach, read_adapters
from loraloom.adapters.strength import LoraStrength
from loraloom.cli.words import worded
from loraloom.errors import AdapterError
from loraloom.formats.adapter_file import read_adapter_file
from loraloom.formats.dialects import KOHYA, PEFT
from loraloom.formats.embedding_file import read_embedding
from loraloom.formats.lora_keys import lora_keys
from loraloom.formats.tensors import TensorInfo, open_tensors, write_tensors
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.models.saving import save_checkpoint
from loraloom.weights.combine import combine_loras
from loraloom.weights.convert import convert_lora
from loraloom.weights.inspect import inspect_file
from loraloom.weights.merge import LoraWeight, merge
from loraloom.weights.resize import resize_lora
from random_loras import random_lora
from toys import toy_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
Deltas = dict[str, Tensor]
"""Change of a layer's weight by its path in diffusers: ``unet.down_blocks.0...``."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = tmp_path_factory.mktemp("sd1") / "toy.safetensors"
    write_tensors(path, toy_tensors("sd1"))
    return load_model(path, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def new_pipeline(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], StableDiffusionPipeline]:
    folder = tmp_path_factory.mktemp("folder") / "sd1"
    save_checkpoint(model, folder)

    def make() -> StableDiffusionPipeline:
        return StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)

    return make


def parameters(pipeline: StableDiffusionPipeline) -> Deltas:
    parts = {"unet": pipeline.unet, "text_encoder": pipeline.text_encoder}
    found = {
        f"{part}.{name.replace('.base_layer', '').removesuffix('.weight')}": tensor.detach().clone()
        for part, module in parts.items()
        for name, tensor in module.named_parameters()
        if name.endswith(".weight") and "lora_" not in name
    }
    # transformers 5 has no level text_model
    return {
        name.replace("text_encoder.encoder", "text_encoder.text_model.encoder"): value for name, value in found.items()
    }


def changes(before: Deltas, after: Deltas) -> Deltas:
    return {name: after[name] - old for name, old in before.items() if not torch.equal(after[name], old)}


def randomise(module: nn.Module, *, only: str = "") -> None:
    random = torch.Generator().manual_seed(11)
    for name, parameter in module.named_parameters():
        if only in name and parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)


def fused_by_diffusers(pipeline: StableDiffusionPipeline, path: Path, **keys: Any) -> Deltas:
    before = parameters(pipeline)
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, **keys)
    pipeline.fuse_lora()
    return changes(before, parameters(pipeline))


# ------------------------------------------------------------------------------------------------ the makers


def diffusers_file(pipeline: StableDiffusionPipeline, path: Path, *, dora: bool = False) -> Deltas:
    linear = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1"]
    pipeline.unet.add_adapter(LoraConfig(r=3, lora_alpha=2, target_modules=linear, use_dora=dora))
    pipeline.text_encoder.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj", "fc1"], use_dora=dora)
    )
    before = parameters(pipeline)
    for module in (pipeline.unet, pipeline.text_encoder):
        randomise(module, only="lora_")
    pipeline.save_lora_weights(
        path.parent,
        unet_lora_layers=get_peft_model_state_dict(pipeline.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipeline.text_encoder),
        weight_name=path.name,
        unet_lora_adapter_metadata=pipeline.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pipeline.text_encoder.peft_config["default"].to_dict(),
    )
    pipeline.fuse_lora()
    return changes(before, parameters(pipeline))


def peft_folder(pipeline: StableDiffusionPipeline, path: Path) -> Deltas:
    before = parameters(pipeline)
    tuned = get_peft_model(pipeline.unet, LoraConfig(r=2, lora_alpha=5, target_modules=["to_q", "ff.net.2"]))
    randomise(tuned, only="lora_")
    tuned.save_pretrained(str(path.parent))
    (path.parent / "adapter_model.safetensors").rename(path)
    pipeline.unet = tuned.merge_and_unload()
    return changes(before, parameters(pipeline))


def three_spellings(pipeline: StableDiffusionPipeline, path: Path) -> Deltas:
    """What diffusers' own training scripts save: lora.down, lora_A and lora_linear_layer in one file."""
    linear = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "proj_in", "conv1"]
    pipeline.unet.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=linear))
    pipeline.text_encoder.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj", "fc1"]))
    before = parameters(pipeline)
    for module in (pipeline.unet, pipeline.text_encoder):
        randomise(module, only="lora_")
    unet, text = (
        convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        for module in (pipeline.unet, pipeline.text_encoder)
    )
    pipeline.save_lora_weights(path.parent, unet_lora_layers=unet, text_encoder_lora_layers=text, weight_name=path.name)
    pipeline.fuse_lora()
    return changes(before, parameters(pipeline))


def named_adapter(pipeline: StableDiffusionPipeline, path: Path) -> Deltas:
    """The state of a wrapped model as it is, with PEFT's wrappers and the adapter's own name in every key."""
    before = parameters(pipeline)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "ff.net.2"], use_dora=True)
    tuned = get_peft_model(pipeline.unet, config, adapter_name="my_style")
    randomise(tuned, only="lora_")
    state = {f"unet.{key}": tensor.clone() for key, tensor in tuned.state_dict().items() if "lora_" in key}
    assert any(key.startswith("unet.base_model.model.down_blocks") and ".my_style." in key for key in state)
    write_tensors(path, state)
    pipeline.unet = tuned.merge_and_unload()
    return changes(before, parameters(pipeline))


def comfy_file(pipeline: StableDiffusionPipeline, path: Path) -> Deltas:
    """ComfyUI's own names: those of the checkpoint, less what stands before the U-Net and the encoder."""
    lora = random_lora("sd1", 9)
    tensors, deltas = {}, {}
    for target, adapter in lora.items():
        name = target.tensor.removesuffix(".weight").replace("model.diffusion_model.", "diffusion_model.")
        name = name.replace("cond_stage_model.transformer.", "text_encoders.clip_l.transformer.")
        tensors |= {name + KOHYA.suffix(role): tensor for role, tensor in adapter.tensors().items()}
        deltas[f"{target.part}.{target.diffusers_name}"] = adapter.delta().detach()
    write_tensors(path, tensors)
    return deltas


def old_diffusers_file(pipeline: StableDiffusionPipeline, path: Path) -> Deltas:
    """The keys of attention processors, as diffusers 0.12 to 0.20 wrote them, read by the diffusers of today."""
    random = torch.Generator().manual_seed(3)
    tensors = {}

    def pair(key: str, layer: nn.Linear) -> None:
        tensors[f"{key}.down.weight"] = 0.2 * torch.randn(2, layer.in_features, generator=random)
        tensors[f"{key}.up.weight"] = 0.2 * torch.randn(layer.out_features, 2, generator=random)

    for name, module in pipeline.unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            layers = {"q": module.to_q, "k": module.to_k, "v": module.to_v, "out": module.to_out[0]}
            for letter, layer in layers.items():
                pair(f"unet.{name}.processor.to_{letter}_lora", layer)
    for name, module in pipeline.text_encoder.named_modules():
        if name.endswith("self_attn"):
            path_there = name if name.startswith("text_model.") else f"text_model.{name}"
            for letter in ("q", "k", "v", "out"):
                pair(f"text_encoder.{path_there}.{letter}_proj.lora_linear_layer", getattr(module, f"{letter}_proj"))
    write_tensors(path, tensors)
    return fused_by_diffusers(pipeline, path)


def modules_of_january_2023(unet: nn.Module, *, resnets: bool) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) as ``model.modules()`` of diffusers 0.11 met them inside attentions, GEGLU and res blocks."""

    def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
        named = dict(module.named_children())
        if type(module).__name__ == "BasicTransformerBlock":
            order = ["attn1", "ff", "attn2"]
            return [(name, named[name]) for name in order]
        if type(module).__name__ == "UNet2DConditionModel":
            return [(name, named[name]) for name in ("down_blocks", "up_blocks", "mid_block")]
        return list(named.items())

    def walk(module: nn.Module, path: str, inside: bool) -> Iterator[tuple[str, nn.Module]]:
        kind = type(module).__name__
        inside = inside or kind in ("Attention", "GEGLU") or (resnets and kind == "ResnetBlock2D")
        if inside and isinstance(module, nn.Linear | nn.Conv2d):
            yield path, module
        for name, child in children(module):
            yield from walk(child, f"{path}.{name}", inside)

    yield from walk(unet, "unet", False)


def numbered_pairs(layers: list[tuple[str, nn.Module]]) -> tuple[list[Tensor], Deltas]:
    random = torch.Generator().manual_seed(5)
    tensors, deltas = [], {}
    for name, layer in layers:
        shape = layer.weight.shape
        up = 0.2 * torch.randn(shape[0], 2, *(1 for _ in shape[2:]), generator=random)
        down = 0.2 * torch.randn(2, *shape[1:], generator=random)
        tensors += [up, down]
        deltas[name] = (up.flatten(1) @ down.flatten(1)).reshape(shape)
    return tensors, deltas


def text_layers(pipeline: StableDiffusionPipeline) -> list[tuple[str, nn.Module]]:
    return [
        (f"text_encoder.text_model.{name.removeprefix('text_model.')}.{letter}_proj", getattr(module, f"{letter}_proj"))
        for name, module in pipeline.text_encoder.named_modules()
        if name.endswith("self_attn")
        for letter in ("k", "v", "q", "out")
    ]


def cloneofsimo_list(
    pipeline: StableDiffusionPipeline,
    path: Path,
    *,
    resnets: bool = False,
    leave_out: str = "",
    text_name: str = "{}.text_encoder.pt",
) -> Deltas:
    layers = [
        (name, layer)
        for name, layer in modules_of_january_2023(pipeline.unet, resnets=resnets)
        if not leave_out or leave_out not in name
    ]
    unet, deltas = numbered_pairs(layers)
    text, more = numbered_pairs(text_layers(pipeline))
    torch.save(unet, path)
    torch.save(text, path.with_name(text_name.format(path.stem)))
    return deltas | more


def cloneofsimo_safetensors(pipeline: StableDiffusionPipeline, path: Path) -> Deltas:
    unet, deltas = numbered_pairs(list(modules_of_january_2023(pipeline.unet, resnets=False)))
    text, more = numbered_pairs(text_layers(pipeline))
    tensors, metadata = {}, {}
    for part, pairs, kinds in (("unet", unet, ["CrossAttention", "GEGLU"]), ("text_encoder", text, ["CLIPAttention"])):
        metadata[part] = json.dumps(kinds)
        for number, tensor in enumerate(pairs):
            tensors[f"{part}:{number // 2}:{('up', 'down')[number % 2]}"] = tensor
            metadata[f"{part}:{number // 2}:rank"] = "2"
    tensors["<s1>"], metadata["<s1>"] = torch.ones(32), "<embed>"
    write_tensors(path, tensors, metadata=metadata)
    return deltas | more


def lycoris_file(pipeline: StableDiffusionPipeline, path: Path, prefix: str = "lycoris", **options: Any) -> Deltas:
    from lycoris import LycorisNetwork, create_lycoris

    LycorisNetwork.apply_preset({"target_module": ["Attention", "FeedForward", "ResnetBlock2D"]})
    before = parameters(pipeline)
    # Its merge_to multiplies the scale of LoHa and LoKr in twice; its forward pass, which counts, does not.
    network = create_lycoris(pipeline.unet, 1.0, **{"linear_dim": 2, "linear_alpha": 1.5, **options})
    network.apply_to()
    randomise(network)
    network.save_weights(str(path), torch.float32, {})
    if prefix != "lycoris":
        stored = open_tensors(path)
        renamed = {key.replace("lycoris_", prefix, 1): stored[key].clone() for key in stored}
        del stored
        write_tensors(path, renamed)
    network.restore()
    network.merge_to(1.0)
    return changes(before, parameters(pipeline))


def lycoris(**options: Any) -> Callable[[StableDiffusionPipeline, Path], Deltas]:
    return lambda pipeline, path: lycoris_file(pipeline, path, **options)


DIALECTS: dict[str, tuple[str, Callable[[StableDiffusionPipeline, Path], Deltas]]] = {
    "diffusers": ("x.safetensors", diffusers_file),
    "diffusers, DoRA": ("x.safetensors", partial(diffusers_file, dora=True)),
    "PEFT": ("adapter_model.safetensors", peft_folder),
    "PEFT, an adapter with a name": ("x.safetensors", named_adapter),
    "diffusers, three spellings": ("x.safetensors", three_spellings),
    "ComfyUI": ("x.safetensors", comfy_file),
    "diffusers, attention processors": ("x.safetensors", old_diffusers_file),
    "cloneofsimo": ("x.pt", cloneofsimo_list),
    "cloneofsimo, without outputs": ("x.pt", partial(cloneofsimo_list, leave_out=".to_out.")),
    "cloneofsimo, safetensors": ("x.safetensors", cloneofsimo_safetensors),
    "sd_dreambooth_extension": ("x.pt", partial(cloneofsimo_list, text_name="{}_txt.pt")),
    "kohya (LyCORIS LoCon)": ("x.safetensors", lycoris(prefix="lora_unet_", algo="lora")),
    "LyCORIS LoHa": ("x.safetensors", lycoris(algo="loha", linear_alpha=2)),
    "LyCORIS LoKr": ("x.safetensors", lycoris(algo="lokr", factor=4, linear_alpha=2)),
    "LyCORIS (IA)3": ("x.safetensors", lycoris(algo="ia3")),
    "LyCORIS full": ("x.safetensors", lycoris(algo="full")),
    "LyCORIS DoRA": ("x.safetensors", lycoris(algo="lora", dora_wd=True, wd_on_output=True)),
}
FOR_DIFFUSERS = [name for name in DIALECTS if not name.startswith("LyCORIS") or name == "LyCORIS DoRA"]
"""Dialects whose files hold what diffusers can read."""


@pytest.fixture(scope="module")
def made(
    new_pipeline: Callable[[], StableDiffusionPipeline], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Deltas]]:
    @cache
    def make(name: str) -> tuple[Path, Deltas]:
        file_name, maker = DIALECTS[name]
        path = tmp_path_factory.mktemp("dialect") / file_name
        return path, maker(new_pipeline(), path)

    return make


def deltas_here(path: Path, model: LoadedModel) -> Deltas:
    adapters = read_adapters(path, model.file_targets)
    return {
        f"{target.part}.{target.diffusers_name}": adapter.delta(model.weight_of(target)).reshape(target.shape)
        for target, adapter in adapters.items()
    }


def assert_same(found: Deltas, theirs: Deltas, tolerance: float = 1e-5) -> None:
    theirs = {name: delta for name, delta in theirs.items() if float(delta.abs().max()) > 1e-7}
    assert set(theirs) <= set(found)
    assert all(float(delta.abs().max()) < 1e-6 for name, delta in found.items() if name not in theirs)
    assert len(theirs) > 10
    for name, delta in theirs.items():
        assert float((found[name] - delta.reshape(found[name].shape)).abs().max()) < tolerance, name


@pytest.mark.parametrize("dialect", DIALECTS)
def test_read(dialect: str, made: Callable[[str], tuple[Path, Deltas]], model: LoadedModel) -> None:
    path, theirs = made(dialect)
    assert_same(deltas_here(path, model), theirs)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_merge(dialect: str, made: Callable[[str], tuple[Path, Deltas]], model: LoadedModel, tmp_path: Path) -> None:
    path, theirs = made(dialect)
    merge(model.checkpoint.path, [LoraWeight(path)], tmp_path / "merged.safetensors")
    before, after = toy_tensors("sd1"), open_tensors(tmp_path / "merged.safetensors")
    names = {f"{target.part}.{target.diffusers_name}": target.tensor for target in model.file_targets}
    assert_same({name: after[names[name]] - before[names[name]] for name in theirs}, theirs)


@pytest.mark.parametrize("dialect", DIALECTS)
@torch.no_grad()
def test_apply(dialect: str, made: Callable[[str], tuple[Path, Deltas]], model: LoadedModel) -> None:
    """On a layer of the live model: what the library's change of the weight does to its input."""
    path, theirs = made(dialect)
    adapters = read_adapters(path, model.file_targets)
    layers = {target.name: model.layer(target) for target in model.file_targets}
    for target, adapter in adapters.items():
        delta = theirs.get(f"{target.part}.{target.diffusers_name}")
        layer = layers[target.name]
        if delta is None or target.kind != "linear":
            continue
        x = torch.randn(3, target.shape[1], generator=torch.Generator().manual_seed(1))
        bare = layer(x)
        with attach(adapters, layers):
            bias = adapter.bias_delta()
            change = x @ delta.T if bias is None else x @ delta.T + bias
            assert torch.allclose(layer(x) - bare, change, atol=1e-4), target.name
        assert torch.equal(layer(x), bare)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_write_as_kohya(
    dialect: str, made: Callable[[str], tuple[Path, Deltas]], model: LoadedModel, tmp_path: Path
) -> None:
    path, theirs = made(dialect)
    report = convert_lora(path, tmp_path / "out.safetensors", to="kohya", precision="float")
    assert report.layers == len(deltas_here(path, model))
    file = read_adapter_file(tmp_path / "out.safetensors")
    assert file.dialect is KOHYA and all(name.startswith(("lora_unet_", "lora_te_")) for name in file.layers)
    assert_same(deltas_here(tmp_path / "out.safetensors", model), theirs)


@pytest.mark.parametrize("dialect", FOR_DIFFUSERS)
def test_write_as_diffusers(
    dialect: str,
    made: Callable[[str], tuple[Path, Deltas]],
    model: LoadedModel,
    new_pipeline: Callable[[], StableDiffusionPipeline],
    tmp_path: Path,
) -> None:
    path, theirs = made(dialect)
    convert_lora(path, tmp_path / "out.safetensors", to="diffusers", precision="float")
    assert read_adapter_file(tmp_path / "out.safetensors").dialect is PEFT
    assert_same(deltas_here(tmp_path / "out.safetensors", model), theirs)
    fused = fused_by_diffusers(new_pipeline(), tmp_path / "out.safetensors")
    assert_same(fused, theirs)


WITH_A_RANK = [name for name in FOR_DIFFUSERS if "DoRA" not in name and name != "PEFT, an adapter with a name"]
"""Dialects whose files hold plain LoRAs, which can be resized and added up."""


@pytest.mark.parametrize("to", ["kohya", "diffusers"])
@pytest.mark.parametrize("dialect", WITH_A_RANK)
def test_resized_and_added_up(
    dialect: str,
    to: str,
    made: Callable[[str], tuple[Path, Deltas]],
    model: LoadedModel,
    new_pipeline: Callable[[], StableDiffusionPipeline],
    tmp_path: Path,
) -> None:
    """Every dialect in, through every tool, each dialect out: the change is that of the library that made the file."""
    path, theirs = made(dialect)
    other = tmp_path / "other.safetensors"
    write_tensors(other, random_lora("sd1", 9).file_tensors(), metadata={"ss_base_model_version": "sd_v1"})
    added = deltas_here(other, model)
    resized, summed = tmp_path / "resized.safetensors", tmp_path / "sum.safetensors"
    report = resize_lora(path, resized, rank=64, precision="float", to=to)
    combine_loras(
        [LoraWeight(path, LoraStrength(0.3, 0.7)), LoraWeight(other, LoraStrength(-0.4, -0.4))],
        summed,
        precision="float",
        to=to,
    )
    assert report.layers and report.residual < 1e-6
    assert [read_adapter_file(file).dialect for file in (resized, summed)] == 2 * [KOHYA if to == "kohya" else PEFT]
    strengths = {name: 0.7 if name.startswith("text") else 0.3 for name in theirs}
    expected = {name: -0.4 * delta for name, delta in added.items()}
    for name, delta in theirs.items():
        expected[name] = strengths[name] * delta.reshape(expected[name].shape) + expected[name]
    for file, wanted in ((resized, theirs), (summed, expected)):
        assert_same(deltas_here(file, model), wanted)
    if to == "diffusers":
        assert_same(fused_by_diffusers(new_pipeline(), summed), expected, 3e-5)


def test_the_names_of_the_result_are_those_of_the_files(
    made: Callable[[str], tuple[Path, Deltas]], tmp_path: Path
) -> None:
    """diffusers' files stay diffusers'; a mix, and dialects that nobody writes any more, become kohya's."""
    theirs, old, numbered = (made(name)[0] for name in ("diffusers", "diffusers, attention processors", "cloneofsimo"))
    for inputs, wanted in (
        ([theirs], PEFT), ([theirs, theirs], PEFT), ([theirs, old], KOHYA), ([old], KOHYA), ([numbered, theirs], KOHYA),
    ):  # fmt: skip
        output = tmp_path / "out.safetensors"
        report = combine_loras([LoraWeight(path) for path in inputs], output)
        assert report.written.dialect is wanted and read_adapter_file(output).dialect is wanted
        if len(inputs) == 1:
            assert resize_lora(inputs[0], output, rank=1).written.dialect is wanted


def test_words_go_along_through_every_tool(made: Callable[[str], tuple[Path, Deltas]], tmp_path: Path) -> None:
    path, output = made("cloneofsimo, safetensors")[0], tmp_path / "out.safetensors"
    for report in (resize_lora(path, output, rank=1), combine_loras([LoraWeight(path), LoraWeight(path)], output)):
        assert report.words == ("<s1>",)
        assert torch.equal(read_adapter_file(output).embeddings["<s1>"]["any"].flatten(), torch.ones(32))
    for report in (
        resize_lora(path, output, rank=1, to="diffusers"),
        combine_loras([LoraWeight(path)], output, to="diffusers"),
    ):
        assert report.written.embeddings == (tmp_path / "out.ti.safetensors",)
    stored = open_tensors(path)
    changed = {key: stored[key] * (2 if key == "<s1>" else 1) for key in stored}
    write_tensors(tmp_path / "b.safetensors", changed, metadata=stored.metadata)
    with pytest.raises(AdapterError, match="both contain the embedding '<s1>'"):
        combine_loras([LoraWeight(path), LoraWeight(tmp_path / "b.safetensors")], output)


@pytest.mark.parametrize("dialect", sorted(set(DIALECTS) - set(FOR_DIFFUSERS)))
def test_what_diffusers_cannot_read_is_said(
    dialect: str, made: Callable[[str], tuple[Path, Deltas]], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="diffusers reads LoRA and DoRA only") as error:
        convert_lora(made(dialect)[0], tmp_path / "out.safetensors", to="diffusers")
    assert "loraloom extract" in worded(error.value.hint)
    assert not (tmp_path / "out.safetensors").exists()


def test_words_travel_along(made: Callable[[str], tuple[Path, Deltas]], tmp_path: Path) -> None:
    path, _ = made("cloneofsimo, safetensors")
    kohya = convert_lora(path, tmp_path / "k.safetensors")
    assert kohya.words == ("<s1>",) and kohya.embeddings == (kohya.path,)
    again = read_adapter_file(kohya.path).embeddings
    assert torch.equal(again["<s1>"]["any"], torch.ones(1, 32))
    diffusers = convert_lora(kohya.path, tmp_path / "d.safetensors", to="diffusers")
    assert diffusers.embeddings == (tmp_path / "d.ti.safetensors",)
    assert read_embedding(diffusers.embeddings[0]).vectors["any"].shape == (1, 32)
    assert inspect_file(path).facts["words in it"] == "<s1>"


def test_several_words_of_two_encoders(tmp_path: Path) -> None:
    """SDXL's: each word a file that is read as an embedding of both encoders."""
    lora = random_lora("sdxl", 3, parts=["unet"], conv=False).file_tensors()
    words = {f"bundle_emb.{word}.{place}": torch.ones(2, 8) for word in ("a", "b") for place in ("clip_l", "clip_g")}
    write_tensors(tmp_path / "k.safetensors", lora | words, metadata={"ss_base_model_version": "sdxl_base_v1-0"})
    report = convert_lora(tmp_path / "k.safetensors", tmp_path / "d.safetensors", to="diffusers")
    assert [path.name for path in report.embeddings] == ["d-1.ti.safetensors", "d-2.ti.safetensors"]
    assert all(set(read_embedding(path).vectors) == {"clip_l", "clip_g"} for path in report.embeddings)
    again = convert_lora(tmp_path / "k.safetensors", tmp_path / "again.safetensors")
    assert set(read_adapter_file(again.path).embeddings["b"]) == {"clip_l", "clip_g"}


def test_an_extended_list() -> None:
    """With the convolutions of the res blocks, in a U-Net whose levels widen as those of Stable Diffusion do."""
    unet = UNet2DConditionModel(block_out_channels=(32, 64, 96, 96), cross_attention_dim=32, norm_num_groups=32)
    layers = list(modules_of_january_2023(unet, resnets=True))
    pairs, _ = numbered_pairs(layers)
    keys = lora_keys({str(n): TensorInfo(pair.dtype, tuple(pair.shape)) for n, pair in enumerate(pairs)}, {})
    assert keys is not None and len(keys.layers) == 224
    assert list(keys.layers) == [f"lora_{name.replace('.', '_')}" for name, _ in layers]


def test_a_list_in_todays_order(new_pipeline: Callable[[], StableDiffusionPipeline], tmp_path: Path) -> None:
    """Made by newer diffusers: the feed-forward layer stands behind both attentions."""
    layers = [
        (f"unet.{name}", module)
        for section in ("down_blocks", "up_blocks", "mid_block")
        for name, module in new_pipeline().unet.named_modules()
        if name.startswith(section)
        and isinstance(module, nn.Linear)
        and (".attn" in name or name.endswith("net.0.proj"))
    ]
    pairs, deltas = numbered_pairs(layers)
    torch.save(pairs, tmp_path / "x.pt")
    keys = lora_keys({str(n): pair for n, pair in enumerate(pairs)}, {})
    assert keys is not None
    names = [name.removeprefix("lora_unet_") for name in keys.layers]
    assert names == [name.removeprefix("unet.").replace(".", "_") for name in deltas]


@pytest.mark.parametrize("count", [2, 142, 144])
def test_a_list_of_no_known_order_is_refused(count: int, tmp_path: Path) -> None:
    torch.save(
        [torch.zeros(8, 2) if i % 2 == 0 else torch.zeros(2, 4 + i % 3) for i in range(2 * count)], tmp_path / "x.pt"
    )
    with pytest.raises(AdapterError, match="belong to no LoRA layer") as error:
        read_adapter_file(tmp_path / "x.pt")
    assert "no known version" in error.value.problem
    assert "cannot be used" in inspect_file(tmp_path / "x.pt").facts


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_other_families(family: str, tmp_path: Path) -> None:
    lora = random_lora(family, 3)
    version = {"sd2": "sd_v2", "sdxl": "sdxl_base_v1-0"}[family]
    write_tensors(tmp_path / "k.safetensors", lora.file_tensors(), metadata={"ss_base_model_version": version})
    convert_lora(tmp_path / "k.safetensors", tmp_path / "d.safetensors", to="diffusers")
    report = convert_lora(tmp_path / "d.safetensors", tmp_path / "again.safetensors")
    assert report.layers == len(lora)
    first, second = open_tensors(tmp_path / "k.safetensors"), open_tensors(tmp_path / "again.safetensors")
    assert set(first) == set(second)
    for name in (key.removesuffix(".alpha") for key in first if key.endswith(".alpha")):
        products = [
            float(file[f"{name}.alpha"])
            * file[f"{name}.lora_up.weight"].flatten(1)
            @ file[f"{name}.lora_down.weight"].flatten(1)
            for file in (first, second)
        ]
        assert torch.allclose(*products, atol=1e-5)
        assert first[f"{name}.lora_down.weight"].shape == second[f"{name}.lora_down.weight"].shape
