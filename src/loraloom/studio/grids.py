"""Grids: images over two or three axes, any setting, LoRA, weight, epoch, prompt or checkpoint against any other.

The folder of a grid is its record: ``images/`` (each named by what made it), ``sheet.png`` and ``index.html``. The same
command again paints what is missing, and a longer axis only what is new.
"""

from __future__ import annotations

import csv
import hashlib
import html
import itertools
import json
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraloom.actions import Action, Sentence
from loraloom.control import Control, heed, keep_going
from loraloom.errors import SettingsError, nearest
from loraloom.events import ImageSaved, Listener, Notice, WeightsSaved, ignore
from loraloom.formats.files import make_folder, write_text
from loraloom.generation.settings import GenerateSettings
from loraloom.settings import apply_overrides
from loraloom.studio.painter import Loading, Painter

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AXIS_KINDS", "Axis", "Cell", "GridResult", "plan_grid", "read_axis", "run_grid"]

AXIS_KINDS = {
    "lora": "LoRA files by name or path; none for no LoRA",
    "weight": "weight of the LoRA of an axis lora or epoch, else of every LoRA in the prompt",
    "unet_weight": "the same for the U-Net alone",
    "te_weight": "the same for the text encoder alone",
    "epoch": "the LoRAs that a training run saved, by epoch; all for every one (needs the run)",
    "replace": "words of the prompt: the first is searched for in it and replaced by the others",
    "checkpoint": "checkpoint files",
}
"""Axes beside the settings of a picture."""
_RANGE = re.compile(r"(-?[\d.]+)\s*-\s*(-?[\d.]+)(?:\s*\(\s*([+-]?[\d.]+)\s*\)|\s*\[\s*(\d+)\s*\])?", re.ASCII)
_TAG = re.compile(r"<(lora|lyco):([^<>:]*)([^<>]*)>")
_LARGEST_SHEET = 32_000
"""Pixels of a sheet's side, beyond which its images are made smaller: viewers give up there."""


@dataclass(frozen=True)
class Axis:
    """What changes along one direction of a grid, and its values as text."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One image of a grid: where it stands (column, row, page), what makes it, the file it is in."""

    place: tuple[int, int, int]
    checkpoint: Path
    settings: GenerateSettings
    file: str


@dataclass(frozen=True)
class GridResult:
    """What a grid came to. ``painted`` counts the images that were not there yet."""

    folder: Path
    sheets: tuple[Path, ...]
    page: Path
    cells: tuple[Cell, ...]
    painted: int


def read_axis(text: str) -> Axis:
    """``steps=10,20,30``, ``weight=0-1 (+0.25)``, ``cfg_scale=3-9 [4]``, ``sampler="Euler a",Heun``; SettingsError."""
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    known = [*AXIS_KINDS, *(key for key in GenerateSettings.model_fields if key not in _NO_AXES)]
    if not equals or name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close[0]}?" if close else "for example steps=10,20,30"
        raise SettingsError([f"{text!r} is not an axis"], hint)
    parts = next(csv.reader([values], skipinitialspace=True), [])
    found = [one for part in parts for one in _expanded(part.strip())]
    if not found or not any(found):
        raise SettingsError([f"the axis {name} has no values"], "write them with commas between: steps=10,20,30")
    return Axis(name, tuple(found))


_NO_AXES = frozenset({"output_folder", "count", "batch_size", "device", "lora_folders", "format", "preview_every"})


def _expanded(value: str) -> Iterator[str]:
    """A range of numbers one after another: ``1-5``, ``1-5 (+2)``, ``1-10 [4]`` (four of them, evenly spread)."""
    match = _RANGE.fullmatch(value)
    # What only looks like a range (1.2.3-4) is a value like any other: the setting says whether it takes it.
    try:
        first, last = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
        stride = float(match[3]) if match and match[3] else 1.0 if first <= last else -1.0
    except ValueError:
        match = None
    if match is None:
        yield value
        return

    if match[4]:
        count = int(match[4])
        numbers = [first + (last - first) * index / max(count - 1, 1) for index in range(count)]
    else:
        count = int((last - first) / stride + 1e-9) + 1 if stride and (last - first) * stride >= 0 else 0
        numbers = [first + stride * index for index in range(count)]
    if not numbers:
        raise SettingsError([f"the range {value} holds no number"], "write 0-1 (+0.25), or 5-1 (-1)")
    yield from (f"{number:.6g}" for number in numbers)


# ------------------------------------------------------------------------------------------------ planning


def plan_grid(
    checkpoint: Path, settings: Mapping[str, Any], axes: Sequence[Axis], *, run: Path | None = None
) -> tuple[list[Axis], list[Cell]]:
    """The axes with what ``all`` and a run stand for, and every cell, each with settings that were checked.

    Raises SettingsError for axes that do not go together or values that a setting does not take.
    """
    if not 1 <= len(axes) <= 3:
        raise SettingsError(["a grid has one to three axes"], "-x steps=10,20 -y seed=1,2 -z sampler=...")
    names = [axis.name for axis in axes]
    if len(set(names)) < len(names):
        raise SettingsError([f"two axes are {names[-1]}"], "each axis needs a setting of its own")
    if {"lora", "epoch"} <= set(names):
        raise SettingsError(["the axes lora and epoch both say which LoRA is used"], "take one of them")

    files = _files_of_run(run) if "epoch" in names else {}
    axes = [_every_epoch(axis, files) if axis.name == "epoch" else axis for axis in axes]
    # One seed for all, or the cells would differ in more than their axes.
    base = {**settings, "seed": settings.get("seed", 1)}
    cells = []
    # Page by page and row by row, as they are laid out; an axis that is not there has one place.
    sizes = [range(len(axis.values)) for axis in axes] + [range(1)] * (3 - len(axes))
    for place in itertools.product(*reversed(sizes)):
        column, row, page = reversed(place)
        chosen = {axis.name: axis.values[index] for axis, index in zip(axes, (column, row, page), strict=False)}
        first = {axis.name: axis.values[0] for axis in axes}
        cells.append(_cell((column, row, page), checkpoint, base, chosen, first, files))
    return axes, cells


def _cell(
    place: tuple[int, int, int],
    checkpoint: Path,
    base: Mapping[str, Any],
    chosen: Mapping[str, str],
    first: Mapping[str, str],
    files: Mapping[str, Path],
) -> Cell:
    data = dict(base)
    for name, value in chosen.items():
        if name not in AXIS_KINDS:
            data = apply_overrides({**data, name: None}, [f"{name}={_as_toml(value)}"])
    if "replace" in chosen:
        data = _replaced(data, first["replace"], chosen["replace"])
    lora = str(files[chosen["epoch"]]) if "epoch" in chosen else chosen.get("lora", "")
    data["prompt"] = _with_lora(str(data.get("prompt", "")), lora, chosen)
    used = Path(chosen.get("checkpoint", checkpoint))
    settings = GenerateSettings.parse({**data, "count": 1}, source=", ".join(f"{n}={v}" for n, v in chosen.items()))
    return Cell(place, used, settings, f"images/{_digest(used, settings)}.{settings.format}")


def _as_toml(value: str) -> str:
    return value if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?|true|false", value) else json.dumps(value, ensure_ascii=False)


def _replaced(data: Mapping[str, Any], wanted: str, value: str) -> dict[str, Any]:
    texts = {name: str(data.get(name) or "") for name in ("prompt", "negative_prompt")}
    if not any(wanted in text for text in texts.values()):
        raise SettingsError([f"the axis replace: {wanted!r} is not in the prompt"], "its first value must be in it")
    return {**data, **{name: text.replace(wanted, value) for name, text in texts.items()}}


def _with_lora(prompt: str, lora: str, chosen: Mapping[str, str]) -> str:
    """The prompt with the tag of a LoRA behind it, or with other weights in the tags that it has."""
    weights = [chosen.get(name, chosen.get("weight")) for name in ("te_weight", "unet_weight")]
    if lora and lora.casefold() != "none":
        te, unet = (weight if weight is not None else "1" for weight in weights)
        return f"{prompt} <lora:{lora}:{te}:{unet}>"
    if lora or weights == [None, None]:
        return prompt
    if not _TAG.search(prompt):
        raise SettingsError(["an axis weighs LoRAs, but the prompt has none"], "write <lora:name:1> or -y lora=...")

    def weighed(match: re.Match[str]) -> str:
        from loraloom.generation.prompts import extract_loras

        (tag,) = extract_loras(match[0])[1]
        te, unet = weights[0] or f"{tag.strength.text_encoder:g}", weights[1] or f"{tag.strength.unet:g}"
        return f"<{match[1]}:{match[2]}:{te}:{unet}>"

    return _TAG.sub(weighed, prompt)


def _files_of_run(run: Path | None) -> dict[str, Path]:
    """The LoRA that a run saved last in each epoch."""
    from loraloom.studio.runs.log import RunLog

    if run is None:
        raise SettingsError(["the axis epoch needs the run that saved them"], Sentence(Action.NAME_RUN))
    saved = [event for event in RunLog(run).events() if isinstance(event, WeightsSaved)]
    paths = {str(event.epoch): _in_run(run, event.path) for event in saved}
    found = {epoch: path for epoch, path in paths.items() if path.is_file()}
    if not found:
        raise SettingsError([f"{run} saved no LoRA that is still there"], "train with saving.every_epochs=1")
    return found


def _in_run(run: Path, recorded: str) -> Path:
    path = Path(recorded)
    return path if path.is_file() else run / "weights" / path.name


def _every_epoch(axis: Axis, files: Mapping[str, Path]) -> Axis:
    values = tuple(files) if axis.values == ("all",) else axis.values
    missing = [value for value in values if value not in files]
    if missing:
        raise SettingsError([f"the run saved no LoRA in epoch {missing[0]}"], f"it did in {', '.join(files)}")
    return Axis(axis.name, values)


def _digest(checkpoint: Path, settings: GenerateSettings) -> str:
    """A name for the image: equal when all that makes it is, files by what they are and not only by name."""
    from loraloom.generation.loras import find_lora
    from loraloom.generation.prompts import PromptReader

    data = settings.model_dump(mode="json", exclude=set(_NO_AXES) | {"low_memory", "lora_mode"})
    files = [checkpoint, *(path for path in (settings.init_image, settings.mask, settings.vae) if path)]
    for tag in PromptReader(settings).read(settings.seed).loras:
        files.append(find_lora(tag.name, settings.lora_folders))
    stamps = []
    for file in files:
        if not file.exists():
            raise SettingsError([f"{file} does not exist"], "check the path")
        status = file.stat()
        stamps.append([str(file.resolve()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps([data, stamps], sort_keys=True).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------ painting


def run_grid(
    folder: Path,
    axes: Sequence[Axis],
    cells: Sequence[Cell],
    *,
    title: str = "",
    batch_size: int = 4,
    painter: Painter | None = None,
    listener: Listener = ignore,
    control: Control = keep_going,
) -> GridResult:
    """Paint the cells that are not in ``folder`` yet, several in one pass where only prompt, LoRAs or seed differ.

    Then the sheets (one for each value of the third axis) and the page are written. ``painter`` keeps the model for
    later; ``control`` is heeded between two steps, and images that are finished stay.
    """
    missing = {cell.file: cell for cell in cells if not (folder / cell.file).is_file()}
    done = len({cell.file for cell in cells}) - len(missing)
    if done:
        listener(Notice(f"{done} images are there already"))
    _require_room(folder, cells, list(missing.values()), listener)
    painted = _paint(folder, list(missing.values()), batch_size, painter or Painter(), listener, control)
    with closing(painted):
        for number, path in enumerate(painted, start=1):
            listener(ImageSaved(str(path), done + number, done + len(missing)))
    sheets = _write_sheets(folder, axes, cells, title, listener, control)
    page = folder / "index.html"
    write_text(page, _page(axes, cells, title))
    return GridResult(folder, tuple(sheets), page, tuple(cells), len(missing))


def _require_room(folder: Path, cells: Sequence[Cell], missing: Sequence[Cell], listener: Listener) -> None:
    """The images that are missing, and a sheet that shows all of them, which is written anew."""
    from loraloom.formats.room import require_room
    from loraloom.studio.images import pictures_need

    sheet = [cell.settings.model_copy(update={"format": "png"}) for cell in cells]
    images = pictures_need(folder, [cell.settings for cell in missing])
    require_room([images, replace(pictures_need(folder, sheet), what="the sheet")], listener)


def _paint(
    folder: Path,
    cells: Sequence[Cell],
    batch_size: int,
    painter: Painter,
    listener: Listener,
    control: Control,
) -> Generator[Path, None, None]:
    from loraloom.formats.image_info import save_image
    from loraloom.studio.images import model_hash, say_size

    for (checkpoint, loading), alike in itertools.groupby(sorted(cells, key=_load_key), key=_model_of):
        group = list(alike)
        with painter.job(checkpoint, loading, listener=listener, control=control) as job:
            say_size(job.model, group[0].settings, listener)
            digest = model_hash(checkpoint, control) if group[0].settings.model_hash else None
            for _, batchable in itertools.groupby(sorted(group, key=_pass_key), key=_pass_key):
                batch = list(batchable)
                settings = batch[0].settings.model_copy(update={"batch_size": batch_size})
                wanted = [(cell.settings.prompt, cell.settings.negative_prompt, cell.settings.seed) for cell in batch]
                for cell, image in zip(batch, job.paint_each(settings, wanted, model_hash=digest), strict=True):
                    path = folder / cell.file
                    make_folder(path.parent)
                    save_image(image.image, path, image.infotext)
                    yield path


def _model_of(cell: Cell) -> tuple[Path, Loading]:
    """Equal for cells that one loaded model paints."""
    return cell.checkpoint, Loading.of(cell.settings)


def _load_key(cell: Cell) -> str:
    """Sorts cells so that those of one model come together."""
    checkpoint, loading = _model_of(cell)
    return f"{checkpoint} {loading}"


def _pass_key(cell: Cell) -> str:
    """Equal for cells that can go through the model together."""
    return json.dumps(cell.settings.model_dump(mode="json", exclude={"prompt", "negative_prompt", "seed"}))


# ------------------------------------------------------------------------------------------------ what is shown


def _labels(axes: Sequence[Axis], index: int) -> tuple[str, ...]:
    if index >= len(axes):
        return ("",)
    axis = axes[index]
    if axis.name in ("prompt", "negative_prompt", "replace"):
        return axis.values
    return tuple(f"{axis.name} {_short(value)}" for value in axis.values)


def _short(value: str) -> str:
    return Path(value).stem if ("/" in value or "\\" in value) and " " not in value else value


def _pages(axes: Sequence[Axis], cells: Sequence[Cell]) -> Iterator[tuple[str, list[list[str]]]]:
    """(Label, files by row and column) of each value of the third axis."""
    columns, rows, pages = (_labels(axes, index) for index in range(3))
    by_place = {cell.place: cell.file for cell in cells}
    for page, label in enumerate(pages):
        yield label, [[by_place[x, y, page] for x in range(len(columns))] for y in range(len(rows))]


def _write_sheets(
    folder: Path, axes: Sequence[Axis], cells: Sequence[Cell], title: str, listener: Listener, control: Control
) -> list[Path]:

    from loraloom.formats.files import atomic_writer
    from loraloom.generation.sheets import draw_sheet, lay_out_sheet

    sheets = []
    several = len(axes) > 2
    for number, (label, files) in enumerate(_pages(axes, cells), start=1):
        heed(control)
        images = [[_opened(folder / file) for file in row] for row in files]
        rows, columns = _labels(axes, 1), _labels(axes, 0)
        heading = " · ".join(filter(None, (title, label)))
        largest = max(lay_out_sheet(images, rows=rows, columns=columns, title=heading).size)
        if largest > _LARGEST_SHEET:
            scale = 0.9 * _LARGEST_SHEET / largest
            text = f"the sheet would be {largest} pixels wide or high: its images are {scale:.0%} of their size there"
            listener(Notice(f"{text}; index.html has them whole"))
            images = [[image.reduce(max(round(1 / scale + 0.5), 2)) for image in row] for row in images]
        path = folder / (f"sheet-{number}.png" if several else "sheet.png")
        with atomic_writer(path) as file:
            draw_sheet(images, rows=rows, columns=columns, title=heading).save(file, "PNG")
        sheets.append(path)
    return sheets


def _opened(path: Path) -> Image.Image:
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _page(axes: Sequence[Axis], cells: Sequence[Cell], title: str) -> str:
    columns, rows = _labels(axes, 0), _labels(axes, 1)
    infos = {cell.file: cell.settings for cell in cells}
    body = []
    for label, files in _pages(axes, cells):
        if label:
            body.append(f"<h2>{html.escape(label)}</h2>")
        body.append("<div class=scroll><table>")
        heads = "".join(f"<th scope=col>{html.escape(column)}</th>" for column in columns)
        body.append(f"<thead><tr><th></th>{heads}</tr></thead><tbody>")
        for row, line in zip(rows, files, strict=True):
            body.append(f"<tr><th scope=row>{html.escape(row)}</th>")
            for file in line:
                hover = html.escape(f"{infos[file].prompt}\nseed {infos[file].seed}", quote=True)
                alt = html.escape(infos[file].prompt, quote=True)
                body.append(
                    f'<td><a href="{file}"><img loading=lazy src="{file}" alt="{alt}" title="{hover}"></a></td>'
                )
            body.append("</tr>")
        body.append("</tbody></table></div>")
    name = html.escape(title or "Grid")
    return _HTML.replace("TITLE", name).replace("BODY", "\n".join(body))


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>TITLE</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font: 14px/1.4 system-ui, sans-serif; }
body { margin: 1rem; background: Canvas; color: CanvasText; }
.scroll { overflow: auto; max-height: 95vh; border: 1px solid color-mix(in srgb, CanvasText 20%, Canvas); }
table { border-collapse: separate; border-spacing: 4px; }
th { font-weight: 500; text-align: left; background: Canvas; padding: 4px 6px; max-width: 16rem; }
thead th { position: sticky; top: 0; z-index: 2; text-align: center; }
tbody th { position: sticky; left: 0; z-index: 1; }
img { display: block; max-width: 512px; height: auto; }
</style></head><body>
<h1>TITLE</h1>
BODY
</body></html>
"""
