"""Measure an exported checkpoint: reconstruction, naming, backgrounds, colours, style. Prints and writes JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from drawings import Concept, IconSet, load_sprites, read_concepts
from features import auc, background_name, features, foreground, outlined
from PIL import Image, ImageEnhance
from sheet import paint
from torch import Tensor
from train_vae import to_tensor
from world import BACKGROUNDS, Placement, Scene, render, with_article

from loraloom.models.loaded import LoadedModel, load_model
from loraloom.randomness import seed_of

Sprites = dict[str, Image.Image]
_COLOUR_WORDS = ("red", "orange", "yellow", "green", "blue", "purple")


def plain(
    sprite: Image.Image, *, side: float = 0.8, x: float = 0.5, y: float = 0.5, background: str = "white"
) -> Image.Image:
    """A drawing alone on a background."""
    thing = Placement(Concept("drawing", ("drawing",), 1.0), x, y, side)
    return render(Scene((thing,), background, BACKGROUNDS[background], ""), {"drawing": sprite})


def reconstruction_psnr(model: LoadedModel, images: list[Image.Image]) -> float:
    """Mean PSNR in dB (of 255) after encoding and decoding."""
    values = []
    for image in images:
        pixels = to_tensor(image)[None]
        restored: Tensor = model.decode_latents(model.encode_images(pixels)[0]).clamp(-1, 1)
        values.append(10 * float(torch.log10(4 / (restored - pixels).square().mean())))
    return float(np.mean(values))


class Gallery:
    """Drawings to compare with, as features."""

    def __init__(self, sprites: Sprites) -> None:
        self.codes = list(sprites)
        self.matrix = np.stack([features(plain(sprite)) for sprite in sprites.values()])

    def rank(self, image: Image.Image, code: str) -> int:
        """Place of a drawing among those most like the image, 0 is the nearest."""
        likeness = self.matrix @ features(image)
        return int((likeness > likeness[self.codes.index(code)]).sum())

    def rates(self, images: list[Image.Image], codes: list[str]) -> dict[str, float]:
        """How often the right drawing is the nearest, and among the five nearest."""
        ranks = np.array([self.rank(image, code) for image, code in zip(images, codes, strict=True)])
        return {"top1": float((ranks < 1).mean()), "top5": float((ranks < 5).mean())}


def sanity(gallery: Gallery, sprites: Sprites, codes: list[str]) -> dict[str, dict[str, float]]:
    """The same rates for real drawings that were shifted and scaled, put on other backgrounds, or recoloured."""
    changed: dict[str, list[Image.Image]] = {"shifted": [], "background": [], "recoloured": []}
    colours = list(BACKGROUNDS)
    for code in codes:
        draw = np.random.default_rng(seed_of("sanity", code))
        sprite = sprites[code]
        place = {
            "side": float(draw.uniform(0.62, 0.9)),
            "x": float(draw.uniform(0.45, 0.55)),
            "y": float(draw.uniform(0.45, 0.55)),
        }
        changed["shifted"].append(plain(sprite, **place))
        changed["background"].append(plain(sprite, background=colours[1 + draw.integers(8)]))
        toned = ImageEnhance.Color(
            ImageEnhance.Brightness(sprite.convert("RGB")).enhance(draw.uniform(0.8, 1.15))
        ).enhance(draw.uniform(0.6, 1.3))
        toned.putalpha(sprite.getchannel("A"))
        changed["recoloured"].append(plain(toned))
    return {kind: gallery.rates(images, codes) for kind, images in changed.items()}


def asked_colour_shown(image: Image.Image, colour: str) -> bool:
    """Whether the foreground's mean colour is nearest to that of the asked word among six."""
    anchors = {
        "red": (224, 55, 50),
        "orange": (246, 140, 20),
        "yellow": (252, 208, 60),
        "green": (105, 170, 60),
        "blue": (30, 110, 210),
        "purple": (160, 80, 190),
    }
    mask = foreground(image)[..., None]
    mean = (np.asarray(image, np.float32) * mask).sum((0, 1)) / max(1.0, float(mask.sum()))
    return min(_COLOUR_WORDS, key=lambda word: float(np.sum((mean - np.array(anchors[word])) ** 2))) == colour


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--noto", type=Path, required=True, help="unpacked @iconify-json/noto")
    parser.add_argument("--openmoji", type=Path, required=True, help="unpacked @iconify-json/openmoji")
    parser.add_argument("--cache", type=Path, required=True, help="folder for rasterised drawings")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file")
    parser.add_argument("--stage", type=int, default=2, help="name only things of these stages (concepts.tsv)")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(arguments.checkpoint, device=torch.device("cpu"))
    concepts = [concept for concept in read_concepts() if concept.stage <= arguments.stage]
    codes = [concept.code for concept in concepts]
    everything = IconSet(arguments.noto).codes()
    sprites = load_sprites(arguments.noto, sorted({*everything, *codes}), arguments.cache / "noto")
    world = {code: sprites[code] for code in codes}
    openmoji = load_sprites(
        arguments.openmoji, [c for c in codes if c in IconSet(arguments.openmoji)], arguments.cache / "openmoji"
    )
    results: dict[str, object] = {"concepts": len(concepts), "steps": arguments.steps, "guidance": arguments.guidance}

    unseen = [sprites[code] for number, code in enumerate(everything) if number % 25 == 0 and code not in world]
    results["psnr_db"] = {
        "held_out_noto": reconstruction_psnr(model, [plain(sprite) for sprite in unseen]),
        "world": reconstruction_psnr(model, [plain(sprite) for sprite in list(world.values())[:48]]),
        "openmoji": reconstruction_psnr(model, [plain(sprite) for sprite in list(openmoji.values())[:48]]),
    }
    print(results, flush=True)

    small, large = Gallery(world), Gallery(sprites)
    results["feature_sanity"] = {"world": sanity(small, sprites, codes), "all_noto": sanity(large, sprites, codes)}
    print(results["feature_sanity"], flush=True)

    colours = list(BACKGROUNDS)
    asked = []
    for number in range(arguments.prompts):
        concept = concepts[number % len(concepts)]
        turn = number // len(concepts)
        background = "white" if turn % 2 == 0 else colours[1 + number % (len(colours) - 1)]
        asked.append((concept, background))
    prompts = [
        f"{with_article(concept.name)} on a{'n' * (background == 'orange')} {background} background"
        for concept, background in asked
    ]
    images = paint(model, prompts, steps=arguments.steps, guidance=arguments.guidance, seed=1)
    named = [concept.code for concept, _ in asked]
    favourites = [index for index, (concept, _) in enumerate(asked) if concept.weight >= 3]
    results["naming"] = {
        f"among {len(small.codes)} of the world": small.rates(images, named),
        f"among {len(large.codes)} of Noto": large.rates(images, named),
        f"demo subjects, among {len(small.codes)} of the world": small.rates(
            [images[i] for i in favourites], [named[i] for i in favourites]
        ),
    }
    results["backgrounds_obeyed"] = float(
        np.mean([background_name(image) == background for image, (_, background) in zip(images, asked, strict=True)])
    )
    coloured = [
        (image, word)
        for image, (concept, _) in zip(images, asked, strict=True)
        if (word := concept.name.split(" ")[0]) in _COLOUR_WORDS
    ]
    results["colours_obeyed"] = {
        "rate": float(np.mean([asked_colour_shown(image, word) for image, word in coloured])),
        "prompts": len(coloured),
    }
    on_white = [outlined(image) for image, (_, background) in zip(images, asked, strict=True) if background == "white"]
    noto_style = [outlined(plain(sprite)) for sprite in world.values()]
    openmoji_style = [outlined(plain(sprite)) for sprite in openmoji.values()]
    results["outlined_share"] = {
        "base": float(np.mean(on_white)),
        "noto": float(np.mean(noto_style)),
        "openmoji": float(np.mean(openmoji_style)),
        "auc_openmoji_over_noto": auc(openmoji_style, noto_style),
        "auc_openmoji_over_base": auc(openmoji_style, on_white),
    }
    print(results, flush=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
