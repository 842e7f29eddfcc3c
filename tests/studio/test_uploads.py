"""Files that people hand over: each has an answer, whatever it is and whatever it is called."""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loraloom.errors import FileFormatError, MissingFileError, OutputError, SettingsError
from loraloom.file_names import check_name, clean_name, entry_of
from loraloom.studio.uploads import (
    Intake,
    Limits,
    Received,
    create_dataset,
    dataset_files,
    dataset_in,
    list_datasets,
)


def picture(colour: str = "#305070", size: tuple[int, int] = (20, 30), form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def archive(**files: bytes) -> bytes:
    return packed(files)


def packed(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        for name, data in files.items():
            out.writestr(name, data)
    return file.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return create_dataset(tmp_path, "lions")


def give(dataset: Path, name: str, data: bytes, limits: Limits | None = None) -> list[Received]:
    intake = Intake(limits)
    with intake.arriving(dataset) as file:
        file.write_bytes(data)
        return intake.take(file, dataset, name)


def one(dataset: Path, name: str, data: bytes, limits: Limits | None = None) -> Received:
    (received,) = give(dataset, name, data, limits)
    return received


def everything(dataset: Path) -> list[str]:
    return sorted(path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file())


def test_a_picture_and_its_caption_are_kept_as_they_are(dataset: Path) -> None:
    data = picture()
    assert one(dataset, "lion.png", data) == Received("lion.png", "lion.png")
    assert one(dataset, "2_lion/cub.webp", picture(form="WEBP")).kept == "2_lion/cub.webp"
    assert one(dataset, "lion.txt", "ein L\u00f6we".encode("latin-1")).kept == "lion.txt"
    assert (dataset / "lion.png").read_bytes() == data
    assert (dataset / "lion.txt").read_bytes() == "ein L\u00f6we".encode("latin-1")
    assert everything(dataset) == ["2_lion/cub.webp", "lion.png", "lion.txt"]
    assert [file.path for file in dataset_files(dataset)] == everything(dataset)
    assert dataset_files(dataset)[1].nbytes == len(data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"hello, I am a text", "is not an image"),
        (picture()[:60], "damaged|truncated"),
        (picture(form="JPEG")[:300], "truncated"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is a SVG file"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00heic", "is a HEIC file"),
        (b"%PDF-1.7 ", "is a PDF file"),
        (bomb(60000, 60000), "pixels"),
        (bomb(2**31 - 1, 2**31 - 1), "pixels"),
        (b"PK\x03\x04 is no archive", "cannot be read"),
    ],
    ids=["empty", "text", "cut", "cut-jpeg", "svg", "heic", "pdf", "bomb", "large-bomb", "zip"],
)
def test_what_is_no_picture_is_not_kept_and_says_why(data: bytes, problem: str, dataset: Path) -> None:
    received = one(dataset, "lion.png", data)
    assert received.kept is None and received.hint
    assert re.search(problem, received.problem), received.problem
    assert ".tmp-" not in received.problem and everything(dataset) == []


NAMES = {
    "../x.png": "x.png",
    "..\\..\\x.png": "x.png",
    "/etc/x.png": "etc/x.png",
    "C:\\pictures\\x.png": "C_/pictures/x.png",
    "CON": "CON_.png",
    "con.png": "con_.png",
    "lpt1.jpg.png": "lpt1_.jpg.png",
    "a/NUL/b.png": "a/NUL_/b.png",
    "cat\x00\x1f\n.png": "cat___.png",
    "\U0001f981 lion.png": "\U0001f981 lion.png",
    "a\u202egnp.png": "a_gnp.png",
    ".hidden.png": "hidden.png",
    "cat.": "cat.png",
    "  cat .png ": "cat .png",
    'a<b>"c|?*:.png': "a_b__c____.png",
    "cat": "cat.png",
    "cat.tmp": "cat.tmp.png",
    "": "unnamed.png",
    "...": "unnamed.png",
    "a/b/c/d/e/f/x.png": "c/d/e/f/x.png",
    "cafe\u0301.png": "caf\u00e9.png",
}


@pytest.mark.parametrize(("name", "kept"), NAMES.items(), ids=lambda name: ascii(name)[:30])
def test_names_are_made_fit_for_every_system(name: str, kept: str, dataset: Path) -> None:
    received = one(dataset, name, picture())
    assert (received.given, received.kept) == (name, kept)
    assert received.note == ("" if name == kept else f"is kept as {kept}")
    assert everything(dataset) == [kept]


def test_long_names_are_cut_and_stay_two(dataset: Path) -> None:
    first = one(dataset, "l" * 300 + "1.png", picture("#111111")).kept
    second = one(dataset, "l" * 300 + "2.png", picture("#222222")).kept
    lion = one(dataset, "\U0001f981" * 300 + ".png", picture("#333333")).kept
    assert first and second and lion and first != second
    assert all(len(name.encode()) <= 200 and name.endswith(".png") for name in (first, second, lion))


@given(st.text(max_size=400))
def test_every_name_becomes_one_that_is_allowed(name: str) -> None:
    for longest in (200, 100, 40):
        clean = clean_name(name, longest=longest)
        assert check_name(clean) == clean and len(clean.encode()) <= longest
        assert clean_name(clean, longest=longest) == clean


@pytest.mark.parametrize("name", ["my-style_2", "caf\u00e9.png", "\U0001f981", "x" * 200])
def test_a_name_that_is_allowed_stays(name: str) -> None:
    assert clean_name(name) == name


def test_two_of_one_name_are_both_kept_and_one_twice_once(dataset: Path) -> None:
    red, blue = picture("#d02020"), picture("#2030d0")
    assert one(dataset, "cat.png", red).kept == "cat.png"
    assert one(dataset, "cat.png", blue) == Received("cat.png", "cat-2.png", "is kept as cat-2.png")
    assert one(dataset, "cat.png", blue) == Received("cat.png", "cat-2.png", "was there already")
    assert one(dataset, "cat.png", red) == Received("cat.png", "cat.png", "was there already")
    assert [(dataset / name).read_bytes() for name in everything(dataset)] == [blue, red]


def test_files_of_the_system_are_left_out_without_a_fuss(dataset: Path) -> None:
    for name in ("__MACOSX/._lion.png", ".DS_Store", "lions/Thumbs.db", "desktop.ini", "a/._b.png"):
        received = one(dataset, name, b"\0\5\x16\7")
        assert (received.kept, received.problem) == (None, "") and "left out" in received.note


def test_captions_that_are_none_are_refused(dataset: Path) -> None:
    noise = random.Random(3).randbytes(3000)
    assert "not text" in one(dataset, "lion.txt", noise).problem
    assert one(dataset, "empty.txt", b"").kept == "empty.txt"
    assert one(dataset, "lion.txt", picture()).kept == "lion.txt.png", "what it is counts, not its name"


def test_an_archive_is_unpacked_file_by_file(dataset: Path) -> None:
    files = {
        "lions/1.png": picture("#100000"),
        "lions/1.txt": b"a lion",
        "lions/sub/": b"",
        "../../out.png": picture("#200000"),
        "lions/broken.png": picture()[:50],
        "lions/notes.pdf": b"%PDF-1.4",
        "inner.zip": archive(a=picture()),
        "__MACOSX/._1.png": b"\0",
    }
    received = {one.given: one for one in give(dataset, "my lions.zip", packed(files))}
    assert set(received) == {f"my lions.zip/{name}" for name in files if not name.endswith("/")}
    assert received["my lions.zip/lions/1.png"].kept == "lions/1.png"
    assert received["my lions.zip/../../out.png"].kept == "out.png"
    assert received["my lions.zip/lions/broken.png"].problem
    assert "archive inside an archive" in received["my lions.zip/inner.zip"].problem
    assert everything(dataset) == ["lions/1.png", "lions/1.txt", "out.png"]
    again = give(dataset, "my lions.zip", packed(files))
    assert [one.note for one in again if one.kept] == ["was there already"] * 2 + ["was there already"]


def test_archives_that_mean_ill_end_at_their_limits(dataset: Path) -> None:
    limits = Limits(file=10_000, unpacked=25_000)
    zeros = {f"{number}.png": b"\0" * 1_000_000 for number in range(5)}
    received = give(dataset, "bomb.zip", packed({**zeros, "good.png": picture()}), limits)
    assert len(received) == 6 and all("unpacks to more than" in one.problem for one in received[:5])
    assert "10.0 kB" in received[0].problem and "archive" in received[5].problem
    assert everything(dataset) == []


def test_archives_with_members_that_are_not_taken(dataset: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        out.writestr(link, "/etc/passwd")
        out.writestr("good.png", picture())
    received = give(dataset, "x.zip", file.getvalue())
    assert "is a link" in received[0].problem and received[1].kept == "good.png"
    locked = bytearray(packed({"a.png": picture()}))
    at = locked.index(b"PK\x01\x02") + 8
    locked[at] |= 1
    assert "password" in give(dataset, "x.zip", bytes(locked))[0].problem
    odd = bytearray(packed({"a.png": picture()}))
    for mark, distance in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        odd[odd.index(mark) + distance] = 99
    assert "cannot be unpacked" in give(dataset, "x.zip", bytes(odd))[0].problem
    assert "holds nothing" in give(dataset, "x.zip", b"PK\x03\x04" + packed({}))[0].problem


def test_a_long_list_of_nothing_is_not_read(dataset: Path) -> None:
    files = packed({f"{number:060}": b"" for number in range(400)})
    received = give(dataset, "x.zip", files, Limits(directory=20_000))
    assert [one.problem for one in received] == [
        "is an archive that cannot be read: its list of what it holds is too long"
    ]


@pytest.mark.parametrize("seed", range(40))
def test_damaged_archives_never_raise(seed: int, dataset: Path) -> None:
    chance = random.Random(seed)
    data = bytearray(packed({"a.png": picture(), "b/c.txt": b"a lion", "d.png": picture("#102030")}))
    for _ in range(chance.randint(1, 12)):
        data[chance.randrange(4, len(data))] = chance.randrange(256)
    if chance.random() < 0.3:
        del data[chance.randrange(30, len(data)) :]
    received = give(dataset, "x.zip", bytes(data))
    assert received and all(one.kept or one.problem or one.note for one in received)
    assert {one.kept for one in received if one.kept} == set(everything(dataset))


def test_a_folder_holds_so_many_files(dataset: Path) -> None:
    limits = Limits(files=4)
    received = [one(dataset, f"{n}.png", picture(f"#0000{n:02}"), limits) for n in range(10, 16)]
    assert [bool(one.kept) for one in received] == [True, True, True, False, False, False]  # one is on its way
    assert "one too many" in received[-1].problem
    with pytest.raises(FileFormatError, match=r"larger than 10\.0 kB"):
        Intake(Limits(file=10_000)).check_size("a.png", 10_001)
    Intake(Limits(file=10_000)).check_size("a.zip", 10_001)
    assert "larger than" in one(dataset, "a.png", picture() + b"\0" * 10_000, Limits(file=10_000)).problem


def test_a_link_in_the_dataset_leads_nothing_out(dataset: Path, tmp_path: Path) -> None:
    try:
        (dataset / "out").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    assert "link to another place" in one(dataset, "out/x.png", picture()).problem
    assert not (tmp_path / "x.png").exists()


def test_a_full_disk_is_an_error_and_what_was_kept_stays(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one(dataset, "first.png", picture("#111111"))

    def full(*names: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loraloom.studio.uploads._move", full)
    with pytest.raises(OutputError, match="no space left"):
        give(dataset, "second.png", picture("#222222"))
    assert everything(dataset) == ["first.png"]


def test_disks_without_links_keep_both_too(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*names: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("loraloom.studio.uploads.os.link", no_links)
    assert one(dataset, "cat.png", picture("#d02020")).kept == "cat.png"
    assert one(dataset, "cat.png", picture("#2030d0")).kept == "cat-2.png"


def test_datasets_have_names_of_their_own(tmp_path: Path) -> None:
    assert [create_dataset(tmp_path, "cats").name for _ in range(3)] == ["cats", "cats-2", "cats-3"]
    assert list_datasets(tmp_path) == ["cats", "cats-2", "cats-3"]
    for name in ("", "..", "a/b", "CON", "x" * 300, "a\nb", ".x"):
        with pytest.raises(SettingsError, match="name = "):
            create_dataset(tmp_path, name)
    for name in ("", ".", "..", "dogs", "cats/../cats", "../" + tmp_path.name, "x" * 300, "a\0"):
        with pytest.raises(MissingFileError, match="there is no dataset"):
            dataset_in(tmp_path, name)
    assert dataset_in(tmp_path, "cats") == tmp_path / "cats"
    assert entry_of(tmp_path, "new") == tmp_path / "new" and entry_of(tmp_path, str(PurePosixPath("a/b"))) is None
