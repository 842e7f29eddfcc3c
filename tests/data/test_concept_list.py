"""Concepts listed with settings of their own, several resolutions, and concepts that begin and end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from loraloom.data.audit import concept_shares
from loraloom.data.batches import Draw, plan_epoch
from loraloom.data.dataset import load_dataset
from loraloom.data.sample import Dataset
from loraloom.data.settings import DatasetSettings
from loraloom.errors import DatasetError, SettingsError
from loraloom.settings import apply_overrides


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for folder, count in {"3_fox": 2, "den": 3, "reg": 4}.items():
        (tmp_path / folder).mkdir()
        for index in range(count):
            Image.new("RGB", (64, 64 + 32 * index), (index * 9, count, 0)).save(tmp_path / folder / f"{index}.png")
    (tmp_path / "3_fox" / "0.txt").write_text("red fur, tail", encoding="utf-8")
    return tmp_path


def load(*concepts: dict[str, object], **settings: object) -> Dataset:
    return load_dataset(DatasetSettings.parse({"concepts": list(concepts), "resolution": 64, **settings}))


def drawn(dataset: Dataset, epoch: int = 0, seed: int = 0, *, flip: bool = False) -> list[Draw]:
    return [d for batch in plan_epoch(dataset, batch_size=2, seed=seed, epoch=epoch, flip=flip) for d in batch]


def test_concepts_have_their_own_settings(pictures: Path) -> None:
    dataset = load(
        {"folder": pictures / "3_fox", "captions": {"trigger": "sks"}, "flip": True},
        {"folder": pictures / "den", "name": "a den", "repeats": 5, "loss_weight": 0.25, "captions": {"shuffle": True}},
        {"folder": pictures / "reg", "is_regularization": True, "caption": "fox", "random_crop": True},
        {"folder": pictures / "nothing", "enabled": False},
        captions={"prefix": "photo of"},
    )
    fox, den, reg = dataset.concepts
    assert (fox.name, fox.repeats, fox.loss_weight) == ("fox", 3, 1.0)
    assert (den.label, den.name, den.repeats, den.loss_weight) == ("a den", "a den", 5, 0.25)
    assert (reg.name, reg.is_regularization) == ("fox", True)
    first = dataset.samples[0]
    assert first.caption == "red fur, tail"
    assert first.fullest_caption == "sks, photo of red fur, tail"
    assert [s.captions.shuffle for s in dataset.samples] == [False] * 2 + [True] * 3 + [False] * 4
    assert [s.variation.count for s in dataset.samples] == [1] * 5 + [8] * 4
    assert dataset.folder == pictures
    flipped = [draw.sample.concept.label for epoch in range(9) for draw in drawn(dataset, epoch) if draw.flipped]
    assert set(flipped) == {"3_fox"}
    assert [(share.images, share.shown) for share in concept_shares(dataset)] == [(2, 6), (3, 15), (4, 4)]


def test_a_plain_list_is_the_same_as_the_folder(pictures: Path) -> None:
    by_folder = load_dataset(DatasetSettings(folder=pictures / "3_fox", resolution=64, use_regularization=False))
    by_list = load({"folder": pictures / "3_fox"}, folder=pictures)
    assert [s.digest for s in by_folder.samples] == [s.digest for s in by_list.samples]
    assert [(d.sample.identity, d.occurrence) for d in drawn(by_folder)] == [
        (d.sample.identity, d.occurrence) for d in drawn(by_list)
    ]


def test_one_folder_may_be_listed_twice(pictures: Path) -> None:
    dataset = load(
        {"folder": pictures / "den", "repeats": 1, "last_epoch": 2},
        {"folder": pictures / "den", "repeats": 2, "first_epoch": 3},
    )
    assert len({sample.identity for sample in dataset.samples}) == 6
    assert [len(drawn(dataset, epoch)) for epoch in range(4)] == [3, 3, 6, 6]
    assert [share.shown for share in concept_shares(dataset)] == [3, 6]
    assert dataset.last_epoch is None


def test_an_epoch_without_pictures_is_an_error(pictures: Path) -> None:
    dataset = load({"folder": pictures / "den", "first_epoch": 2, "last_epoch": 3})
    assert dataset.last_epoch == 3
    assert len(drawn(dataset, 1)) == 3
    for epoch in (0, 3):
        with pytest.raises(DatasetError, match=f"epoch {epoch + 1}"):
            drawn(dataset, epoch)


def test_regularization_rounds_go_on_when_concepts_begin_and_end(pictures: Path) -> None:
    dataset = load(
        {"folder": pictures / "den", "last_epoch": 2},
        {"folder": pictures / "3_fox", "first_epoch": 2},
        {"folder": pictures / "reg", "is_regularization": True},
    )
    counts: Counter[str] = Counter()
    total = 0
    for epoch in range(5):
        draws = drawn(dataset, epoch)
        reg = [draw for draw in draws if draw.sample.is_regularization]
        assert len(reg) == len(draws) - len(reg)
        counts.update(draw.sample.identity for draw in reg)
        total += len(reg)
        # whole rounds: no picture is ever ahead of another by more than one
        assert max(counts.values()) - (min(counts.values()) if len(counts) == 4 else 0) <= 1
    assert sum(counts.values()) == total == 3 + 9 + 6 + 6 + 6


def fox_at(pictures: Path, **settings: object) -> Dataset:
    data = {"folder": pictures / "3_fox", "use_regularization": False, "resolutions": (32, 64), **settings}
    return load_dataset(DatasetSettings.parse(data))


def test_every_picture_at_every_resolution(pictures: Path) -> None:
    dataset = fox_at(pictures)
    assert [(sample.identity, sample.picture) for sample in dataset.samples] == [
        (f"3_fox/{name}@{side}", f"3_fox/{name}") for name in ("0.png", "1.png") for side in (32, 64)
    ]
    areas = [sample.bucket[0] * sample.bucket[1] for sample in dataset.samples]
    assert areas[:2] == [32 * 32, 64 * 64]
    assert areas[2] <= 32 * 32 < areas[3] <= 64 * 64
    counts = Counter(draw.sample.identity for draw in drawn(dataset))
    assert counts == {sample.identity: 3 for sample in dataset.samples}
    assert dataset.draws_per_epoch == 12
    (share,) = concept_shares(dataset)
    assert (share.images, share.shown) == (2, 12)
    assert dataset.settings.size == (64, 64)
    one = fox_at(pictures, resolutions=(64,))
    assert [s.identity for s in one.samples] == ["3_fox/0.png", "3_fox/1.png"]


def test_one_resolution_each_time(pictures: Path) -> None:
    dataset = fox_at(pictures, resolution_choice="random")
    assert dataset.draws_per_epoch == 6
    seen: Counter[str] = Counter()
    for epoch in range(50):
        draws = drawn(dataset, epoch)
        assert Counter(draw.sample.picture for draw in draws) == {"3_fox/0.png": 3, "3_fox/1.png": 3}
        seen.update(draw.sample.identity for draw in draws)
    assert len(seen) == 4
    assert all(abs(count - 75) < 25 for count in seen.values())
    (share,) = concept_shares(dataset)
    assert (share.images, share.shown) == (2, 6)


def test_resolutions_of_a_concept(pictures: Path) -> None:
    dataset = load({"folder": pictures / "3_fox", "resolutions": [32]}, {"folder": pictures / "den"}, buckets=False)
    assert [sample.bucket for sample in dataset.samples] == [(32, 32)] * 2 + [(64, 64)] * 3


def test_the_list_comes_from_toml_and_goes_back(pictures: Path, tmp_path: Path) -> None:
    file = tmp_path / "set.toml"
    file.write_text(
        '[[concepts]]\nfolder = "3_fox"\ncaptions = {shuffle = true}\n[[concepts]]\nfolder = "den"\nrepeats = 2\n',
        encoding="utf-8",
    )
    settings = DatasetSettings.load(file, ["resolution=64"])
    assert [concept.folder for concept in settings.concepts] == [tmp_path / "3_fox", tmp_path / "den"]
    again = tmp_path / "again.toml"
    again.write_text(settings.to_toml(), encoding="utf-8")
    assert DatasetSettings.load(again) == settings
    assert (
        DatasetSettings.parse(apply_overrides({}, [f"concepts=[{{folder='{tmp_path / 'den'}'}}]"])).folder == tmp_path
    )


def test_every_wrong_concept_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        DatasetSettings.parse(
            {
                "concepts": [
                    {"folder": "a", "repeats": 0},
                    {"folder": "b", "captions": {"shufle": True}},
                    {"folder": "c", "first_epoch": 3, "last_epoch": 2},
                    {"name": "d"},
                ]
            }
        )
    problems = "\n".join(caught.value.problems)
    for text in ("concepts.0.repeats", "shufle", "last_epoch=2 comes before", "'concepts.3.folder' is required"):
        assert text in problems
    with pytest.raises(SettingsError, match="not both"):
        DatasetSettings.parse(
            {"concepts": [{"folder": "a", "captions": {"warmup_steps": 3}}], "captions": {"warmup_epochs": 2}}
        )
    with pytest.raises(SettingsError, match="training images"):
        DatasetSettings.parse({"concepts": [{"folder": "a", "is_regularization": True}]})
    with pytest.raises(SettingsError, match="needs a mask_folder"):
        DatasetSettings.parse({"concepts": [{"folder": "a", "masks": "folder"}]})


def test_captions_from_names(pictures: Path) -> None:
    (pictures / "den" / "07 a deep den.png").write_bytes((pictures / "den" / "0.png").read_bytes())
    dataset = load({"folder": pictures / "den"}, captions={"source": "filename"})
    assert [s.caption for s in dataset.samples] == ["den", "a deep den", "den", "den"]
    dataset = load({"folder": pictures / "3_fox"}, captions={"source": "folder"})
    assert [s.caption for s in dataset.samples] == ["fox", "fox"]
    assert not any(problem.kind == "caption-orphan" for problem in dataset.problems)
