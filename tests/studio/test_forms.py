"""The form of the settings: every one is in it, and what is filled in says and does what a command line would."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from loraloom.errors import SettingsError, UnknownNameError
from loraloom.generation.settings import GenerateSettings
from loraloom.setting_rows import SettingRow
from loraloom.settings import setting_rows
from loraloom.studio.forms import FormField, check_form, form_of, overrides_of, search, typed, values_of
from loraloom.studio.results import to_record
from loraloom.studio.runs.creation import create_run
from loraloom.training.idle_choices import known_from_settings
from loraloom.training.settings import TrainSettings

FORM = form_of(TrainSettings)
ROWS = {row.path: row for row in setting_rows(TrainSettings)}
FILLED = {"checkpoint": "model.safetensors", "dataset.folder": "pictures"}


def field_of(path: str) -> FormField:
    table, _, column = path.partition("[].")
    field = FORM.field(table)
    return next(one for one in field.columns if one.name == column) if column else field


# -- the form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ROWS)
def test_every_setting_is_in_the_form(path: str) -> None:
    row, field = ROWS[path], field_of(path)
    assert (field.help, field.kohya, field.required) == (row.doc, row.kohya, row.required)
    assert field.help
    assert field.title[:1].isupper() or field.title[:1].isdigit()
    assert {choice.name: choice.summary for choice in field.choices} == row.choices
    assert json.loads(json.dumps(to_record(field)))["default"] == field.default
    if "number" in " ".join(row.kinds) and "table" not in row.kinds[0]:
        assert field.bounds.words or path in UNBOUNDED
    assert field.may_be_unset or field.default is not None or field.required


UNBOUNDED = {"preview.size"}


def test_names_bounds_choices_and_units_by_example() -> None:
    rate = FORM.field("optimizer.text_encoder_lr")
    assert (rate.title, rate.type, rate.bounds.lowest, rate.may_be_unset) == (
        "Text encoder learning rate", "mixed", 0, True
    )  # fmt: skip
    length = FORM.field("max_token_length")
    assert (length.bounds.lowest, length.bounds.multiple_of, length.unit) == (75, 75, "tokens")
    assert FORM.field("adapter.dropout").bounds.words == "0 or more, below 1"
    assert FORM.field("dataset.max_megapixels").values == "number, above 0, at most 178, in million pixels"
    assert (FORM.field("adapter.kind").is_closed, FORM.field("optimizer.name").is_closed) == (True, False)
    assert {c.name: c.summary for c in FORM.field("lr_schedule.name").choices}["rex"]
    assert [choice.name for choice in FORM.field("notify.on").choices] == ["end", "failure", "preview"]
    assert FORM.field("notify.on").type == "list"
    assert FORM.field("dataset.concepts").type == "tables"
    assert [column.name for column in FORM.field("dataset.concepts").columns][:4] == [
        "folder", "name", "enabled", "repeats"
    ]  # fmt: skip
    assert FORM.field("lr_schedule.name").title == "Learning rate schedule"
    assert FORM.field("objective.min_snr_gamma").title == "Smallest SNR gamma"


def test_beginners_see_about_twenty() -> None:
    easy = [field.name for field in FORM.fields if not field.expert]
    assert 18 <= len(easy) <= 26
    assert {"checkpoint", "dataset.folder", "epochs", "optimizer.lr", "adapter.rank", "preview.prompts"} <= set(easy)


def test_groups_keep_their_order_and_have_their_help() -> None:
    names = [group.name for group in FORM.groups]
    assert names[:3] == ["", "dataset", "dataset.captions"]
    assert len(names) == 13 and all(group.help and group.title for group in FORM.groups)
    assert next(group for group in FORM.groups if group.name == "lr_schedule").title == "Learning rate schedule"


def test_other_settings_have_forms_too() -> None:
    form = form_of(GenerateSettings)
    assert "cfg_scale" in {field.name for field in form.fields}
    assert form.field("sampler").others == ()
    with pytest.raises(UnknownNameError, match="smapler"):
        form.field("smapler")


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("adapter.rank", "adapter.rank"),
        ("rank", "adapter.rank"),
        ("network_dim", "adapter.rank"),
        ("num_epochs", "epochs"),
        ("num_train_epochs", "epochs"),
        ("learning rate", "optimizer.lr"),
        ("scheduler", "lr_schedule.name"),
        ("hflip", "dataset.flip"),
        ("mirrored", "dataset.flip"),
        ("dark bright", "objective.noise_offset"),
        ("class_tokens", "dataset.concepts"),
        ("prodigy", "optimizer.name"),
    ],
)
def test_settings_are_found_by_every_name_they_have(words: str, first: str) -> None:
    assert search(FORM, words)[0].name == first


def test_a_search_for_nothing_known_finds_nothing() -> None:
    assert search(FORM, "flux capacitor") == []


# -- what is filled in -----------------------------------------------------------------------------------------------


def another(row: SettingRow) -> Any:
    """A value of a setting that is not its default."""
    given: dict[str, Any] = {
        "adapter.args": None, "dataset.concepts": [{"folder": "a b", "repeats": 3, "captions": {"shuffle": True}}],
        "dataset.resolution": [512, 768], "dataset.resolutions": [512, [768, 640]], "dataset.background": "#102030",
        "optimizer.args": {"amsgrad": True, "d_coef": 0.3}, "optimizer.name": "prodigy", "lr_schedule.name": "rex",
        "lr_schedule.rules": "1:30,0.1", "optimizer.betas": [0.3, 0.7], "optimizer.text_encoder_lr": [1e-5, 3e-5],
        "adapter.base_loras": ["x y.safetensors:0.3"], "adapter.include": ["te_.*q"], "adapter.exclude": ["mid"],
        "notify.url": "https://example.org/x", "notify.on": ["preview"], "preview.size": [512, 640],
        "preview.prompts": ["it's \"odd\", $HOME `x`", "täst\n"], "saving.comment": 'say "a" or \'b\' \\ ü\x07',
        "objective.preserve_class": "a man", "optimizer.block_lr.down": "sine+0.3", "device": "cpu",
        "preview.weights": [0, 0.7], "dataset.caption_extensions": [".cap"], "objective.v_like_loss": 0.3,
        "lr_schedule.args": {"step_size": 3}, "dataset.max_megapixels": 9.5, "optimizer.block_lr.mid": [0.3],
        "optimizer.block_lr.up": [0.3], "dataset.captions.keep_tags": ["red fox", "it's"],
    }  # fmt: skip
    if row.path in given:
        return given[row.path]
    if row.form == "switch":
        return not row.default
    if row.form == "choice":
        return next(name for name in row.choices if name != row.default)
    if row.form in ("whole", "number"):
        bounds = row.bounds
        low = bounds.lowest if bounds.lowest is not None else bounds.above or 0
        high = bounds.highest if bounds.highest is not None else bounds.below
        step = bounds.multiple_of or (1 if row.form == "whole" else 0.1)
        value = low + step
        value = value + step if value == row.default else value
        assert high is None or value <= high
        return value
    return [3, 5] if row.form == "list" and "whole" in row.type else [0.3] if row.form == "list" else "a thing"


NEEDS: dict[str, dict[str, Any]] = {
    "adapter.rank_from_file": {"adapter.start_from": "x.safetensors"},
    "validation.patience": {"validation.share": 0.3},
    "dataset.mask_folder": {"dataset.masks": "folder"},
    "dataset.masks": {},
    "objective.preserve_class": {"saving.trigger": "sks"},
    "lr_schedule.rules": {"lr_schedule.name": "piecewise_constant"},
    "dataset.bucket_min": {"dataset.resolution": 64, "dataset.bucket_min": 40},
    "dataset.bucket_max": {"dataset.resolution": 32, "dataset.bucket_min": 32, "dataset.bucket_max": 64},
    "objective.min_timestep": {},
    "objective.max_timestep": {"objective.max_timestep": 300},
    "lr_schedule.decay_steps": {"lr_schedule.name": "warmup_stable_decay", "lr_schedule.decay_steps": 0.3},
    "lr_schedule.min_lr_ratio": {"lr_schedule.name": "cosine_with_min_lr"},
    "adapter.lokr_factor": {"adapter.lokr_factor": 8},
    "adapter.args": {"adapter.args": {}},
}


@pytest.mark.parametrize("path", [path for path in ROWS if "[]" not in path])
def test_a_setting_survives_form_toml_and_command_line(path: str) -> None:
    row = ROWS[path]
    check = check_form({**FILLED, path: another(row), **NEEDS.get(path, {})})
    assert check.problems == {}
    settings = check.finished()
    read = TrainSettings.parse(tomllib.loads(check.toml))
    assert read == settings
    assert check_form(values_of(read)).finished() == settings
    assert TrainSettings.load(None, shlex.split(typed(check.overrides, "posix"))) == settings
    if path != "adapter.args":  # its names are those of a kind that another package adds
        assert path in check.differs or row.required


def test_a_run_of_the_form_has_the_file_of_one_of_the_terminal(tmp_path: Path) -> None:
    values = {
        "checkpoint": str(tmp_path / "a b.ckpt"), "dataset.folder": "pictures", "output": str(tmp_path / "by-page"),
        "optimizer.lr": "3e-4", "dataset.resolution": "512x768", "adapter": {"rank": "8"}, "steps": "",
        "dataset.concepts": [{"folder": "one", "repeats": "3", "name": "", "captions": "{shuffle=true}"}],
        "preview.prompts": "['a, b', 'c']", "saving.trigger": "true",
    }  # fmt: skip
    check = check_form(values)
    of_form = create_run(check.finished())
    words = shlex.split(typed(check.overrides, "posix"))
    terminal = TrainSettings.load(None, [word.replace("by-page", "by-hand") for word in words])
    of_terminal = create_run(terminal)
    texts = [run.settings_path.read_text(encoding="utf-8") for run in (of_form, of_terminal)]
    assert texts[0] == texts[1].replace("by-hand", "by-page")
    assert check.finished().saving.trigger == "true"
    assert check.finished().dataset.concepts[0].captions == {"shuffle": True}


def test_all_problems_are_at_their_fields() -> None:
    check = check_form(
        {
            "checkpoint": "", "dataset.folder": None, "optimizer.lr": "-1", "adapter.rank": "many", "nmae": 3,
            "objective.min_timestep": 500, "objective.max_timestep": 100, "epochs": None,
            "dataset.concepts": [{"folder": "x"}, {"folder": "y", "repeats": 0, "first_epoch": 3, "last_epoch": 2}],
            "adapter.init": "pissa", "adapter.start_from": "x", "saving.precision": "fp8",
        }
    )  # fmt: skip
    problems = dict(check.problems)
    assert problems.pop("dataset.folder", ()) == ()  # that of the concepts
    assert problems.pop("nmae") == ("is no setting, did you mean 'name'?",)
    assert problems.pop("checkpoint") == ("is required",)
    assert "below max_timestep" in problems.pop("objective.max_timestep")[0]
    assert "below max_timestep" in problems.pop("objective.min_timestep")[0]
    assert (
        "both say where" in problems["adapter.init"][0] and problems["adapter.start_from"] == problems["adapter.init"]
    )
    assert "last_epoch=2" in problems["dataset.concepts.1"][0]
    assert set(problems) == {
        "optimizer.lr", "adapter.rank", "dataset.concepts.1.repeats", "dataset.concepts.1", "adapter.init",
        "adapter.start_from", "saving.precision",
    }  # fmt: skip
    assert (check.toml, check.command, check.overrides) == ("", "", ())
    with pytest.raises(SettingsError, match="is required"):
        check.finished()


@pytest.mark.parametrize(
    "values",
    [{"optimizer": 3, "optimizer.lr": 1}, {"adapter.rank": "9" * 4000}, {"": 3}, {"dataset.concepts": [3, {"x": {}}]}],
)
def test_nonsense_is_a_problem_and_no_fault(values: dict[str, Any]) -> None:
    assert check_form({**FILLED, **values}).problems


def test_what_has_no_effect_is_said_as_a_run_says_it() -> None:
    values = {
        "ema.decay": 0.5, "dataset.variants": 3, "dataset.captions.keep_tokens": 2, "adapter.kind": "lokr",
        "adapter.lokr_full_matrix": True, "adapter.rank": 3, "lr_schedule.cycles": 3, "objective.huber_c": 0.3,
        "dataset.concepts": [{"folder": "a", "mask_folder": "m"}], "optimizer.name": "prodigy", "optimizer.lr": 1e-4,
        "validation.draws": 3, "preview.steps": 3, "epochs": 3, "steps": 30,
    }  # fmt: skip
    check = check_form({**FILLED, **values})
    set_in_vain = set(values) - {"adapter.kind", "adapter.lokr_full_matrix", "dataset.concepts", "steps"}
    set_in_vain -= {"optimizer.name"}
    assert set(check.without_effect) - {"optimizer.name"} == {*set_in_vain, "dataset.concepts.0.mask_folder"}
    assert check.without_effect["adapter.rank"] == ("adapter.rank has no effect with adapter.lokr_full_matrix",)
    said = {text for texts in check.without_effect.values() for text in texts}
    assert said == {remark.text for remark in known_from_settings(check.finished())}


def test_what_has_no_effect_is_said_beside_a_mistake() -> None:
    check = check_form({"ema.decay": 0.5, "optimizer.lr": -1})
    assert set(check.problems) == {"checkpoint", "dataset.folder", "optimizer.lr"}
    assert list(check.without_effect) == ["ema.decay"]


def test_the_differences_are_those_of_the_settings() -> None:
    check = check_form({**FILLED, "adapter.rank": 16, "epochs": 3, "dataset.flip": True})
    assert check.differs == {"epochs": 10, "dataset.flip": False}
    assert overrides_of(check.finished()) == [
        "checkpoint=model.safetensors", "epochs=3", "dataset.folder=pictures", "dataset.flip=true"
    ]  # fmt: skip


def test_command_lines_are_quoted_for_the_shell() -> None:
    words = ["a=b c", "p=['x', \"y\"]", "plain=3"]
    assert shlex.split(typed(words, "posix")) == words
    assert typed(words, "powershell") == "'a=b c' 'p=[''x'', \\\"y\\\"]' plain=3"
    assert typed(["p=['x']"], "posix") == "\"p=['x']\""


def test_forms_need_no_torch() -> None:
    code = (
        "import sys; from loraloom.studio.forms import *; from loraloom.training.settings import TrainSettings as T;"
        "form_of(T); c = check_form({'checkpoint': 'a', 'dataset.folder': 'b', 'adapter.init': 'pissa',"
        "'adapter.kind': 'dora', 'optimizer.name': 'prodigy', 'adapter.dropout': 0.3}); assert not c.problems, c;"
        "c = check_form({'checkpoint': 'a', 'dataset.folder': 'b', 'adapter.init': 'pissa', 'adapter.kind': 'loha',"
        "'adapter.args': {'x': 3}}); print(c.problems, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "has no settings of its own" in done.stdout
