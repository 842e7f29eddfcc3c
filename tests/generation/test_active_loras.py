"""LoRAs at generation: beside the weights and merged into them they do the same, and nothing is left of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from loraloom.adapters.active import ActiveLoras
from loraloom.adapters.adapter import Adapter
from loraloom.adapters.attach import AdapterSet, create_adapters
from loraloom.adapters.block_weights import parse_block_weights
from loraloom.adapters.settings import AdapterSettings
from loraloom.adapters.strength import FULL, LoraStrength
from loraloom.errors import PromptError
from loraloom.events import Event, Notice
from loraloom.formats.adapter_file import AdapterTarget, write_adapter_file
from loraloom.formats.adapter_kinds import ADAPTERS, trained_kinds
from loraloom.generation import live_merge
from loraloom.generation.live_merge import LiveMerge
from loraloom.generation.loras import AppliedLora, LoraStore, attached
from loraloom.generation.prompts import LoraTag, extract_loras
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import paint, paint_each, text_to_image
from loraloom.models.conditioning import Conditioning
from loraloom.models.loaded import LoadedModel, load_model
from picture_zoo import claims

Models = Callable[[str], LoadedModel]
CPU = torch.device("cpu")
KINDS = tuple(ADAPTERS)


def settings(**changes: object) -> GenerateSettings:
    base = {"prompt": "a cat", "width": 64, "height": 48, "steps": 3, "seed": 7, "sampler": "Euler", "lora_folders": []}
    return GenerateSettings.parse({**base, **changes})


def of_kind(model: LoadedModel, kind: str, seed: int = 0, *, size: float = 0.05) -> AdapterSet:
    """A random LoRA of a kind, on all layers that it can be on."""
    adapter_class = ADAPTERS.load(kind)
    draws = torch.Generator().manual_seed(seed)
    adapters: dict[AdapterTarget, Adapter] = {}
    for target in model.file_targets:
        if not adapter_class.takes(target):
            continue
        options = AdapterSettings(kind=kind if kind in trained_kinds() else "lora", rank=2)
        base = model.weight_of(target).reshape(target.shape) if target.rows is None else None
        if base is None and adapter_class.needs_base:
            continue
        adapter = adapter_class.create(target, options, 2, 1.5, seed=seed, base=base)
        for parameter in adapter.parameters():
            parameter.data += size * torch.randn(parameter.shape, generator=draws)
        adapters[target] = adapter
    return AdapterSet(adapters).requires_grad_(False).eval()


def snapshot(model: LoadedModel) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": value for part, module in model.parts.items() for name, value in module.named_parameters()
    }


def difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.std())


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("kind", KINDS)
def test_beside_and_merged_give_the_same_latents(toy_path: Callable[[str], Path], family: str, kind: str) -> None:
    model = load_model(toy_path(family), device=CPU, prediction="v" if family == "sd2" else "epsilon")
    lora = AppliedLora("x", of_kind(model, kind), LoraStrength(0.9, 0.7))
    plain, side, merged = (
        text_to_image(model, settings(lora_mode=mode), loras)[0].latent
        for mode, loras in (("side", []), ("side", [lora]), ("merge", [lora]))
    )
    assert difference(side, merged) < 1e-3
    assert difference(side, plain) > 1e-2


def test_after_any_operations_the_weights_are_those_of_the_file(toy_path: Callable[[str], Path]) -> None:
    """Fifty of them, at random: merging, weighing anew, taking off, and painting in both ways."""
    model = load_model(toy_path("sd2"), device=CPU, prediction="v")
    before = {name: value.clone() for name, value in snapshot(model).items()}
    loras = [AppliedLora(kind, of_kind(model, kind, seed)) for seed, kind in enumerate(KINDS)]
    draws = random.Random(5)
    merge = LiveMerge(model)
    touched = False
    for _ in range(50):
        chosen = [
            AppliedLora(lora.name, lora.adapters, LoraStrength(draws.uniform(-1, 1), draws.uniform(-1, 1)))
            for lora in draws.sample(loras, draws.randrange(4))
        ]
        action = draws.randrange(4)
        if action == 0:
            merge.apply(chosen)
            touched |= any(not torch.equal(value, before[name]) for name, value in snapshot(model).items())
        elif action == 1:
            merge.remove()
        elif action == 2:
            with suppress(KeyboardInterrupt), attached(model, chosen):
                raise KeyboardInterrupt
        else:
            merge.remove()
            mode = draws.choice(["side", "merge"])
            images = paint(model, settings(steps=1, count=2, lora_mode=mode), chosen)
            next(images)
            if draws.random() < 0.5:
                list(images)
            images.close()  # type: ignore[attr-defined]
    merge.remove()
    assert touched
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
    assert sum(len(layer._forward_hooks) for part in model.parts.values() for layer in part.modules()) == 0


def test_four_weights_in_one_pass(toy_model: Models, write_lora: Callable[..., None], tmp_path: Path) -> None:
    """Images of one batch with a LoRA at weights of their own, or without it, or with another one."""
    model = toy_model("sd1")
    for seed, name in enumerate(("one", "two")):
        write_lora(model, tmp_path / f"{name}.safetensors", seed)
    (tmp_path / "tags.txt").write_text("<lora:one:0.5>\n<lora:one:-1>\n<lora:two:1>\n<lora:one:0.2><lora:two:0.3>\n")
    calls: list[int] = []
    denoise = model.denoise

    def counted(noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        calls.append(len(noisy))
        return denoise(noisy, timesteps, conditioning)

    wanted = {"lora_folders": [tmp_path], "wildcard_folders": [tmp_path], "prompt": "a cat __tags__", "cfg_scale": 2}
    model.denoise = counted  # type: ignore[method-assign]
    try:
        together = text_to_image(model, settings(**wanted, count=8, batch_size=8))
    finally:
        del model.denoise
    assert calls == [16, 16, 16]
    assert len({image.prompt.loras for image in together}) == 4
    for index, image in enumerate(together):
        (alone,) = text_to_image(model, settings(**{**wanted, "prompt": image.prompt.prompt, "seed": 7 + index}))
        assert difference(image.latent, alone.latent) < 1e-4


def test_kinds_that_are_not_low_rank_have_weights_by_image_too(toy_model: Models) -> None:
    model = toy_model("sd1")
    target = next(t for t in model.targets if t.name.endswith("attn1_to_q"))
    layer = model.layer(target)
    x = torch.randn(3, 5, target.shape[1], generator=torch.Generator().manual_seed(1))
    sets = [of_kind(model, kind) for kind in ("lora", "loha", "dora")]
    alone = [AdapterSet({target: one.adapter(target.name)}) for one in sets]
    active = ActiveLoras([(one, FULL) for one in alone], {target.name: layer})
    rows = [[0.5, 1.0, 0.2], [0.5, 0.0, 0.2], [0.0, -1.0, 0.7]]
    with torch.no_grad(), active.on():
        active.weigh_unet(rows)
        together = layer(x)
        for index, row in enumerate(rows):
            active.weigh_unet([row])
            torch.testing.assert_close(together[index : index + 1], layer(x[index : index + 1]), atol=1e-5, rtol=1e-4)


def test_a_layers_work_does_not_grow_with_the_number_of_loras(
    toy_model: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("sd1")
    layers = {target.name: model.layer(target) for target in model.targets}
    counts = []
    for number in (1, 3, 5):
        sets = [create_adapters(AdapterSettings(rank=2), model.targets, seed=seed) for seed in range(number)]
        for one in sets:
            for _, adapter in one.items():
                adapter.up.data += 0.1  # type: ignore[union-attr]
        active = ActiveLoras([(one, FULL) for one in sets], layers)
        active.weigh_unet([[0.5] * number])
        active.weigh_text([0.5] * number)
        calls: list[int] = []

        def counted(*given: Tensor, real: Callable[..., Tensor] = torch.addmm, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return real(*given)

        monkeypatch.setattr(torch, "addmm", counted)
        with torch.no_grad(), active.on():
            text = model.encode_text(["a"])
            model.denoise(torch.zeros(1, 4, 6, 8), torch.tensor([500.0]), text)
        monkeypatch.undo()
        counts.append(len(calls))
    assert len(set(counts)) == 1
    assert counts[0] > 20


def test_weights_over_the_steps(toy_model: Models, write_lora: Callable[..., None], tmp_path: Path) -> None:
    """``0.8@0-0.5``: with the LoRA at 0.8 until the middle, then without; ``0@0,1@1`` rises."""
    model = toy_model("sd1")
    write_lora(model, tmp_path / "one.safetensors", 1)
    seen: list[tuple[float, ...]] = []
    weigh = ActiveLoras.weigh_unet

    def spied(self: ActiveLoras, rows: list[list[float]]) -> None:
        seen.append(tuple(row[0] for row in rows))
        weigh(self, rows)

    def weights(tag: str) -> list[float]:
        seen.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ActiveLoras, "weigh_unet", spied)
            text_to_image(
                model, settings(prompt=f"a cat <lora:one:{tag}>", steps=4, cfg_scale=1, lora_folders=[tmp_path])
            )
        return [row[0] for row in seen]

    assert weights("0:unet=0.8@0-0.5") == [0.8, 0.8, 0.0, 0.0]
    assert weights("0:unet=0.8@0.5-1") == [0.0, 0.0, 0.8, 0.8]
    assert weights("0:unet=0@0,1@1") == [0.0, 0.25, 0.5, 0.75]
    assert weights("0.8@0-0.25,0.2@0.5-0.75") == [0.8, 0.0, 0.2, 0.0]
    off = text_to_image(model, settings(prompt="a cat <lora:one:0:unet=1@0.99-1>", lora_folders=[tmp_path]))[0]
    assert torch.equal(off.latent, text_to_image(model, settings(prompt="a cat "))[0].latent)


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("<lora:x:0.8@0.5-0.2>", "ends before it begins"),
        ("<lora:x:0.8@2>", "not a share of the steps"),
        ("<lora:x:0.8@0.5,1@0.2>", "not in order"),
        ("<lora:x:0.8@0.5,1>", "names no step"),
        ("<lora:x:0.8@0-1:1>", "text encoder's weight cannot change"),
    ],
)
def test_curves_that_are_wrong(tag: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        extract_loras(tag)


def test_changing_a_unet_weight_encodes_no_text_again(
    toy_model: Models, write_lora: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model("sd1")
    write_lora(model, tmp_path / "one.safetensors", 1)
    texts: list[str] = []
    encode = model.encode_text

    def counted(given: list[str], **options: object) -> Conditioning:
        texts.extend(given)
        return encode(given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "encode_text", counted)
    prompt = "a cat {<lora:one:0.5:0.1>|<lora:one:0.5:0.9>}"
    images = text_to_image(model, settings(prompt=prompt, count=6, lora_folders=[tmp_path]))
    assert len({image.prompt.loras for image in images}) == 2
    assert len(texts) == 2, "the prompt and the negative one"
    texts.clear()
    prompt = "a cat {<lora:one:0.5:0.9>|<lora:one:0.6:0.9>}"
    text_to_image(model, settings(prompt=prompt, count=6, lora_folders=[tmp_path]))
    assert len(texts) == 4


def test_an_overwritten_file_is_noticed(toy_model: Models, write_lora: Callable[..., None], tmp_path: Path) -> None:
    model, store, tag = toy_model("sd1"), LoraStore(), LoraTag("one", LoraStrength(1.0, 1.0))
    write_lora(model, tmp_path / "one.safetensors", 1)
    first = store.load(tag, [tmp_path], model)
    assert store.load(LoraTag("one", LoraStrength(0.2, 0.5)), [tmp_path], model).adapters is first.adapters
    write_lora(model, tmp_path / "one.safetensors", 2)
    second = store.load(tag, [tmp_path], model)
    assert second.hash != first.hash
    assert second.adapters is not first.adapters


def test_how_loras_act_is_said(
    toy_path: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(toy_path("sd1"), device=CPU, prediction="epsilon")
    write_adapter_file(
        tmp_path / "x.safetensors", of_kind(model, "lora").file_tensors(), metadata={}, dtype=torch.float32
    )

    def told(**changes: object) -> list[str]:
        events: list[Event] = []
        text_to_image(model, settings(lora_folders=[tmp_path], **changes), listener=events.append)
        return [event.text for event in events if isinstance(event, Notice)]

    assert told(prompt="<lora:x:1>") == []
    assert told(prompt="<lora:x:1>", lora_mode="merge")[0].startswith("LoRAs are merged")
    assert "their weights change over the steps" in told(prompt="<lora:x:1@0-0.5>", lora_mode="merge")[0]
    assert "they differ by image" in told(prompt="{<lora:x:1>|}", count=4, lora_mode="merge")[0]
    monkeypatch.setattr(live_merge, "CALLS_THAT_PAY", 8)
    assert told(prompt="<lora:x:1>", steps=4, count=2)[0].startswith("LoRAs are merged")
    assert told(prompt="<lora:x:1>", steps=4, count=2, lora_mode="side") == []
    assert told(prompt="<lora:x:1>", steps=4, count=2, keep_file_precision=True) == []


def test_layers_that_are_missing_are_named(toy_model: Models) -> None:
    from loraloom.errors import AdapterError

    with pytest.raises(AdapterError, match="the model has no layer"):
        ActiveLoras([(of_kind(toy_model("sd1"), "lora"), FULL)], {"x": nn.Linear(1, 1)})


@pytest.mark.parametrize(
    ("family", "blocks"), [("sd1", "OUTD"), ("sd1", "BASE=0.5,MID=0,IN01=-1,OUT05=2"), ("sdxl", "INALL")]
)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_weights_by_block(toy_path: Callable[[str], Path], tmp_path: Path, family: str, blocks: str, kind: str) -> None:
    """Beside the weights and merged, as each layer's change at its own weight says; in one batch with whole ones."""
    model = load_model(toy_path(family), device=CPU, prediction="epsilon")
    adapters = of_kind(model, kind)
    if "=" not in blocks:  # presets name the blocks with attention
        adapters = AdapterSet({target: adapter for target, adapter in adapters.items() if not target.extended}).eval()
    write_adapter_file(tmp_path / "x.safetensors", adapters.file_tensors(), metadata={}, dtype=torch.float32)

    def latents(*prompts: str, mode: str = "side") -> list[Tensor]:
        folders = {"lora_folders": [tmp_path], "lora_mode": mode}
        wanted = [(prompt, "", 7) for prompt in prompts]
        return [image.latent for image in paint_each(model, settings(**folders), wanted)]

    (side,), (merged,) = (latents(f"a cat <lora:x:0.9:lbw={blocks}>", mode=mode) for mode in ("side", "merge"))
    whole, weighted = latents("a cat <lora:x:0.9>", f"a cat <lora:x:0.9:lbw={blocks}>")
    assert difference(side, merged) < 1e-3 and difference(side, weighted) < 1e-3
    assert difference(side, whole) > 1e-2
    strength = LoraStrength(blocks=parse_block_weights(blocks)).listed(model.family.preset_blocks)
    by_hand = adapters.in_blocks(strength)
    assert {target.name for target, _ in adapters.items() if strength.of(target.name)} == set(by_hand.targets)


def test_block_weights_that_are_none() -> None:
    with pytest.raises(PromptError, match="neither a preset nor a list") as error:
        extract_loras("<lora:x:1:lbw=1,2,3>")
    assert "OUTD" in (error.value.hint or "")


def test_a_mask_keeps_a_lora_to_a_part(toy_path: Callable[[str], Path], tmp_path: Path) -> None:
    """One step of Euler: white is the picture with the LoRA, black the one without, and between them the mix."""
    model = load_model(toy_path("sd1"), device=CPU)
    for name, seed in (("x", 1), ("y", 2)):
        lora = of_kind(model, "lora", seed)
        unet = AdapterSet({target: adapter for target, adapter in lora.items() if target.part == "unet"})
        write_adapter_file(tmp_path / f"{name}.safetensors", unet.file_tensors(), metadata={}, dtype=torch.float32)
    values = torch.zeros(48, 64, dtype=torch.uint8)
    values[:, :24], values[:, 24:40] = 255, 51
    Image.fromarray(values.numpy()).save(tmp_path / "left.png")
    Image.new("L", (5, 3), 255).save(tmp_path / "all.png")

    def latents(*prompts: str, steps: int = 1) -> list[Tensor]:
        options = settings(lora_folders=[tmp_path], steps=steps, cfg_scale=4)
        return [image.latent for image in paint_each(model, options, [(prompt, "blur", 7) for prompt in prompts])]

    left, everywhere = f"<lora:x:0.9:mask={tmp_path / 'left.png'}>", f"<lora:x:0.9:mask={tmp_path / 'all.png'}>"
    plain, whole, masked, all_of_it = latents("a cat", "a cat <lora:x:0.9>", f"a cat {left}", f"a cat {everywhere}")
    share = torch.tensor([1.0] * 3 + [0.2] * 2 + [0.0] * 3)
    assert difference(masked, plain + share * (whole - plain)) < 1e-4
    assert difference(all_of_it, whole) < 1e-4 and difference(whole, plain) > 1e-2
    # Two LoRAs share what both cover; one without a mask acts everywhere besides.
    other = f"<lora:y:1:mask={tmp_path / 'all.png'}>"
    with_y, both = latents("a cat <lora:y:1>", f"a cat {left} {other}")
    shares = share / (1 + share), 1 / (1 + share)
    assert difference(both, plain + shares[0] * (whole - plain) + shares[1] * (with_y - plain)) < 1e-4
    # In several steps an image does not depend on its batch.
    alone, (_, together) = latents(f"a cat {left}", steps=3)[0], latents("a dog", f"a cat {left}", steps=3)
    assert difference(alone, together) < 1e-4


def test_masks_that_are_none(toy_path: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(toy_path("sd1"), device=CPU)
    lora = of_kind(model, "lora")
    write_adapter_file(tmp_path / "x.safetensors", lora.file_tensors(), metadata={}, dtype=torch.float32)
    missing = settings(prompt=f"a <lora:x:1:mask={tmp_path / 'no.png'}>", lora_folders=[tmp_path])
    with pytest.raises(PromptError, match=r"no\.png cannot be read"):
        text_to_image(model, missing)
    (tmp_path / "large.png").write_bytes(claims(13000, 12000))
    large = settings(prompt=f"a <lora:x:1:mask={tmp_path / 'large.png'}>", lora_folders=[tmp_path])
    with pytest.raises(PromptError, match=r"large\.png cannot be read: has 13000 x 12000 pixels"):
        text_to_image(model, large)
    _, (tag,) = extract_loras(r"<lora:x:0.5:mask=C:\m\a.png:lbw=OUTD>")
    assert (tag.mask, tag.strength.unet, tag.strength.blocks and tag.strength.blocks.text) == (
        r"C:\m\a.png",
        0.5,
        "OUTD",
    )
    Image.new("L", (4, 4), 255).save(tmp_path / "m.png")
    heard: list[Event] = []
    merged = settings(prompt=f"a <lora:x:1:mask={tmp_path / 'm.png'}>", lora_folders=[tmp_path], lora_mode="merge")
    text_to_image(model, merged, listener=heard.append)
    assert any(isinstance(event, Notice) and "a part of the picture" in event.text for event in heard)
