"""Preview images while training: the same prompts and seeds each time, the adapter in eval mode; and their sheet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from loraloom.control import Control, heed, keep_going
from loraloom.errors import FileError, SettingsError
from loraloom.events import Listener, PreviewSaved, PreviewSheetSaved
from loraloom.formats.image_info import save_image
from loraloom.generation.settings import GenerateSettings
from loraloom.generation.sheets import draw_sheet
from loraloom.generation.text_to_image import text_to_image
from loraloom.models.loaded import LoadedModel
from loraloom.reading import read_text
from loraloom.training.settings import PreviewSettings, TrainSettings
from loraloom.training.trained import Trained, View

__all__ = [
    "Moment",
    "PreviewPrompt",
    "count_pictures",
    "paint_previews",
    "parse_prompt",
    "preview_image_settings",
    "preview_prompts",
    "write_sheet",
]

_OPTION = re.compile(r"\s--([a-z]+)(?=\s|$)")
_SHEET_COLUMNS = 24
"""A longer run shows this many of its previews on the sheet, evenly spread."""
_SHEET_CELL_PX = 384


@dataclass(frozen=True)
class PreviewPrompt:
    """One line of a prompt file; what is None comes from the preview settings."""

    text: str
    negative: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    sampler: str | None = None


_OPTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "n": ("negative", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "s": ("steps", int),
    "l": ("cfg_scale", float),
    "ss": ("sampler", str),
}
"""The options that sd-scripts reads behind a prompt, with the field each sets."""


def parse_prompt(line: str, where: str, settings: PreviewSettings | None = None) -> PreviewPrompt:
    """A prompt with its options; SettingsError that names ``where`` for an option that is unknown or no number."""
    text, *rest = _OPTION.split(f" {line}")
    given: dict[str, object] = {}
    for option, value in zip(rest[::2], rest[1::2], strict=True):
        value = value.strip()
        if option not in _OPTIONS:
            known = ", ".join(f"--{name}" for name in _OPTIONS)
            raise SettingsError([f"{where}: --{option} is not an option of a preview prompt"], f"known are {known}")
        name, convert = _OPTIONS[option]
        try:
            given[name] = convert(value)
        except ValueError as error:
            raise SettingsError([f"{where}: --{option} {value!r} is not a number"], "for example --w 512") from error
    prompt = replace(PreviewPrompt(text.strip()), **given)  # type: ignore[arg-type]
    preview_image_settings(prompt, settings or PreviewSettings(), 0, (512, 512), None, where)
    return prompt


def preview_prompts(settings: PreviewSettings) -> list[PreviewPrompt]:
    """The prompts of the settings, then those of ``settings.file``: one a line, blank lines and # comments left out."""
    prompts = [parse_prompt(text, f"preview.prompts: {text!r}", settings) for text in settings.prompts]
    if settings.file is None:
        return prompts
    try:
        lines = read_text(settings.file).splitlines()
    except FileError as error:
        raise type(error)(f"preview.file: {error.problem}", error.hint) from error
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            prompts.append(parse_prompt(line, f"{settings.file}, line {number}", settings))
    return prompts


def count_pictures(settings: PreviewSettings, times: int) -> int:
    """How many previews are painted when it is time for them so often (once at least)."""
    weights = set(settings.weights)
    # Weight 0 is the checkpoint alone, which is painted once.
    return len(preview_prompts(settings)) * (len(weights - {0}) * times + (0 in weights))


def preview_image_settings(
    prompt: PreviewPrompt,
    preview: PreviewSettings,
    index: int,
    size: tuple[int, int],
    clip_skip: int | None,
    where: str,
) -> GenerateSettings:
    """What is painted for the ``index``-th prompt; ``size`` (width, height) unless prompt or settings give one.

    Raises SettingsError that names ``where`` for a value that painting does not take.
    """

    def chosen(own: object, general: object) -> object:
        return general if own is None else own

    width, height = preview.size or size
    return GenerateSettings.parse(
        {
            "prompt": prompt.text,
            "negative_prompt": chosen(prompt.negative, preview.negative_prompt),
            "width": chosen(prompt.width, width),
            "height": chosen(prompt.height, height),
            "steps": chosen(prompt.steps, preview.steps),
            "cfg_scale": chosen(prompt.cfg_scale, preview.cfg_scale),
            "sampler": chosen(prompt.sampler, preview.sampler),
            "seed": chosen(prompt.seed, preview.seed + index),
            "clip_skip": clip_skip,
            "lora_mode": "side",  # the weights in memory may be trained ones
        },
        source=where,
    )


@dataclass(frozen=True)
class Moment:
    """When previews are painted. ``best_step``: that of the best validation loss so far, 0 where none is measured."""

    epoch: int
    step: int
    by_step: bool
    steps_per_epoch: int
    best_step: int = 0

    @property
    def name(self) -> str:
        """As in the names of files: of the step for those that are painted by steps, else of the epoch."""
        return f"s{self.step:08d}" if self.by_step else f"e{self.epoch:06d}"


def paint_previews(
    model: LoadedModel,
    adapters: Trained,
    attachment: View,
    settings: TrainSettings,
    prompts: Sequence[PreviewPrompt],
    folder: Path,
    *,
    moment: Moment,
    size: tuple[int, int],
    listener: Listener,
    control: Control = keep_going,
) -> list[Path]:
    """Paint every prompt at every weight into ``folder``; ``size``: (width, height) unless the settings give one.

    Files are named by the moment (``NAME_e000003_00.png``, ``NAME_s00000500_00.png``); a weight other than 1 is added
    (``_w0.5``). Weight 0 is the checkpoint alone, the same at any time: painted once. ``control`` is heeded before each
    picture and between its steps.
    """
    preview = settings.preview
    was_training = {module: module.training for module in adapters.modules()}
    adapters.eval()
    paths = []
    try:
        for index, prompt in enumerate(prompts):
            for weight in dict.fromkeys(preview.weights):
                tail = "" if weight == 1 else f"_w{weight:g}"
                # Weight 0 is the checkpoint alone: painted once, it is the same at any step.
                if weight == 0 and any(folder.glob(f"{_literal(settings.name)}_*_{index:02d}_w0.png")):
                    continue
                heed(control)
                attachment.set_weights(unet=weight, text_encoder=weight)
                generate = preview_image_settings(prompt, preview, index, size, settings.clip_skip, prompt.text)
                image = text_to_image(model, generate, control=control)[0]
                path = folder / f"{settings.name}_{moment.name}_{index:02d}{tail}.png"
                save_image(image.image, path, image.infotext)
                paths.append(path)
                event = PreviewSaved(str(path), prompt.text, moment.step, moment.epoch, index, weight)
                listener(event)
    finally:
        # Training goes on with these adapters, whatever happened while they were painting.
        attachment.set_weights(unet=1.0, text_encoder=1.0)
        for module, training in was_training.items():
            module.training = training

    if preview.sheet and paths:
        texts = [prompt.text for prompt in prompts]
        columns = moment.steps_per_epoch, moment.best_step
        sheet = write_sheet(folder, settings.name, texts, preview.weights, *columns)
        listener(PreviewSheetSaved(str(sheet), moment.step))
    return paths


def _literal(text: str) -> str:
    """The text as a glob pattern that means itself."""
    return re.sub(r"([\[*?])", r"[\1]", text)


def write_sheet(
    folder: Path,
    name: str,
    prompts: Sequence[str],
    weights: Sequence[float],
    steps_per_epoch: int,
    best_step: int = 0,
) -> Path:
    """``sheet.png`` of all previews in ``folder``: a row for each prompt and weight, a column for each time.

    The column of ``best_step`` is marked, if there is one.
    """
    pattern = re.compile(re.escape(name) + r"_([es])(\d+)_(\d+)(?:_w(-?[\d.e+-]+))?\.png")
    found: dict[tuple[str, int], dict[tuple[int, float], Path]] = {}
    for path in folder.iterdir():
        if match := pattern.fullmatch(path.name):
            kind, number, index, weight = match.groups()
            cell = int(index), float(weight) if weight else 1.0
            found.setdefault((kind, int(number)), {})[cell] = path

    at = {(kind, number): number * (steps_per_epoch if kind == "e" else 1) for kind, number in found}
    columns = list(_spread(sorted(found, key=lambda column: (at[column], column)), _SHEET_COLUMNS))
    rows = [(index, float(f"{weight:g}")) for index in range(len(prompts)) for weight in dict.fromkeys(weights)]
    # The picture without the LoRA is there once, under whatever column it was painted; it must not be thinned out.
    alone = {cell: path for cells in found.values() for cell, path in cells.items() if cell[1] == 0}
    cells = [
        [
            _thumbnail(alone.get(row) if row[1] == 0 and not x else found[column].get(row))
            for x, column in enumerate(columns)
        ]
        for row in rows
    ]

    several = len(set(weights)) > 1 or set(weights) != {1.0}
    sheet = draw_sheet(
        cells,
        rows=[prompts[index] + (f"\nweight {weight:g}" if several else "") for index, weight in rows],
        columns=[
            _label(*column) + ("\nbest validation loss" if best_step and at[column] == best_step else "")
            for column in columns
        ],
        title=name,
    )
    path = folder / "sheet.png"
    save_image(sheet, path, "")
    return path


def _label(kind: str, number: int) -> str:
    if number == 0:
        return "before training"
    return f"epoch {number}" if kind == "e" else f"step {number}"


def _spread(columns: Sequence[tuple[str, int]], count: int) -> Iterator[tuple[str, int]]:
    """At most ``count`` of the columns, the first and the last among them."""
    last = len(columns) - 1
    if last < count:
        yield from columns
        return
    for index in range(count):
        yield columns[round(index * last / (count - 1))]


def _thumbnail(path: Path | None) -> Image.Image | None:
    """A preview small enough for a sheet; None for one that is not there (a person may delete them)."""
    if path is None:
        return None
    with suppress(OSError), Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail((_SHEET_CELL_PX, _SHEET_CELL_PX))
        return small
    return None
