"""Texts of pictures: chunks before and behind the pixels, of every encoding, large ones; EXIF and XMP."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loraloom.formats import image_texts as room
from loraloom.formats.image_texts import image_texts, is_image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(path: Path, *before: bytes, behind: bytes = b"") -> Path:
    """A small PNG with chunks before and behind its pixels."""
    Image.new("RGB", (8, 8)).save(path)
    data = path.read_bytes()
    end = data.index(b"IDAT") - 4
    path.write_bytes(data[:end] + b"".join(before) + data[end:-12] + behind + data[-12:])
    return path


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (chunk(b"tEXt", b"parameters\0a caf\xe9"), "a café"),
        (chunk(b"tEXt", b"parameters\0" + "a café".encode()), "a café"),
        (chunk(b"tEXt", b"parameters\0\xff\xfe" + "猫".encode("utf-16-le")), "猫"),
        (chunk(b"tEXt", b"parameters\0" + "a cat".encode("utf-16-be")), "a cat"),
        (chunk(b"zTXt", b"parameters\0\0" + zlib.compress(b"a cat")), "a cat"),
        (chunk(b"iTXt", b"parameters\0\0\0en\0\0" + "Ã© 猫".encode()), "Ã© 猫"),
        (chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress("猫".encode())), "猫"),
    ],
)
def test_chunks(tmp_path: Path, made: bytes, text: str) -> None:
    assert image_texts(png(tmp_path / "a.png", made)) == {"parameters": text}
    assert image_texts(png(tmp_path / "b.png", behind=made)) == {"parameters": text}


def test_a_large_text_beside_does_not_hide_the_parameters(tmp_path: Path) -> None:
    """A workflow of more than a megabyte, compressed, at which Pillow gives the picture up."""
    large = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 3_000_000))
    texts = image_texts(png(tmp_path / "a.png", large, chunk(b"tEXt", b"parameters\0a cat")))
    assert texts["parameters"] == "a cat"
    assert len(texts["workflow"]) == 3_000_000


def test_a_text_that_unpacks_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_TEXT_BYTES", 5000)
    texts = image_texts(png(tmp_path / "a.png", chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 3_000_000))))
    assert len(texts["workflow"]) == 5000


@pytest.mark.parametrize("data", [b"", b"parameters", b"parameters\0\0\xff\xff", b"parameters\0\1\0", b"\0" * 9])
def test_damaged_chunks_are_passed_over(tmp_path: Path, data: bytes) -> None:
    damaged = [chunk(kind, data) for kind in (b"zTXt", b"iTXt")]
    texts = image_texts(png(tmp_path / "a.png", *damaged, chunk(b"tEXt", b"Software\0toy")))
    assert texts["Software"] == "toy"
    path = tmp_path / "cut.png"
    path.write_bytes(png(tmp_path / "b.png", chunk(b"tEXt", b"parameters\0a cat")).read_bytes()[:70])
    image_texts(path)


def test_xmp_and_cameras_fields(tmp_path: Path) -> None:
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmp:CreatorTool="Toy &amp; Co"><exif:UserComment>'
        "<rdf:Alt>"
        '<rdf:li xml:lang="x-default">{"c":"a &lt;cat&gt;"}</rdf:li></rdf:Alt></exif:UserComment></rdf:Description>'
    )
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    texts = image_texts(tmp_path / "a.png")
    assert (texts["UserComment"], texts["Software"]) == ('{"c":"a <cat>"}', "Toy & Co")
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "workflow:{}", 'prompt:{"1": 2}'
    for suffix in (".webp", ".jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}", exif=exif, xmp=packet.encode())
        texts = image_texts(tmp_path / f"a{suffix}")
        assert (texts["Make"], texts["Model"], texts["UserComment"]) == (
            "workflow:{}",
            'prompt:{"1": 2}',
            '{"c":"a <cat>"}',
        )


def test_is_image(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg", ".webp", ".gif"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}")
        assert is_image(tmp_path / f"a{suffix}")
    (tmp_path / "a.txt").write_bytes(b"RIFF....WAVE")
    assert not is_image(tmp_path / "a.txt")
    assert not is_image(tmp_path / "absent")
    assert not is_image(tmp_path)
