"""Preview images while training: the same prompts and seeds each time, the adapter in eval mode."""

from __future__ import annotations

from pathlib import Path

from loraloom.adapters.attach import AdapterSet
from loraloom.events import Listener, PreviewSaved
from loraloom.formats.image_info import save_image
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.text_to_image import text_to_image
from loraloom.models.loaded import LoadedModel
from loraloom.training.settings import TrainSettings

__all__ = ["paint_previews"]


def paint_previews(
    model: LoadedModel,
    adapters: AdapterSet,
    settings: TrainSettings,
    folder: Path,
    *,
    epoch: int,
    step: int,
    size: tuple[int, int],
    listener: Listener,
) -> list[Path]:
    """Paint every preview prompt into ``folder``; ``size`` is (width, height) unless the settings give one."""
    preview = settings.preview
    width, height = preview.size or size
    was_training = adapters.training
    adapters.eval()
    paths = []
    try:
        for index, prompt in enumerate(preview.prompts):
            image = text_to_image(
                model,
                GenerateSettings(
                    prompt=prompt,
                    negative_prompt=preview.negative_prompt,
                    width=width,
                    height=height,
                    steps=preview.steps,
                    cfg_scale=preview.cfg_scale,
                    sampler=preview.sampler,
                    seed=preview.seed + index,
                    clip_skip=settings.clip_skip,
                ),
            )[0]
            path = folder / f"{settings.name}_e{epoch:06d}_{index:02d}.png"
            save_image(image.image, path, image.infotext)
            paths.append(path)
            listener(PreviewSaved(path=str(path), prompt=prompt, step=step, epoch=epoch))
    finally:
        adapters.train(was_training)
    return paths
