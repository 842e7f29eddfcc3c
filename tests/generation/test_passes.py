"""The high-resolution pass, and the autoencoder in tiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from loraloom import studio
from loraloom.errors import SettingsError
from loraloom.events import Event, Notice, SamplerStepped
from loraloom.formats.image_info import parse_parameters
from loraloom.generation.decoding import decode, encode, tiled
from loraloom.generation.init_image import pixels_of
from loraloom.generation.passes import hires_settings, hires_size
from loraloom.generation.recall import recall
from loraloom.generation.settings import HIRES_UPSCALERS, GenerateSettings
from loraloom.generation.text_to_image import paint, text_to_image
from loraloom.models.loaded import LoadedModel, load_model
from loraloom.studio.demo import make_checkpoint

Models = Callable[[str], LoadedModel]


def settings(**changes: object) -> GenerateSettings:
    base = {"prompt": "a cat", "width": 64, "height": 48, "steps": 3, "seed": 7, "lora_folders": [], "sampler": "Euler"}
    return GenerateSettings.parse({**base, **changes})


def test_the_size_of_the_second_pass() -> None:
    size = (512, 768)
    assert hires_size(settings(hires_scale=1.5), size) == (768, 1152)
    assert hires_size(settings(hires_scale=1.3), size) == (664, 992)
    assert hires_size(settings(hires_width=1024), size) == (1024, 1536)
    assert hires_size(settings(hires_height=1024, hires_width=512), size) == (512, 1024)
    with pytest.raises(SettingsError, match="two ways"):
        settings(hires_scale=2, hires_width=512)


@pytest.mark.parametrize("upscaler", HIRES_UPSCALERS)
def test_every_upscaler_paints_and_says_so(toy_model: Models, upscaler: str) -> None:
    model = toy_model("sd1")
    (image,) = text_to_image(model, settings(hires_scale=2, hires_upscaler=upscaler.upper(), steps=1))
    assert image.image.size == (128, 96)
    fields = parse_parameters(image.infotext).fields
    assert fields["Hires upscaler"] == upscaler
    assert fields["Size"] == "64x48"


def test_the_second_pass_has_what_is_its_own(toy_model: Models) -> None:
    model = toy_model("sd1")
    own = {"hires_steps": 2, "hires_sampler": "Heun", "hires_cfg_scale": 3, "hires_prompt": "a dog", "hires_scale": 1.5}
    base = settings(**own, denoising_strength=0.4)
    second = hires_settings(base, (96, 72))
    assert (second.steps, second.sampler, second.cfg_scale, second.prompt) == (2, "Heun", 3, "a dog")
    events: list[Event] = []
    (image,) = text_to_image(model, base, listener=events.append)
    steps = [(event.step, event.steps) for event in events if isinstance(event, SamplerStepped)]
    assert steps == [(step, 5) for step in (1, 2, 3, 4, 5)]
    again = GenerateSettings.parse({**recall(parse_parameters(image.infotext)).settings, "lora_folders": []})
    (same,) = text_to_image(model, again)
    assert torch.equal(image.latent, same.latent)
    for name, value in (("hires_prompt", None), ("hires_cfg_scale", None), ("hires_steps", 0), ("hires_sampler", None)):
        (other,) = text_to_image(model, base.model_copy(update={name: value}))
        assert not torch.equal(image.latent, other.latent), name


def test_a_batch_does_not_change_the_second_pass(toy_model: Models) -> None:
    model = toy_model("sd1")
    together = text_to_image(model, settings(hires_scale=1.5, count=2, batch_size=2, sampler="Euler a"))
    (alone,) = text_to_image(model, settings(hires_scale=1.5, seed=8, sampler="Euler a"))
    torch.testing.assert_close(together[1].latent, alone.latent, atol=1e-4 * float(alone.latent.std()), rtol=0)


def test_a_listener_can_watch_and_end_it(toy_model: Models) -> None:
    seen: list[tuple[int, Image.Image]] = []

    def watch(step: int, look: Callable[[], Image.Image]) -> None:
        seen.append((step, look()))
        if step == 2:
            raise KeyboardInterrupt

    images = paint(toy_model("sd1"), settings(count=2), watch=watch)
    with pytest.raises(KeyboardInterrupt):
        next(images)
    assert [step for step, _ in seen] == [1, 2]
    assert seen[0][1].size == (64, 48)
    assert seen[0][1].tobytes() != seen[1][1].tobytes()


# ------------------------------------------------------------------------------------------------ tiles


def test_tiles_of_a_pointwise_function_are_the_function() -> None:
    values = torch.randn(2, 4, 150, 201, generator=torch.Generator().manual_seed(1))
    grown = tiled(values, lambda tile: tile.repeat_interleave(2, 2).repeat_interleave(2, 3) * 3, channels=4, step_out=2)
    torch.testing.assert_close(grown, values.repeat_interleave(2, 2).repeat_interleave(2, 3) * 3)
    small = tiled(values[..., :144, :200], lambda tile: tile[:, :, ::8, ::8], channels=4, step_in=8)
    torch.testing.assert_close(small, values[..., :144:8, :200:8])


def test_tiles_show_no_seams(tmp_path: Path) -> None:
    """A real autoencoder on drawings side by side: nearly the same, and no steeper where tiles meet.

    Not quite the same: its norms are of all that they see.
    """
    model = load_model(make_checkpoint(tmp_path / "base.safetensors"), device=torch.device("cpu"))
    drawings = sorted((Path(studio.__file__).parent / "drawings").glob("*/*.png"))[:6]
    pictures = [pixels_of(Image.open(path).convert("RGB").resize((128, 128))) for path in drawings]
    picture = torch.cat(pictures, dim=3)
    with torch.no_grad():
        latents = encode(model, picture)
        tiles = encode(model, picture, tiling=True)
        whole, parts = decode(model, latents), decode(model, latents, tiling=True)
    assert float((latents - tiles).abs().mean() / latents.std()) < 0.05
    assert float((whole - parts).abs().mean()) < 0.03
    steps, usual = ((image[..., 1:] - image[..., :-1]).abs().mean(dim=(0, 1, 2)) for image in (parts, whole))
    assert float((steps - usual)[250:530].max()) < 0.05, "tiles end at 512 and begin at 256"


def test_memory_that_runs_out_is_answered_by_tiles(toy_model: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_model("sd1")
    latents = torch.randn(1, 4, 6, 100, generator=torch.Generator().manual_seed(1))
    real = model.decode_latents

    def small(values: torch.Tensor) -> torch.Tensor:
        if values.shape[-1] > 64:
            raise torch.OutOfMemoryError
        return real(values)

    monkeypatch.setattr(model, "decode_latents", small)
    events: list[Event] = []
    with torch.no_grad():
        assert decode(model, latents, listener=events.append).shape == (1, 3, 48, 800)
    assert [event.text.split(":")[0] for event in events if isinstance(event, Notice)] == [
        "not enough memory to decode the picture whole"
    ]
    with pytest.raises(torch.OutOfMemoryError):
        decode(model, latents, tiling=False)
