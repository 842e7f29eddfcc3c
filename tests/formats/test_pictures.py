"""The way in for pictures: what is refused and how, one limit for all of them, memory that threads share."""

from __future__ import annotations

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loraloom.data.images import inspect_image
from loraloom.errors import FileError, FileFormatError, MissingFileError
from loraloom.formats.memory_budget import MemoryBudget
from loraloom.formats.pictures import grey_picture, opened, rgb_of, rgb_picture, signature
from picture_zoo import BLUE, GREEN, GREY, RED, SIZE, WHITE, claims, exif, jpeg, png, quarters, turned, with_alpha


def flat_png(width: int, height: int) -> bytes:
    """A small file of many pixels: 8-bit RGB of one colour."""
    return png(Image.new("RGB", (width, height), (10, 20, 30)))


def test_a_picture_is_upright_flat_and_of_eight_bits(tmp_path: Path) -> None:
    (tmp_path / "turned.jpg").write_bytes(jpeg(turned(6), exif=exif(6)))
    image = rgb_picture(tmp_path / "turned.jpg")
    assert image.size == SIZE and image.mode == "RGB"
    assert np.abs(np.asarray(image.getpixel((10, 10)), int) - RED).max() < 6
    (tmp_path / "clear.png").write_bytes(png(with_alpha()))
    clear = rgb_picture(tmp_path / "clear.png")
    assert [clear.getpixel(at) for at in ((10, 10), (80, 10), (10, 50))] == [RED, GREEN, WHITE]
    grey = grey_picture(tmp_path / "clear.png")
    assert grey.mode == "L" and grey.getpixel((10, 50)) == 0, "what is transparent is black"
    assert rgb_of(png()).getpixel((10, 50)) == BLUE and rgb_of(png()).getpixel((80, 50)) == GREY


def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((6, 8), 77 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert grey_picture(tmp_path / "deep.png").getpixel((3, 3)) == 77


def test_one_limit_for_every_picture(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(claims(13000, 12000))
    for read in (rgb_picture, grey_picture):
        with pytest.raises(
            FileFormatError, match=r"large\.png: has 13000 x 12000 pixels, more than max_megapixels=128"
        ):
            read(path)
    with pytest.raises(FileFormatError, match="13000 x 12000"):
        rgb_of(path.read_bytes())
    path.write_bytes(flat_png(70, 50))
    assert rgb_picture(path, max_megapixels=0.0036).size == (70, 50)
    with pytest.raises(FileFormatError, match=r"max_megapixels=0\.0034"):
        rgb_picture(path, max_megapixels=0.0034)


def test_what_is_no_picture_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"gone\.png: does not exist"):
        rgb_picture(tmp_path / "gone.png")
    with pytest.raises(FileFormatError, match="is a folder"):
        rgb_picture(tmp_path)
    (tmp_path / "words.png").write_text("hello", encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"words\.png: is not an image"):
        grey_picture(tmp_path / "words.png")
    with pytest.raises(FileFormatError, match="is a PDF file"):
        rgb_of(b"%PDF-1.4" + bytes(100))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("read", [rgb_picture, grey_picture])
def test_pipes_and_devices_do_not_block(read: object, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileFormatError, match="is a pipe"):
        read(tmp_path / "pipe.png")  # type: ignore[operator]
    with pytest.raises(FileError, match="is a device"):
        read(Path("/dev/zero"))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("head", "kind", "hint"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", "Most Compatible"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC", "heif-convert"),
        (b"\xff\x0a" + bytes(30), "JPEG XL", "djxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL", "djxl"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", "PNG"),
        (b"\xff\x4f\xff\x51" + bytes(30), "JPEG 2000", "PNG"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "camera raw", "develop"),
        (b"8BPS" + bytes(30), "Photoshop", "PNG"),
        (b"qoif" + bytes(30), "QOI", "PNG"),
    ],
)
def test_formats_that_are_not_read_say_what_to_do(head: bytes, kind: str, hint: str, tmp_path: Path) -> None:
    assert signature(head) == kind
    (tmp_path / "x.png").write_bytes(head)
    with pytest.raises(FileFormatError, match=f"is a {kind} file, which is not read") as caught:
        inspect_image(tmp_path / "x.png", max_megapixels=1)
    assert hint in caught.value.hint


def test_an_avif_that_says_so_in_its_second_brand() -> None:
    assert signature(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") == "AVIF"


def test_decoding_threads_share_one_budget(tmp_path: Path) -> None:
    """Eight pictures of 3 MB of pixels at once, within a budget that has room for about two of them."""
    paths = []
    for number in range(8):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(flat_png(900 + number, 800))
    budget = MemoryBudget(7_000_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: inspect_image(path, max_megapixels=1, budget=budget), paths))
    assert 4 * 907 * 800 <= budget.peak <= 7_000_000


def test_a_picture_larger_than_the_budget_is_decoded_alone(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(flat_png(1100, 700))
    budget = MemoryBudget(1000)
    assert inspect_image(tmp_path / "large.png", max_megapixels=1, budget=budget).size == (1100, 700)
    assert budget.peak >= 4 * 1100 * 700


def test_a_picture_is_gone_when_its_memory_is_given_back(tmp_path: Path) -> None:
    """Not when Python gets round to it: the next thread takes the memory at once."""
    (tmp_path / "a.png").write_bytes(png())
    with opened(tmp_path / "a.png") as picture:
        image = picture.decode()
        assert image.getpixel((10, 10)) == RED
    with pytest.raises(ValueError, match="closed"):
        image.getpixel((10, 10))
    assert picture.memory.nbytes == 0


def test_what_is_left_out_is_never_unpacked(tmp_path: Path) -> None:
    """A text that unpacks to 200 MB takes no more memory than its packed bytes."""
    packed = zlib.compress(bytes(200_000_000), 9)
    content = b"workflow\0\0" + packed
    chunk = struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content))
    (tmp_path / "bomb.png").write_bytes(png()[:33] + chunk + png()[33:])
    budget = MemoryBudget(2**30)
    with opened(tmp_path / "bomb.png", budget=budget) as picture:
        assert picture.decode().size == SIZE
        assert "workflow" not in picture.image.info
    assert budget.peak < 1_000_000


def test_the_file_itself_stays_as_it_is(tmp_path: Path) -> None:
    """The digest is of the file, so that a changed workflow counts as a changed file."""
    data = png(quarters())
    (tmp_path / "a.png").write_bytes(data)
    with opened(tmp_path / "a.png") as picture:
        assert picture.data == data
    assert Image.open(BytesIO(data)).size == SIZE
