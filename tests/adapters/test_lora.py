from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from loraloom.adapters.attach import AdapterSet, attach, create_adapters, match_layers, read_adapters
from loraloom.adapters.lora import LoraAdapter
from loraloom.adapters.settings import AdapterSettings
from loraloom.errors import AdapterError, SettingsError
from loraloom.events import Event
from loraloom.formats.adapter_file import AdapterTarget, model_hashes, read_adapter_file, write_adapter_file
from loraloom.formats.tensors import write_tensors


def target(name: str, shape: tuple[int, ...], *, part: str = "unet", extended: bool = False) -> AdapterTarget:
    kind = "linear" if len(shape) == 2 else "conv3x3" if shape[2] == 3 else "conv1x1"
    prefix = "lora_unet_" if part == "unet" else "lora_te_"
    return AdapterTarget(part, name, prefix + name, (), name.replace("_", "."), name, None, shape, kind, 0, extended)


LAYERS = {
    "linear": (nn.Linear(6, 10), (3, 5, 6)),
    "conv1": (nn.Conv2d(6, 10, 1), (2, 6, 5, 4)),
    "conv3": (nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 8, 8)),
}


@pytest.fixture(params=sorted(LAYERS))
def layer_and_input(request: pytest.FixtureRequest) -> tuple[str, nn.Module, torch.Tensor]:
    layer, shape = LAYERS[request.param]
    return request.param, layer, torch.randn(shape)


def random_adapter(layer: nn.Module, name: str) -> tuple[AdapterTarget, LoraAdapter]:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    spot = target(name, tuple(weight.shape))
    adapter = LoraAdapter.create(spot, AdapterSettings(), 3, 1.5, seed=1)
    adapter.up.data.normal_()
    return spot, adapter


def test_starts_as_identity(layer_and_input: tuple[str, nn.Module, torch.Tensor]) -> None:
    name, layer, x = layer_and_input
    spot = target(name, tuple(layer.weight.shape))  # type: ignore[union-attr]
    adapter = LoraAdapter.create(spot, AdapterSettings(), 3, 3.0, seed=1)
    assert torch.equal(adapter.delta(), torch.zeros(spot.shape))
    with attach(AdapterSet({spot: adapter}), {spot.name: layer}):
        with_adapter = layer(x)
    assert torch.allclose(with_adapter, layer(x), atol=1e-7)


@pytest.mark.parametrize("weight", [1.0, 0.4, -2.0])
def test_forward_equals_merged_weight(layer_and_input: tuple[str, nn.Module, torch.Tensor], weight: float) -> None:
    name, layer, x = layer_and_input
    spot, adapter = random_adapter(layer, name)
    before = layer.weight.detach().clone()  # type: ignore[operator]
    plain = layer(x)
    with attach(AdapterSet({spot: adapter}), {spot.name: layer}, unet=weight):
        beside = layer(x)
    assert torch.equal(layer.weight, before)  # type: ignore[arg-type]
    assert torch.equal(layer(x), plain)
    layer.weight.data += weight * adapter.delta()  # type: ignore[union-attr,operator]
    expected = layer(x)
    layer.weight.data.copy_(before)  # type: ignore[union-attr,operator]
    assert torch.allclose(beside, expected, atol=1e-5)


def test_the_closed_form_of_a_linear_delta() -> None:
    down, up = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 3.0], [0.0, 1.0]])
    adapter = LoraAdapter(down, up, alpha=4.0)
    assert torch.equal(adapter.delta(), 2 * torch.tensor([[1.0, 2.0], [2.0, 7.0], [0.0, 1.0]]))


def test_init_is_kaiming_uniform_with_sqrt_five() -> None:
    spot = target("wide", (8, 400))
    down = LoraAdapter.create(spot, AdapterSettings(), 64, 64.0, seed=0).down
    bound = 1 / 400**0.5
    assert float(down.abs().max()) <= bound
    assert float(down.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
    assert torch.equal(down, LoraAdapter.create(spot, AdapterSettings(), 64, 64.0, seed=0).down)
    assert not torch.equal(down, LoraAdapter.create(spot, AdapterSettings(), 64, 64.0, seed=1).down)


def test_weight_zero_is_bit_equal_to_the_base() -> None:
    layer, shape = LAYERS["linear"]
    x = torch.randn(shape)
    spot, adapter = random_adapter(layer, "linear")
    with attach(AdapterSet({spot: adapter}), {spot.name: layer}) as attachment:
        attachment.set_weights(unet=0.0, text_encoder=1.0)
        assert torch.equal(layer(x), LAYERS["linear"][0].forward(x))


def test_two_loras_add_up_and_come_off_in_any_order() -> None:
    layer, shape = LAYERS["linear"]
    x = torch.randn(shape)
    (spot, first), (_, second) = random_adapter(layer, "linear"), random_adapter(layer, "linear")
    plain = layer(x)
    one = attach(AdapterSet({spot: first}), {spot.name: layer}, unet=0.5)
    two = attach(AdapterSet({spot: second}), {spot.name: layer}, unet=2.0)
    delta = 0.5 * first.delta() + 2.0 * second.delta()
    assert torch.allclose(layer(x), plain + x @ delta.t(), atol=1e-5)
    one.detach()
    assert torch.allclose(layer(x), plain + x @ (2.0 * second.delta()).t(), atol=1e-5)
    two.detach()
    one.detach()
    assert torch.equal(layer(x), plain)


def test_dropout_depends_on_the_step_alone() -> None:
    layer, shape = LAYERS["linear"]
    x = torch.randn(shape)
    spot = target("linear", (10, 6))
    adapter = LoraAdapter.create(spot, AdapterSettings(), 64, 64.0, seed=1)
    adapter.dropout = 0.5
    adapter.up.data.normal_()
    adapters = AdapterSet({spot: adapter}).train()
    with attach(adapters, {spot.name: layer}):
        outputs = []
        for step in (0, 1, 0):
            adapters.seed_step(3, step)
            torch.rand(5)  # the global generator must not matter
            outputs.append(layer(x))
        adapters.eval()
        expected = layer(x)
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], expected)


@pytest.mark.parametrize("name", ["dropout", "rank_dropout"])
def test_what_dropout_drops_and_how_the_rest_grows(name: str) -> None:
    """At 0.3, where what is kept and what is dropped cannot be taken for one another."""
    torch.manual_seed(4)
    rank = 500
    adapter = LoraAdapter(torch.eye(rank), torch.eye(rank), float(rank))
    setattr(adapter, name, 0.3)
    adapter.dropout_seed = 11
    layer = torch.nn.Linear(rank, rank, bias=False)
    side = adapter.train().branch(torch.ones(3, rank), layer)
    assert torch.equal(side.unique(), torch.tensor([0.0, 1 / 0.7]))
    kept = float((side > 0).float().mean())
    assert kept == pytest.approx(0.7, abs=0.06)
    assert float(side.mean()) == pytest.approx(1.0, abs=0.09)


def test_what_is_chosen() -> None:
    targets = [
        target("a", (4, 4)),
        target("b", (4, 4, 3, 3), extended=True),
        target("c", (4, 4), extended=True),
        target("d", (4, 4), part="text_encoder"),
    ]

    def chosen(**kwargs: object) -> dict[str, int]:
        adapters = create_adapters(AdapterSettings(**kwargs), targets, seed=0)  # type: ignore[arg-type]
        return {spot.module: adapter.rank for spot, adapter in adapters.items() if isinstance(adapter, LoraAdapter)}

    assert chosen(rank=2) == {"a": 2, "d": 2}
    assert chosen(rank=2, text_encoder=False) == {"a": 2}
    assert chosen(rank=2, conv_rank=1) == {"a": 2, "b": 1, "c": 2, "d": 2}
    with pytest.raises(SettingsError, match="nothing is trained"):
        chosen(unet=False, text_encoder=False)


def test_file_round_trip_and_hashes(tmp_path: Path) -> None:
    import hashlib

    layer = LAYERS["conv3"][0]
    spot, adapter = random_adapter(layer, "conv3")
    other, linear = random_adapter(LAYERS["linear"][0], "linear")
    adapters = AdapterSet({spot: adapter, other: linear})
    path = tmp_path / "x.safetensors"
    write_adapter_file(path, adapters.file_tensors(), metadata={"ss_seed": "1", "other": "x"}, dtype=torch.float32)
    read = read_adapters(path, [spot, other, target("unused", (3, 3))])
    assert {s.name for s, _ in read.items()} == {spot.name, other.name}
    for s, loaded in read.items():
        assert torch.equal(loaded.delta(), dict(adapters.items())[s].delta())
    raw = path.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert read.metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    # A file shorter than 1 MiB has an empty window.
    assert read.metadata["sshs_legacy_hash"] == "e3b0c442"


def test_the_legacy_hash_is_of_the_window_in_a_file_with_ss_metadata_only(tmp_path: Path) -> None:
    import hashlib

    from safetensors.torch import save

    tensors = {"b": torch.randn(600, 600), "a": torch.randn(30, 30).half()}
    _, legacy = model_hashes(tensors, {"ss_a": "1", "modelspec.title": "t"})
    file = save(tensors, metadata={"ss_a": "1"})
    assert legacy == hashlib.sha256(file[0x100000:0x110000]).hexdigest()[:8]


def test_two_and_four_dimensional_projections_are_the_same(tmp_path: Path) -> None:
    down, up = torch.randn(2, 6), torch.randn(10, 2)
    for stored, wanted in (((), (10, 6, 1, 1)), ((1, 1), (10, 6))):
        spot = target("proj", wanted)
        tensors = {
            f"{spot.name}.lora_down.weight": down.reshape(2, 6, *stored),
            f"{spot.name}.lora_up.weight": up.reshape(10, 2, *stored),
        }
        write_tensors(tmp_path / "p.safetensors", tensors)
        ((_, adapter),) = read_adapters(tmp_path / "p.safetensors", [spot]).items()
        assert torch.allclose(adapter.delta().flatten(1), up @ down)


def broken_files() -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    good = {"lora_unet_a.lora_down.weight": torch.ones(2, 4), "lora_unet_a.lora_up.weight": torch.ones(4, 2)}
    nan = {**good, "lora_unet_a.lora_up.weight": torch.full((4, 2), float("nan"))}
    return {
        "another model": ({k.replace("_a.", "_zz."): v for k, v in good.items()}, "0 of its 1 layers"),
        "some layers unknown": (good | {k.replace("_a.", "_zz."): v for k, v in good.items()}, "1 of its 2 layers"),
        "wrong shape": ({**good, "lora_unet_a.lora_down.weight": torch.ones(2, 5)}, r"\(2, 5\)"),
        "rank mismatch": ({**good, "lora_unet_a.lora_up.weight": torch.ones(4, 3)}, r"\(4, 3\)"),
        "half a pair": ({"lora_unet_a.lora_down.weight": torch.ones(2, 4)}, "has no up tensor"),
        "nan": (nan, "NaN"),
        "infinite alpha": (
            {**good, "lora_unet_a.alpha": torch.tensor(float("inf"))},
            "alpha of layer lora_unet_a is inf",
        ),
        "stray key": ({**good, "something": torch.ones(1)}, "belong to no LoRA layer"),
        "OFT": ({**good, "lora_unet_a.oft_blocks": torch.ones(1)}, "OFT"),
        "two kinds in one layer": ({**good, "lora_unet_a.hada_w1_a": torch.ones(1)}, "do not make an adapter"),
        "a matrix as alpha": ({**good, "lora_unet_a.alpha": torch.ones(2)}, "has shape .2,., where one number belongs"),
        "no LoRA": ({"model.diffusion_model.x": torch.ones(1)}, "is not a LoRA file"),
    }


@pytest.mark.parametrize("name", sorted(broken_files()))
def test_files_that_do_not_fit_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors, message = broken_files()[name]
    write_tensors(path, tensors)
    with pytest.raises(AdapterError, match=message):
        read_adapters(path, [target("a", (4, 4))])


def test_integer_missing_zero_and_negative_alpha(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    good = {"lora_unet_a.lora_down.weight": torch.ones(2, 4), "lora_unet_a.lora_up.weight": torch.ones(4, 2)}
    cases = [
        (None, 2.0, None),
        (torch.tensor(4), 4.0, None),
        (torch.tensor(1.0), 1.0, None),
        (torch.tensor([[0.5]], dtype=torch.bfloat16), 0.5, None),
        (torch.tensor(0), 0.0, "alpha 0, which changes nothing"),
        (torch.tensor(-3.0), -3.0, "a negative alpha"),
    ]
    for alpha, expected, doubt in cases:
        write_tensors(path, good if alpha is None else {**good, "lora_unet_a.alpha": alpha})
        heard: list[Event] = []
        ((_, adapter),) = read_adapters(path, [target("a", (4, 4))], listener=heard.append).items()
        assert torch.equal(adapter.delta(), torch.full((4, 4), expected))
        assert len(heard) == (doubt is not None)
        assert doubt is None or doubt in heard[0].text  # type: ignore[attr-defined]


def test_a_value_that_fp16_cannot_hold_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(AdapterError, match="not finite"):
        write_adapter_file(path, {"lora_unet_a.alpha": torch.tensor(1e6)}, metadata={}, dtype=torch.float16)
    assert not path.exists()


def test_peft_names_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    spot = target("a_b", (4, 4))
    write_tensors(path, {"unet.a.b.lora_A.weight": torch.ones(2, 4), "unet.a.b.lora_B.weight": torch.ones(4, 2)})
    assert list(match_layers(read_adapter_file(path), [spot])) == [spot]
