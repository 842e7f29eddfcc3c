"""From what a person typed to what one image is painted from: comments, styles, choices, LoRA tags."""

from __future__ import annotations

from dataclasses import dataclass

from loraloom.generation.prompts.comments import strip_comments
from loraloom.generation.prompts.styles import apply_styles, find_styles
from loraloom.generation.prompts.tags import LoraTag, extract_loras
from loraloom.generation.prompts.wildcards import WildcardFolders, make_choices
from loraloom.generation.settings import GenerateSettings

__all__ = ["ImagePrompt", "PromptReader"]


@dataclass(frozen=True)
class ImagePrompt:
    """The prompts of one image."""

    seed: int
    """What its choices are drawn by."""
    prompt: str
    """All choices made; the LoRA tags are still in it. This is what is written into the image."""
    negative_prompt: str
    text: str
    """The prompt without its LoRA tags."""
    negative_text: str
    loras: tuple[LoraTag, ...]
    ignored_loras: tuple[LoraTag, ...]
    """Tags of the negative prompt, which do nothing."""


class PromptReader:
    """Reads the prompts of some settings for one image after another.

    Raises PromptError for a style, a wildcard file or a weight of a LoRA that is wrong, and FileFormatError or
    MissingFileError for files that cannot be read: styles at once, the rest when a prompt is read.
    """

    def __init__(self, settings: GenerateSettings) -> None:
        styles = find_styles(settings.styles, settings.style_files)
        self._prompts = tuple(
            strip_comments(apply_styles(strip_comments(prompt), pieces))
            for prompt, pieces in (
                (settings.prompt, [style.prompt for style in styles]),
                (settings.negative_prompt, [style.negative_prompt for style in styles]),
            )
        )
        self._folders = WildcardFolders(settings.wildcard_folders) if settings.dynamic_prompts else None

    def read(self, seed: int) -> ImagePrompt:
        """The prompts of the image with this seed."""
        prompt, negative = self._prompts
        if self._folders is not None:
            prompt = make_choices(prompt, self._folders, seed, "prompt")
            negative = make_choices(negative, self._folders, seed, "negative prompt")
        text, loras = extract_loras(prompt)
        negative_text, ignored = extract_loras(negative)
        return ImagePrompt(seed, prompt, negative, text, negative_text, loras, ignored)
