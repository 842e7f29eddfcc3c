"""The list of concepts of sd_dreambooth_extension and of DreamBooth scripts: folders, prompts, class images, samples.

Both the names of January 2023 and those of later versions are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraloom.actions import Action, Proposal, Sentence
from loraloom.errors import LoraloomError
from loraloom.plain_data import finite, shown
from loraloom.recipes.names import unknown
from loraloom.recipes.parsing import parse_json, read_document
from loraloom.recipes.recipe import Item, Mapped, Recipe, exists, is_nothing, resolved
from loraloom.recipes.rows import Reading, Row, by_key, together

__all__ = ["CONCEPT", "bare", "is_concepts_list", "take_concepts", "take_config_concepts"]

_WORD = "[filewords]"
"""In a prompt it stands for what the text file beside a picture says."""


def bare(key: Any) -> str:
    """A name as the extension's form has it: some versions of the file write db_ before it."""
    return str(key).removeprefix("db_")


def is_concepts_list(data: Any) -> bool:
    """Whether parsed JSON is a list of concepts."""
    return (
        isinstance(data, list)
        and bool(data)
        and all(isinstance(entry, Mapping) for entry in data)
        and any("instance_data_dir" in entry for entry in data)
    )


@dataclass
class _Concept(Reading):
    """An entry of the list while it is read. Its keys have the place in the list before their names."""

    place: str
    said: Mapping[str, Any]
    folders: tuple[Path, ...]
    """Where relative folders lie."""
    painted: list[Path]
    """Where the program paints class images that are in no folder of their own."""
    concepts: list[dict[str, Any]]
    prompts: list[str]
    """Of previews."""
    is_told: bool = True
    """Whether each key is accounted for here; else the reader of the file has done so."""
    concept: dict[str, Any] = field(default_factory=dict)

    def text(self, name: str) -> str:
        """What the entry says under a name; empty where it says nothing."""
        value = self.said.get(name)
        return "" if is_nothing(value) else str(value).strip()

    def map(self, name: str, path: str, value: Any) -> None:
        """Account for an entry that became a part of a list."""
        item = self.take(name)
        if item is not None and self.is_told:
            self.recipe.mapped.append(Mapped(item.key, path, value))

    def rest(self, *names: str) -> None:
        for name in names:
            item = self.take(name)
            if item is not None and self.is_told:
                self.recipe.rest(item.key)

    def change(self, name: str, note: str) -> None:
        item = self.take(name)
        if item is not None and self.is_told:
            self.recipe.change(item.key, note)

    def skip(self, name: str, reason: str) -> None:
        item = self.take(name)
        if item is not None and self.is_told:
            self.recipe.skip(item.key, reason)


def take_concepts(
    data: Sequence[Mapping[str, Any]],
    recipe: Recipe,
    *,
    source: Path,
    prefix: str = "concepts",
    model_dir: str = "",
    is_told: bool = True,
) -> None:
    """Translate concepts. Relative folders lie beside ``source``; ``model_dir`` is where the program kept the model.

    ``is_told=False``: the keys are accounted for by the caller, and only class images that are missing are reported.
    """
    concepts: list[dict[str, Any]] = []
    prompts: list[str] = []
    folders = (source.absolute().parent, Path.cwd())
    for number, entry in enumerate(data):
        place = f"{prefix}[{number}]"
        painted = [folder / f"classifiers_{number}" for folder in (Path(model_dir), folders[0]) if str(folder) != "."]
        left = {bare(key): Item(f"{place}.{key}", value) for key, value in entry.items()}
        said = {name: item.value for name, item in left.items()}
        _take_concept(_Concept(recipe, left, place, said, folders, painted, concepts, prompts, is_told))
    dataset = recipe.settings.setdefault("dataset", {})
    dataset["concepts"] = [*(dataset.get("concepts") or []), *concepts]
    dataset.setdefault("caption_extensions", [".txt"])
    if prompts:
        recipe.settings.setdefault("preview", {})["prompts"] = prompts


def _take_concept(entry: _Concept) -> None:
    if not entry.text("instance_data_dir"):
        for name, item in list(entry.left.items()):
            if is_nothing(item.value):
                entry.rest(name)
            else:
                entry.skip(name, "the concept has no folder of pictures, so it is left out")
        return
    entry.walk(_TOGETHER)

    rows = by_key(_ALONE)
    for name in list(entry.left):
        if name in rows:
            rows[name].how(rows[name], entry)
        else:
            _not_known(name, entry)


# -- pictures and class images -------------------------------------------------------------------------------------


def _folder(row: Row, entry: _Concept) -> None:
    path = resolved(entry.text(row.key), entry.folders)
    entry.concept |= {"folder": path, "repeats": 1}
    entry.map(row.key, row.ours, path)
    entry.concepts.append(entry.concept)


def _class_folder(row: Row, entry: _Concept) -> None:
    """Regularization images: the folder that is named, or where the program paints some if it is to."""
    text = entry.text(row.key)
    folder = resolved(text, entry.folders) if text else ""
    if folder:
        entry.map(row.key, row.ours, folder)
    elif _wanted(entry.said):
        folder = _painted_folder(row.key, entry)
    else:
        entry.rest(row.key)
    if not folder:
        for name in ("class_prompt", "class_token"):
            if entry.text(name):
                entry.skip(name, "the concept has no folder of class images")
        return

    regular: dict[str, Any] = {"folder": folder, "repeats": 1, "is_regularization": True}
    captions = _sentence("class", entry)
    if captions:
        regular["captions"] = captions
    if all(other["folder"] != folder for other in entry.concepts):
        entry.concepts.append(regular)


def _painted_folder(name: str, entry: _Concept) -> str:
    """Class images that were painted there; where there are none, a remark says what paints them."""
    found = next((str(folder) for folder in entry.painted if exists(folder) and folder.is_dir()), "")
    item = entry.take(name)
    key = f"({entry.place}.{name})" if item is None else item.key
    if found:
        entry.recipe.change(key, f"empty: {found}, where that program paints them")
    else:
        note = Sentence("empty, and no class images were found. Paint them, then import again: ", _painting(entry))
        entry.recipe.change(key, note)
    return found


def _wanted(said: Mapping[str, Any]) -> float:
    """Class images for each picture; 0 where the program uses none."""
    for name in ("num_class_images_per", "num_class_images"):
        number = finite(said.get(name))
        if number is not None:
            return number
    return 0.0


_OPTIONS_OF_PAINTING = {
    "class_negative_prompt": "negative_prompt",
    "class_guidance_scale": "cfg_scale",
    "class_infer_steps": "steps",
}


def _painting(entry: _Concept) -> Proposal:
    """What paints the class images of a concept."""
    folder, said = str(entry.concept["folder"]), entry.said
    known = {
        "checkpoint": str(entry.recipe.get("checkpoint") or "CHECKPOINT"),
        "folder": folder,
        "prompt": entry.text("class_prompt") or entry.text("class_token") or _WORD,
        "output": str(entry.painted[-1]),
        "trigger": entry.text("instance_token"),
        **{ours: entry.text(name) for name, ours in _OPTIONS_OF_PAINTING.items()},
    }
    each = _wanted(said)
    if "num_class_images_per" not in said:
        known["count"] = str(round(each))
    elif each != 1:
        known["count"] = str(round(each * _pictures_in(Path(folder)))) if exists(Path(folder)) else "COUNT"
    return Action.MAKE_CLASS_IMAGES.of(**{name: value for name, value in known.items() if value})


def _pictures_in(folder: Path) -> int:
    try:
        return sum(path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp") for path in folder.rglob("*"))
    except OSError:
        return 0


# -- captions ------------------------------------------------------------------------------------------------------


def _captions(row: Row, entry: _Concept) -> None:
    """One sentence for all pictures, or what their files say with the instance token put in front."""
    captions = _sentence("instance", entry) | _trigger(entry)
    if _captions_are_file_names(Path(entry.concept["folder"])) and "sentence" not in captions:
        captions["source"] = "filename"
    if captions:
        entry.concept["captions"] = captions


def _sentence(which: str, entry: _Concept) -> dict[str, Any]:
    name = f"{which}_prompt"
    prompt = entry.text(name)
    if prompt == _WORD:
        entry.map(name, "dataset.concepts[].captions (from the files)", prompt)
        return {}
    if prompt:
        entry.map(name, "dataset.concepts[].captions.sentence", prompt)
        return {"sentence": prompt}
    return {}


def _trigger(entry: _Concept) -> dict[str, Any]:
    """The tokens stand for the concept inside captions; a sentence without them has no use for them."""
    tokens = ("instance_token", "class_token")

    # Only [filewords] puts a caption's text in, so without it there is nothing for the tokens to stand in.
    if _WORD not in entry.text("instance_prompt"):
        for name in tokens:
            if entry.text(name) or not is_nothing(entry.said.get(name)):
                entry.skip(name, "only [filewords] uses it")
        return {}

    instance, kind = (str(entry.said.get(name) or "").strip() for name in tokens)
    if not instance:
        if kind:
            entry.skip("class_token", "without an instance token it changes nothing")
        return {}

    trigger = " ".join(word for word in (instance, kind) if word)
    note = f"put in front of captions that lack {shown(trigger)}; there it replaces the class word"
    entry.change("instance_token", note)
    if kind:
        entry.change("class_token", "part of the trigger")
    return {"trigger": trigger}


def _captions_are_file_names(folder: Path) -> bool:
    """Whether a folder has pictures and not one text file: the file names are captions then."""
    try:
        names = [path.name.lower() for path in folder.iterdir()]
    except (OSError, ValueError):
        return False
    return bool(names) and not any(name.endswith((".txt", ".caption")) for name in names)


# -- previews ------------------------------------------------------------------------------------------------------

_OPTIONS_OF_SAMPLES = {
    "save_sample_negative_prompt": "n",
    "sample_seed": "d",
    "save_guidance_scale": "l",
    "save_infer_steps": "s",
}


def _sample(row: Row, entry: _Concept) -> None:
    """The preview of a concept; its options go behind the prompt."""
    prompt = entry.text("save_sample_prompt")
    given = [name for name in _OPTIONS_OF_SAMPLES if not is_nothing(entry.said.get(name))]
    if not prompt or _WORD in prompt:
        if prompt:
            entry.skip("save_sample_prompt", "a random caption as the prompt: give preview.prompts")
        entry.rest(*given)
        return
    entry.map("save_sample_prompt", "preview.prompts", prompt)
    line = prompt
    for name in given:
        value = entry.said[name]
        if name == "sample_seed" and str(value) == "-1":
            entry.change(name, "previews always have the same seeds")
        else:
            line += f" --{_OPTIONS_OF_SAMPLES[name]} {value}"
            entry.map(name, "preview.prompts", value)
    entry.prompts.append(line)


# -- what stands for itself ----------------------------------------------------------------------------------------


def _beside(row: Row, entry: _Concept) -> None:
    """Read together with a row above; empty where it is still there."""


def _says_nothing(name: str, entry: _Concept, *quiet: Any) -> bool:
    value = entry.said[name]
    return is_nothing(value) or value in quiet or value in (0, "0", False)


def _no_setting(*quiet: Any) -> Any:
    """No setting, for the reason in the row; ``quiet`` are the program's own defaults."""

    def take(row: Row, entry: _Concept) -> None:
        if _says_nothing(row.key, entry, *quiet):
            entry.rest(row.key)
        else:
            entry.skip(row.key, row.remark)

    return take


def _not_known(name: str, entry: _Concept) -> None:
    key = entry.left[name].key
    if _says_nothing(name, entry):
        entry.rest(name)
        return
    entry.skip(name, unknown(name, by_key(_ALONE)))
    if entry.is_told:
        entry.recipe.unknown.append(key)


_GENERATED = Sentence("regularization images are made before training: ", Action.MAKE_CLASS_IMAGES)
_STEPS = "a concept can end after a number of pictures shown: set its steps in the list of concepts"

_TOGETHER = (
    Row("instance_data_dir", "dataset.concepts[].folder", _folder),
    Row("instance_prompt", "dataset.captions.sentence", _captions, "[filewords]: from the files", always=True),
    Row("instance_token", "dataset.captions.trigger", _beside, "in front of captions that lack it"),
    Row("class_data_dir", "dataset.concepts[].folder", _class_folder, "regularization images", always=True),
    Row("class_prompt", "dataset.captions.sentence", _beside, "of the regularization images"),
    Row("class_token", "dataset.captions.trigger", _beside, "behind instance_token"),
    Row("save_sample_prompt", "preview.prompts", _sample, always=True),
    *together(_beside, "preview.prompts", *_OPTIONS_OF_SAMPLES, remark="an option behind the prompt"),
)
_ALONE = (
    Row("class_negative_prompt", "", _no_setting(), _GENERATED),
    Row("class_guidance_scale", "", _no_setting(7.5, "7.5"), _GENERATED),
    Row("class_infer_steps", "", _no_setting(60, 40, "60", "40"), _GENERATED),
    Row("num_class_images", "", _no_setting(), _GENERATED),
    Row("num_class_images_per", "", _no_setting(), _GENERATED),
    Row("save_sample_template", "", _no_setting(), "a file of prompts is preview.file"),
    Row("n_save_sample", "", _no_setting(1, "1"), "one preview per prompt: list a prompt twice for two"),
    Row("is_valid", "", _no_setting(), "found out again"),
    Row("max_steps", "", _no_setting(), _STEPS),
    Row("file_prompt_contents", "", _no_setting(), "captions come from the text files"),
)
CONCEPT = (*_TOGETHER, *_ALONE)
"""What an entry of the list may hold: what makes a concept and its preview, then what becomes no setting."""


# -- in a db_config.json -------------------------------------------------------------------------------------------


def take_config_concepts(row: Row, file: Reading) -> None:
    """The concepts of a db_config.json: in a file of their own, in this one, or in the oldest form: c1_..., c2_..."""
    recipe = file.recipe
    model_dir = str(file.value("model_dir") or "")
    path = file.value("concepts_path")
    from_file = path is not None and file.value("use_concepts") is True
    if from_file:
        file.change("use_concepts", "the file of concepts counts")
        _concepts_of_file(str(path).strip(), model_dir, file)
        return

    file.rest("use_concepts")
    if path is None:
        file.rest("concepts_path")
    else:
        file.skip("concepts_path", "use_concepts is off")
    listed = file.value("concepts_list")
    entries = [entry for entry in listed if isinstance(entry, Mapping)] if isinstance(listed, list) else []
    if any(entries):
        file.take("concepts_list")
        take_concepts(entries, recipe, source=recipe.source, prefix="concepts_list", model_dir=model_dir)
    else:
        file.rest("concepts_list")
    _oldest_concepts(model_dir, file, counts=not listed)


def _concepts_of_file(text: str, model_dir: str, file: Reading) -> None:
    """``concepts_path``: a path, or the list itself as text."""
    recipe = file.recipe
    key = file.left.pop("concepts_path").key
    place = recipe.source
    try:
        if text.startswith("["):
            data = parse_json(text, recipe.source)
        else:
            place = Path(resolved(text, recipe.folders))
            data = read_document(place).data
    except LoraloomError as error:
        recipe.problem("dataset.folder", f"{key}: {error.problem}")
    else:
        if is_concepts_list(data):
            recipe.change(key, "read")
            take_concepts(data, recipe, source=place, prefix=key, model_dir=model_dir)
        else:
            recipe.problem("dataset.folder", f"{key}: {place} is not a list of concepts")
    file.change("concepts_list", f"{key} counts instead")


def _oldest_concepts(model_dir: str, file: Reading, *, counts: bool) -> None:
    """``c1_instance_data_dir`` and so on; later versions write them too, and a list counts before them."""

    # Later versions write these nine groups too, beside their list: then they are only a shadow of it.
    entries: list[dict[str, Any]] = [{} for _ in range(9)]
    for name in [name for name in file.left if re.match(r"c[1-9]_", name)]:
        value = file.left[name].value
        entries[int(name[1]) - 1][name[3:]] = value
        if is_nothing(value) or not counts:
            file.rest(name)
        else:
            file.change(name, "part of dataset.concepts")

    named = [entry for entry in entries if entry]
    if counts and named:
        take_concepts(named, file.recipe, source=file.recipe.source, model_dir=model_dir, is_told=False)
