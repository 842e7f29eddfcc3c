"""Image-to-image and inpainting on toys: how many steps, what stays, what inpainting models see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loraloom.diffusion.schedules import sampler_sigmas
from loraloom.errors import CheckpointError, FileFormatError, LoraloomError, MissingFileError, SettingsError
from loraloom.formats.image_info import parse_parameters
from loraloom.formats.tensors import write_tensors
from loraloom.generation.init_image import pixels_of, prepare_init_image
from loraloom.generation.passes import steps_of
from loraloom.generation.sampling import level_options, plan_of
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import GeneratedImage, text_to_image
from loraloom.models.conditioning import Conditioning
from loraloom.models.family import FAMILIES
from loraloom.models.loaded import LoadedModel, load_model
from picture_zoo import claims

Models = Callable[[str], LoadedModel]
CPU = torch.device("cpu")


def settings(**changes: object) -> GenerateSettings:
    base = {"prompt": "a cat", "width": 64, "height": 48, "steps": 4, "seed": 7, "lora_folders": [], "sampler": "Euler"}
    return GenerateSettings.parse({**base, **changes})


def painted(model: LoadedModel, **changes: object) -> GeneratedImage:
    return text_to_image(model, settings(**changes))[0]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(numbers).resize((64, 48), Image.Resampling.BICUBIC).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    image = Image.new("L", (64, 48), 0)
    image.paste(255, (40, 0, 64, 48))
    image.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def levels_seen(model: LoadedModel, monkeypatch: pytest.MonkeyPatch, **changes: object) -> tuple[list[float], list]:  # type: ignore[type-arg]
    """(Noise level of every model call, the scaled inputs)."""
    seen: list[float] = []
    inputs: list[torch.Tensor] = []
    denoise = model.denoise

    def spied(noisy: torch.Tensor, timesteps: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        seen.append(float(model.schedule.timestep_to_sigma(timesteps)[0]))
        inputs.append(noisy.clone())
        return denoise(noisy, timesteps, conditioning)

    monkeypatch.setattr(model, "denoise", spied)
    text_to_image(model, settings(**changes))
    monkeypatch.undo()
    return seen, inputs


@pytest.mark.parametrize(
    ("strength", "all_steps", "planned", "taken"),
    [(0.5, False, 8, 5), (1.0, False, 8, 8), (0.1, False, 8, 1), (0.5, True, 16, 8), (0.25, True, 32, 8)],
)
def test_steps_are_the_web_uis(
    toy_model: Models,
    picture: Path,
    monkeypatch: pytest.MonkeyPatch,
    strength: float,
    all_steps: bool,
    planned: int,
    taken: int,
) -> None:
    """t_enc = int(min(strength, 0.999) * steps), from the level before it; with all steps, steps / strength."""
    model = toy_model("sd1")
    changes = {"init_image": picture, "denoising_strength": strength, "all_steps": all_steps, "steps": 8}
    seen, inputs = levels_seen(model, monkeypatch, cfg_scale=1, **changes)
    wanted = settings(steps=8)
    sigmas = sampler_sigmas(model.schedule, plan_of(wanted), planned, level_options(wanted, ()))
    assert len(seen) == taken == steps_of(8, strength, all_steps=all_steps)
    assert seen == pytest.approx(sigmas[planned - taken : planned].tolist(), rel=1e-4)
    latent, _ = model.encode_images(pixels_of(Image.open(picture)))
    noise = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(7))
    first = float(sigmas[planned - taken])
    torch.testing.assert_close(inputs[0][0], (latent[0] + first * noise) / (1 + first**2) ** 0.5, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["DDIM", "DPM++ 2M SDE", "Heun", "UniPC", "DPM fast", "DDIM CFG++"])
def test_every_kind_of_sampler_starts_from_a_picture(toy_model: Models, picture: Path, sampler: str) -> None:
    model = toy_model("sd1")
    near = painted(model, init_image=picture, denoising_strength=0.05, sampler=sampler, steps=20)
    far = painted(model, init_image=picture, denoising_strength=0.9, sampler=sampler, steps=20)
    latent, _ = model.encode_images(pixels_of(Image.open(picture)))
    distances = [float((image.latent - latent[0]).norm()) for image in (near, far)]
    assert distances[0] < 0.7 * distances[1]


def test_strength_zero_is_the_picture(toy_model: Models, picture: Path) -> None:
    model = toy_model("sd1")
    latent, _ = model.encode_images(pixels_of(Image.open(picture)))
    image = painted(model, init_image=picture, denoising_strength=0)
    assert torch.equal(image.latent, latent[0])
    assert parse_parameters(image.infotext).fields["Denoising strength"] == "0"


@pytest.mark.parametrize("content", ["original", "fill", "noise", "nothing"])
def test_what_the_mask_covers_not_stays(toy_model: Models, picture: Path, mask: Path, content: str) -> None:
    model = toy_model("sd1")
    image = painted(model, init_image=picture, mask=mask, mask_blur=2, mask_content=content)
    before, after = np.asarray(Image.open(picture)), np.asarray(image.image)
    assert np.array_equal(before[:, :30], after[:, :30])
    assert not np.array_equal(before[:, 44:], after[:, 44:])
    assert parse_parameters(image.infotext).fields["Masked content"].split()[-1] == content
    latent, _ = model.encode_images(pixels_of(Image.open(picture)))
    if content != "fill":
        assert torch.equal(image.latent[:, :, :5], latent[0][:, :, :5])
    turned = painted(model, init_image=picture, mask=mask, mask_blur=2, mask_content=content, mask_invert=True)
    assert np.array_equal(before[:, 50:], np.asarray(turned.image)[:, 50:])


def test_contents_of_the_mask_differ(toy_model: Models, picture: Path, mask: Path) -> None:
    images = [
        painted(toy_model("sd1"), init_image=picture, mask=mask, mask_content=content, denoising_strength=0.3).latent
        for content in ("original", "fill", "noise", "nothing")
    ]
    assert all(not torch.equal(a, b) for index, a in enumerate(images) for b in images[:index])


def test_the_masks_surroundings_alone(toy_model: Models, tmp_path: Path) -> None:
    """Of a large picture only a part is painted, in full size, and put back."""
    model = toy_model("sd1")
    Image.effect_noise((200, 160), 60).convert("RGB").save(tmp_path / "large.png")
    mask = Image.new("L", (200, 160), 0)
    mask.paste(255, (150, 20, 170, 40))
    mask.save(tmp_path / "spot.png")
    changes = {"mask": tmp_path / "spot.png", "inpaint_area": "mask", "inpaint_padding": 8, "mask_blur": 0}
    image = painted(model, init_image=tmp_path / "large.png", **changes)
    assert image.image.size == (200, 160)
    assert image.latent.shape == (4, 6, 8)
    changed = (np.asarray(image.image) != np.asarray(Image.open(tmp_path / "large.png"))).any(axis=2)
    rows, columns = np.where(changed)
    assert (columns.min(), rows.min()) >= (150, 20)
    assert columns.max() < 170
    assert rows.max() < 40
    assert changed[20:40, 150:170].mean() > 0.9


def inpainting_toy(folder: Path, channels: int) -> LoadedModel:
    tensors = FAMILIES.load("sd1")().toy(seed=1, channels=32, text_width=32, text_layers=2, vae_channels=32)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    more = torch.randn(tensors[name].shape[0], channels - 4, 3, 3, generator=torch.Generator().manual_seed(2))
    tensors[name] = torch.cat([tensors[name], more * 0.1], dim=1)
    write_tensors(folder / "inpainting.safetensors", tensors)
    return load_model(folder / "inpainting.safetensors", device=CPU, prediction="epsilon")


def test_inpainting_models_see_mask_and_picture(
    tmp_path: Path, picture: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine channels: latents, mask, the picture without what is masked (as diffusers puts them together)."""
    model = inpainting_toy(tmp_path, 9)
    _, inputs = levels_seen(model, monkeypatch, init_image=picture, mask=mask, mask_blur=0)
    covered = torch.zeros(1, 1, 48, 64)
    covered[..., 40:] = 1
    hidden, _ = model.encode_images(pixels_of(Image.open(picture)) * (1 - covered))
    assert {row.shape[1] for row in inputs} == {9}
    assert torch.equal(inputs[0][0, 4], covered[0, 0, ::8, ::8])
    torch.testing.assert_close(inputs[0][0, 5:], hidden[0], atol=1e-5, rtol=1e-4)
    _, inputs = levels_seen(model, monkeypatch)
    nothing, _ = model.encode_images(torch.zeros(1, 3, 48, 64))
    assert inputs[0][0, 4].min() == 1
    torch.testing.assert_close(inputs[0][0, 5:], nothing[0], atol=1e-5, rtol=1e-4)


def test_editing_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="takes 8 channels"):
        painted(inpainting_toy(tmp_path, 8))


@pytest.mark.parametrize(("mode", "corner"), [("crop", (255, 255, 255)), ("stretch", (255, 0, 0)), ("fill", None)])
def test_pictures_of_another_shape(
    toy_model: Models, tmp_path: Path, mode: str, corner: tuple[int, int, int] | None
) -> None:
    """A wide picture with red ends and a white middle."""
    wide = Image.new("RGB", (160, 40), "red")
    wide.paste("white", (40, 0, 120, 40))
    wide.save(tmp_path / "wide.png")
    black = Image.new("L", (160, 40), 0)
    black.paste(255, (79, 19, 81, 21))
    black.save(tmp_path / "mask.png")
    image = painted(
        toy_model("sd1"), init_image=tmp_path / "wide.png", mask=tmp_path / "mask.png", mask_blur=0, resize_mode=mode
    )
    assert image.image.size == (64, 48)
    if corner is not None:
        assert image.image.getpixel((0, 0)) == corner
    else:
        assert image.image.getpixel((3, 24)) == (255, 0, 0)
        assert image.image.getpixel((32, 34))[0] == 255  # type: ignore[index]


def test_transparent_parts_are_white(toy_model: Models, tmp_path: Path) -> None:
    """The colours under transparency are nobody's: white is what other programs lay such pictures on."""
    Image.new("RGBA", (64, 48), (200, 10, 10, 0)).save(tmp_path / "clear.png")
    settings = GenerateSettings.parse({"prompt": "x", "init_image": tmp_path / "clear.png"})
    init = prepare_init_image(toy_model("sd1"), settings, (64, 48))
    assert init is not None and init.picture.getpixel((5, 5)) == (255, 255, 255)


def test_bad_pictures(toy_model: Models, tmp_path: Path, picture: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (64, 48), 0).save(tmp_path / "black.png")
    (tmp_path / "large.png").write_bytes(claims(13000, 12000))
    cases: list[tuple[dict[str, object], type[LoraloomError], str]] = [
        ({"init_image": tmp_path / "gone.png"}, MissingFileError, "does not exist"),
        ({"init_image": tmp_path / "text.png"}, FileFormatError, "text.png: is not an image"),
        ({"init_image": tmp_path / "large.png"}, FileFormatError, "13000 x 12000 pixels, more than max_megapixels=128"),
        ({"init_image": picture, "mask": tmp_path / "large.png"}, FileFormatError, "13000 x 12000 pixels"),
        ({"init_image": picture, "mask": tmp_path}, FileFormatError, "is a folder"),
        ({"init_image": picture, "mask": tmp_path / "black.png"}, SettingsError, "leaves nothing to paint"),
        ({"mask": picture}, SettingsError, "mask needs init_image"),
        ({"init_image": picture, "hires_scale": 2}, SettingsError, "high-resolution pass starts from text"),
    ]
    for changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            painted(toy_model("sd1"), **changes)
