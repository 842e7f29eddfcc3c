from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from loraloom.data.dataset import load_dataset
from loraloom.errors import DatasetError, SettingsError
from loraloom.events import Event, Notice, StepFinished, ValidationMeasured
from loraloom.training.settings import TrainSettings, ValidationSettings
from loraloom.training.trainer import train
from loraloom.training.validation import Patience, split_off

MakeSettings = Callable[..., TrainSettings]


def run(settings: TrainSettings, folder: Path) -> list[Event]:
    events: list[Event] = []
    (folder / "weights").mkdir(parents=True)
    (folder / "previews").mkdir()
    train(settings, folder, listener=events.append)
    return events


def measured(events: list[Event]) -> list[ValidationMeasured]:
    return [event for event in events if isinstance(event, ValidationMeasured)]


def test_the_loss_on_held_out_pictures_falls_and_the_best_is_kept(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(
        "epochs=6", "optimizer.lr=1e-2", "validation.share=0.25", "validation.timesteps=3", "saving.every_epochs=0"
    )
    events = run(settings, tmp_path / "run")
    found = measured(events)
    assert [event.epoch for event in found] == list(range(7))
    assert found[-1].loss < found[0].loss
    assert [list(event.by_timestep) for event in found[:1]] == [["166", "500", "833"]]
    assert found[0].loss == pytest.approx(sum(found[0].by_timestep.values()) / 3)
    best = min(found[1:], key=lambda event: event.loss)
    assert [event.step for event in found if event.is_best][-1] == best.step
    names = {path.name for path in (tmp_path / "run" / "weights").iterdir()}
    assert names == {"lora.safetensors", "lora-best.safetensors"}
    assert any(f"at step {best.step} " in event.text for event in events if isinstance(event, Notice))


def test_measuring_changes_nothing_of_the_training(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "others"
    other.mkdir()
    Image.new("RGB", (64, 64), "#808000").save(other / "a.png")
    plain = run(make_settings("epochs=2", "adapter.dropout=0.2"), tmp_path / "plain")
    watched = run(
        make_settings("epochs=2", "adapter.dropout=0.2", f"validation.folder='{other}'"), tmp_path / "watched"
    )
    assert [e.loss for e in plain if isinstance(e, StepFinished)] == [
        e.loss for e in watched if isinstance(e, StepFinished)
    ]
    assert len(measured(watched)) == 3 and not measured(plain)


def warnings(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice) and event.level == "warning"]


def test_what_is_wrong_with_the_folder_is_told(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    other = tmp_path / "others"
    other.mkdir()
    Image.new("RGB", (64, 64), "#808000").save(other / "a.png")
    (other / "junk.png").write_bytes(b"no picture")
    events = run(make_settings(f"validation.folder='{other}'"), tmp_path / "run")
    told = [text for text in warnings(events) if str(other) in text]
    assert [any(words in text for text in told) for words in ("junk.png", "1 pictures and no caption")] == [True, True]


def test_measuring_on_what_is_trained_is_told(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    events = run(make_settings(f"validation.folder='{pictures}'"), tmp_path / "same")
    assert any("4 of the 4 pictures to measure on are trained on too" in text for text in warnings(events))
    other = tmp_path / "others"
    other.mkdir()
    Image.new("RGB", (64, 64), "#808000").save(other / "a.png")
    (other / "b.png").write_bytes((pictures / "2_red" / "0.png").read_bytes())
    told = warnings(run(make_settings(f"validation.folder='{other}'"), tmp_path / "partly"))
    assert any("1 of the 2 pictures to measure on are trained on too, such as b.png" in text for text in told)


def test_the_best_is_not_kept_where_it_is_not_wanted(make_settings: MakeSettings, tmp_path: Path) -> None:
    overrides = ["epochs=2", "optimizer.lr=1e-2", "validation.share=0.25", "saving.every_epochs=0"]
    events = run(make_settings(*overrides, "validation.save_best=false"), tmp_path / "run")
    assert any(event.is_best for event in measured(events))
    assert [path.name for path in (tmp_path / "run" / "weights").iterdir()] == ["lora.safetensors"]


def test_two_runs_are_asked_the_same(make_settings: MakeSettings, tmp_path: Path) -> None:
    first = measured(run(make_settings("seed=1", "validation.share=0.25"), tmp_path / "a"))
    other = measured(run(make_settings("seed=2", "validation.share=0.25"), tmp_path / "b"))
    assert first[0].loss == other[0].loss and first[1].loss != other[1].loss


def test_a_run_that_gets_no_better_ends_early(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("epochs=50", "optimizer.lr=0", "validation.share=0.25", "validation.patience=2")
    events = run(settings, tmp_path / "run")
    assert [event.epoch for event in measured(events)] == [0, 1, 2, 3]
    assert any("so the run ends here" in event.text for event in events if isinstance(event, Notice))


def test_losses_of_single_pictures(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings("epochs=8", "optimizer.lr=1e-2", "validation.image_losses=true")
    run(settings, tmp_path / "run")
    with (tmp_path / "run" / "image-losses.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["picture"] for row in rows} == {"2_red/0.png", "2_red/1.png", "1_blue/0.png", "1_blue/1.png"}
    learned = [float(row["learned"]) for row in rows]
    assert learned == sorted(learned) and learned[-1] > 0


def test_copies_of_a_picture_are_held_out_together(make_settings: MakeSettings, pictures: Path) -> None:
    source = (pictures / "2_red" / "0.png").read_bytes()
    (pictures / "1_blue" / "copy.png").write_bytes(source)
    dataset = load_dataset(make_settings().dataset)
    for share in (0.2, 0.4, 0.6, 0.8):
        rest, held = split_off(dataset, ValidationSettings(share=share))
        assert not {sample.digest for sample in rest.training} & {sample.digest for sample in held}
        assert len(rest.training) + len(held) == 5


def test_something_must_be_left_to_train_on(make_settings: MakeSettings) -> None:
    dataset = load_dataset(make_settings().dataset)
    with pytest.raises(DatasetError, match="leaves no picture to train on"):
        split_off(dataset, ValidationSettings(share=0.99))


def test_patience_counts_measurements_without_a_better_one() -> None:
    patience = Patience(2)
    assert [patience.heard(loss, step=i, epoch=i) for i, loss in enumerate([3.0, 2.0, 2.5, 2.0])] == [
        True,
        True,
        False,
        False,
    ]
    assert patience.is_over and patience.best_step == 1
    again = Patience(3)
    again.load_state_dict(patience.state_dict())
    assert not again.is_over and again.best == 2.0


@pytest.mark.parametrize("overrides", [["validation.patience=1"], ["validation.share=0.1", "validation.folder=x"]])
def test_settings_that_contradict_are_refused(make_settings: MakeSettings, overrides: list[str]) -> None:
    with pytest.raises(SettingsError, match="validation"):
        make_settings(*overrides)
