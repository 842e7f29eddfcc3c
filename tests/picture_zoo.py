"""Odd pictures, made on the spot: what each should look like when used, or why it cannot be."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

SIZE = (96, 64)
RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 200, 40), (30, 40, 210), (128, 128, 128)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
QUARTERS = (RED, GREEN, BLUE, GREY)  # top left, top right, bottom left, bottom right
Quarters = tuple[tuple[int, int, int], ...]


def quarters(colours: Quarters = QUARTERS, size: tuple[int, int] = SIZE) -> Image.Image:
    image = Image.new("RGB", size)
    width, height = size[0] // 2, size[1] // 2
    for index, colour in enumerate(colours):
        left, top = index % 2 * width, index // 2 * height
        image.paste(colour, (left, top, left + width, top + height))
    return image


def alpha_mask() -> Image.Image:
    """Opaque, opaque / invisible, half."""
    mask = quarters((WHITE, WHITE, BLACK, GREY)).convert("L")
    return mask


def with_alpha() -> Image.Image:
    image = quarters()
    image.putalpha(alpha_mask())
    return image


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    return encoded(image or quarters(), "JPEG", quality=95, subsampling=0, **options)


def png(image: Image.Image | None = None, **options: object) -> bytes:
    return encoded(image or quarters(), "PNG", **options)


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def turned(orientation: int) -> Image.Image:
    """The picture stored so that ``orientation`` brings it back upright."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    return quarters() if undo is None else quarters().transpose(undo)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(values: np.ndarray, *, bits: int, colour: int, extra: bytes = b"", interlaced: bool = False) -> bytes:
    """A PNG written by hand from (height, width, channels) values: depths and layouts that Pillow does not write."""
    height, width = values.shape[:2]
    dtype = ">u2" if bits == 16 else "u1"
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b"".join(
        b"\0" + row.astype(dtype).tobytes()
        for top, left, down, across in passes
        for row in values[top::down, left::across]
    )
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sixteen(image: Image.Image) -> np.ndarray:
    values = np.asarray(image, dtype=np.uint16) * 257
    return values if values.ndim == 3 else values[:, :, None]


def icc(space: bytes, device: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ") -> bytes:
    """A minimal version-2 profile (ICC.1:2001-04)."""
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    rest = device + space + pcs + struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    rest += struct.pack(">3i", 63190, 65536, 54061) + b"\0" * 48
    length = 128 + 4 + len(table) + len(body)
    header = struct.pack(">I", length) + b"\0" * 4 + struct.pack(">I", 0x02400000) + rest
    return header[:128] + struct.pack(">I", len(tags)) + table + body


def xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in (x, y, z)))


def gamma(value: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(value * 256))


def swapped_profile() -> bytes:
    """RGB whose red and blue primaries are exchanged against sRGB's, with gamma 2.2."""
    tags = {b"wtpt": xyz(0.9642, 1, 0.8249), b"rXYZ": xyz(0.1431, 0.0606, 0.7141), b"gXYZ": xyz(0.3851, 0.7169, 0.0971)}
    tags |= {b"bXYZ": xyz(0.4361, 0.2225, 0.0139), b"rTRC": gamma(2.2), b"gTRC": gamma(2.2), b"bTRC": gamma(2.2)}
    return icc(b"RGB ", b"mntr", tags)


def linear_grey_profile() -> bytes:
    return icc(b"GRAY", b"mntr", {b"wtpt": xyz(0.9642, 1, 0.8249), b"kTRC": gamma(1.0)})


def cmyk_profile() -> bytes:
    """CMYK in which only cyan counts and is black ink: L* = 100 (1 - C), no colour."""
    table = bytes([255, 128, 128]) * 8 + bytes([0, 128, 128]) * 8
    curves = bytes(range(256)) * 4 + table + bytes(range(256)) * 3
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    return icc(b"CMYK", b"prtr", {b"wtpt": xyz(0.9642, 1, 0.8249), b"A2B0": lut + curves}, pcs=b"Lab ")


def lightness(value: float) -> tuple[int, int, int]:
    """The sRGB grey of CIE lightness L* (IEC 61966-2-1)."""
    linear = ((value + 16) / 116) ** 3 if value > 8 else value / 903.3
    level = round(255 * (1.055 * linear ** (1 / 2.4) - 0.055 if linear > 0.0031308 else 12.92 * linear))
    return (level, level, level)


def grey(colours: Quarters = QUARTERS) -> Quarters:
    """What ITU-R 601 makes of the colours."""
    levels = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in colours]
    return tuple((level, level, level) for level in levels)


def over(background: tuple[int, int, int], colour: tuple[int, int, int], alpha: int) -> tuple[int, int, int]:
    red, green, blue = (round((c * alpha + b * (255 - alpha)) / 255) for c, b in zip(colour, background, strict=True))
    return red, green, blue


def keyed_palette(transparency: object) -> bytes:
    image = quarters().quantize(4)
    return png(image, transparency=transparency)


def palette_index(colour: tuple[int, int, int]) -> int:
    image = quarters().quantize(4)
    point = {RED: (0, 0), GREEN: (95, 0), BLUE: (0, 63), GREY: (95, 63)}[colour]
    return int(image.getpixel(point))


def bmp_top_down() -> bytes:
    data = bytearray(encoded(quarters(), "BMP"))
    start, height = int.from_bytes(data[10:14], "little"), SIZE[1]
    rows = np.frombuffer(bytes(data[start:]), np.uint8).reshape(height, -1)
    data[22:26] = struct.pack("<i", -height)
    return bytes(data[:start]) + rows[::-1].tobytes()


BIG = 3 * 2**20
"""More than decoders unpack of a text (1 MiB)."""


def png_with(*chunks: bytes, behind: bytes = b"", image: bytes = b"") -> bytes:
    """A PNG with chunks in front of the pixels (and ``behind`` them)."""
    data = image or png()
    return data[:33] + b"".join(chunks) + data[33:-12] + behind + data[-12:]


def zipped_text(keyword: bytes = b"workflow", size: int = BIG) -> bytes:
    return chunk(b"zTXt", keyword + b"\0\0" + zlib.compress(b"a" * size, 9))


def international_text(keyword: bytes = b"workflow", size: int = BIG) -> bytes:
    return chunk(b"iTXt", keyword + b"\0\1\0\0\0" + zlib.compress(b"a" * size, 9))


def padded_profile() -> bytes:
    """The swapped profile, longer than decoders unpack: what stands behind its tags is nothing."""
    data = bytearray(swapped_profile() + bytes(BIG))
    data[:4] = struct.pack(">I", len(data))
    return bytes(data)


def png_profile(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile, 9))


def wrong_sum(whole: bytes) -> bytes:
    """A chunk whose checksum is wrong."""
    return whole[:-4] + bytes(4)


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG with segments (marker, content) behind its first one."""
    data = jpeg()
    place = 4 + int.from_bytes(data[4:6], "big")
    extra = b"".join(struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments)
    return data[:place] + extra + data[place:]


def damaged_index(entries: int = 3) -> bytes:
    """An index of several pictures (MPF) that leads nowhere."""
    head = b"MPF\0MM\0*" + struct.pack(">IH", 8, entries)
    return head + struct.pack(">HHII", 0xB001, 4, 1, entries) + b"\xff" * 20


def webp_with_rest(*, flags: int, rest: bytes) -> bytes:
    """A lossless WebP in the extended form whose last chunks are ``rest``."""
    body = encoded(quarters(), "WEBP", lossless=True)[12:]
    head = b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0])
    head += (SIZE[0] - 1).to_bytes(3, "little") + (SIZE[1] - 1).to_bytes(3, "little")
    content = b"WEBP" + head + body + rest
    return b"RIFF" + struct.pack("<I", len(content)) + content


def packed_exif(orientation: int) -> bytes:
    """EXIF as ImageMagick packs it into a PNG's text: in hexadecimal digits."""
    data = exif(orientation)
    text = f"\nexif\n{len(data):8d}\n{data.hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


def tiff(image: Image.Image | None = None, **options: object) -> bytes:
    return encoded(image or quarters(), "TIFF", **options)


def tiff_16() -> bytes:
    values = np.asarray(quarters().convert("L"), np.uint16) * 257
    return encoded(Image.fromarray(values), "TIFF")


def pages() -> bytes:
    return tiff(save_all=True, append_images=[Image.new("RGB", (40, 90), BLACK)])


def damaged_second_frame() -> bytes:
    data = bytearray(encoded(quarters(), "GIF", save_all=True, append_images=[Image.effect_noise(SIZE, 90)]))
    data[-400:] = bytes(400)
    return bytes(data)


def float_colours() -> bytes:
    """A TIFF of three 32-bit floating-point numbers a pixel, written by hand."""
    width, height = 8, 6
    pixels = np.full((height, width, 3), 0.3, "<f4").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 1, 32), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels)), (339, 3, 1, 3)]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + table


def huge_tiles() -> bytes:
    """A small TIFF whose one tile claims 60,000 x 60,000 pixels."""
    tags = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags += [(322, 4, 1, 60000), (323, 4, 1, 60000), (324, 4, 1, 8), (325, 4, 1, 8)]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 16) + bytes(8) + table


def animated(form: str) -> bytes:
    return encoded(quarters(), form, save_all=True, append_images=[Image.new("RGB", SIZE, BLACK)], lossless=True)


FLAT = (RED, GREEN, WHITE, over(WHITE, GREY, 128))
CYAN_AS_BLACK = tuple(lightness(100 * red / 255) for red, _, _ in QUARTERS)
ONE_BIT = (WHITE, BLACK, BLACK, WHITE)

# name of the file -> (its bytes, the colours of the four quarters as seen, tolerance per channel)
USABLE: dict[str, tuple[Callable[[], bytes], Quarters, int]] = {
    "plain.jpg": (jpeg, QUARTERS, 3),
    "upper.JPG": (jpeg, QUARTERS, 3),
    "long.jpeg": (jpeg, QUARTERS, 3),
    "progressive.jpg": (lambda: jpeg(progressive=True), QUARTERS, 3),
    "grey.jpg": (lambda: jpeg(quarters().convert("L")), grey(), 3),
    "cmyk.jpg": (lambda: jpeg(quarters().convert("CMYK")), QUARTERS, 4),
    "cmyk_profile.jpg": (lambda: jpeg(quarters().convert("CMYK"), icc_profile=cmyk_profile()), CYAN_AS_BLACK, 4),
    "mpo.jpg": (lambda: encoded(quarters(), "MPO", save_all=True, append_images=[turned(3)]), QUARTERS, 30),
    **{
        f"orientation_{number}.jpg": (
            lambda number=number: jpeg(turned(number), exif=exif(number)),  # type: ignore[misc]
            QUARTERS,
            3,
        )
        for number in range(1, 9)
    },
    "orientation_99.jpg": (lambda: jpeg(exif=exif(99)), QUARTERS, 3),
    "exif_damaged.jpg": (lambda: jpeg(exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), QUARTERS, 3),
    "trailing_garbage.jpg": (lambda: jpeg() + b"\0garbage" * 100, QUARTERS, 3),
    "swapped_profile.jpg": (
        lambda: jpeg(icc_profile=swapped_profile()),
        tuple((b, g, r) for r, g, b in QUARTERS),
        8,
    ),
    "profile_damaged.jpg": (lambda: jpeg(icc_profile=b"not a profile" * 20), QUARTERS, 3),
    "profile_foreign.jpg": (lambda: jpeg(icc_profile=linear_grey_profile()), QUARTERS, 3),
    "rgb.png": (png, QUARTERS, 0),
    "orientation.png": (lambda: png(turned(6), exif=exif(6)), QUARTERS, 0),
    "interlaced.png": (lambda: raw_png(np.asarray(quarters()), bits=8, colour=2, interlaced=True), QUARTERS, 0),
    "alpha.png": (lambda: png(with_alpha()), FLAT, 1),
    "grey_alpha.png": (lambda: png(with_alpha().convert("LA")), (*grey((RED, GREEN)), WHITE, FLAT[3]), 1),
    "palette.png": (lambda: png(quarters().quantize(4)), QUARTERS, 0),
    "palette_key.png": (lambda: keyed_palette(palette_index(GREEN)), (RED, WHITE, BLUE, GREY), 0),
    "palette_alpha.png": (
        lambda: keyed_palette(bytes(128 if index == palette_index(BLUE) else 255 for index in range(4))),
        (RED, GREEN, over(WHITE, BLUE, 128), GREY),
        1,
    ),
    "colour_key.png": (lambda: png(transparency=BLUE), (RED, GREEN, WHITE, GREY), 0),
    "grey_key.png": (
        lambda: png(quarters().convert("L"), transparency=grey()[1][0]),
        (grey()[0], WHITE, *grey()[2:]),
        0,
    ),
    "grey_16.png": (lambda: raw_png(sixteen(quarters().convert("L")), bits=16, colour=0), grey(), 0),
    "grey_16_key.png": (
        lambda: raw_png(
            sixteen(quarters().convert("L")),
            bits=16,
            colour=0,
            extra=chunk(b"tRNS", struct.pack(">H", grey()[0][0] * 257)),
        ),
        (WHITE, *grey()[1:]),
        0,
    ),
    "rgb_16.png": (lambda: raw_png(sixteen(quarters()), bits=16, colour=2), QUARTERS, 1),
    "rgb_16_key.png": (
        lambda: raw_png(
            sixteen(quarters()),
            bits=16,
            colour=2,
            extra=chunk(b"tRNS", struct.pack(">3H", *(value * 257 for value in BLUE))),
        ),
        (RED, GREEN, WHITE, GREY),
        1,
    ),
    "rgba_16.png": (lambda: raw_png(sixteen(with_alpha()), bits=16, colour=6), FLAT, 1),
    "la_16.png": (
        lambda: raw_png(sixteen(with_alpha().convert("LA")), bits=16, colour=4),
        (*grey((RED, GREEN)), WHITE, FLAT[3]),
        1,
    ),
    "one_bit.png": (lambda: png(quarters(ONE_BIT).convert("1")), ONE_BIT, 0),
    "four_bit.png": (lambda: png(quarters().quantize(4), bits=4), QUARTERS, 0),
    "animated.png": (lambda: animated("PNG"), QUARTERS, 0),
    "swapped_profile.png": (
        lambda: png(with_alpha(), icc_profile=swapped_profile()),
        ((30, 30, 220), (40, 200, 30), WHITE, FLAT[3]),
        8,
    ),
    "linear_grey.png": (
        lambda: png(Image.new("L", SIZE, 55), icc_profile=linear_grey_profile()),
        ((128, 128, 128),) * 4,
        3,
    ),
    "no_end.png": (lambda: png()[:-12], QUARTERS, 0),
    "trailing_garbage.png": (lambda: png() + b"\0" * 1000, QUARTERS, 0),
    "lossy.webp": (lambda: encoded(quarters(), "WEBP", quality=95), QUARTERS, 12),
    "alpha.webp": (lambda: encoded(with_alpha(), "WEBP", lossless=True, exact=True), FLAT, 1),
    "orientation.webp": (lambda: encoded(turned(8), "WEBP", lossless=True, exif=exif(8)), QUARTERS, 0),
    "animated.webp": (lambda: animated("WEBP"), QUARTERS, 0),
    "rgb.bmp": (lambda: encoded(quarters(), "BMP"), QUARTERS, 0),
    "top_down.bmp": (bmp_top_down, QUARTERS, 0),
    "palette.bmp": (lambda: encoded(quarters().quantize(4), "BMP"), QUARTERS, 0),
    "one_bit.bmp": (lambda: encoded(quarters(ONE_BIT).convert("1"), "BMP"), ONE_BIT, 0),
    "rgb.avif": (lambda: encoded(quarters(), "AVIF", quality=95, subsampling="4:4:4"), QUARTERS, 8),
    "alpha.avif": (lambda: encoded(with_alpha(), "AVIF", quality=95, subsampling="4:4:4"), FLAT, 8),
    "orientation.avif": (
        lambda: encoded(turned(6), "AVIF", quality=95, subsampling="4:4:4", exif=exif(6)),
        QUARTERS,
        8,
    ),
    "png_inside.jpg": (png, QUARTERS, 0),
    "jpeg_inside.png": (jpeg, QUARTERS, 3),
    "webp_inside.bmp": (lambda: encoded(quarters(), "WEBP", lossless=True), QUARTERS, 0),
    "no_suffix": (png, QUARTERS, 0),
    "photo.jfif": (jpeg, QUARTERS, 3),
    "[bold] a name, with blanks & 猫.png": (png, QUARTERS, 0),
    "decomposed_cafe\u0301.png": (png, QUARTERS, 0),
    "large.jpg": (lambda: jpeg(quarters(size=(3000, 2000))), QUARTERS, 3),
    "large.png": (lambda: png(quarters(size=(1500, 1000))), QUARTERS, 0),
    "workflow.png": (lambda: png_with(zipped_text()), QUARTERS, 0),
    "workflow_behind.png": (lambda: png_with(behind=zipped_text()), QUARTERS, 0),
    "workflow_international.png": (lambda: png_with(international_text()), QUARTERS, 0),
    "many_texts.png": (
        lambda: png_with(*(zipped_text(b"part %d" % number, 2**20 - 99) for number in range(70))),
        QUARTERS,
        0,
    ),
    "text_wrong_sum.png": (lambda: png_with(wrong_sum(chunk(b"tEXt", b"Comment\0hello"))), QUARTERS, 0),
    "text_not_packed.png": (lambda: png_with(chunk(b"zTXt", b"Comment\0\0not packed")), QUARTERS, 0),
    "text_unknown_packing.png": (lambda: png_with(chunk(b"zTXt", b"Comment\0\7x")), QUARTERS, 0),
    "exif_wrong_sum.png": (lambda: png_with(wrong_sum(chunk(b"eXIf", exif(6)[6:]))), QUARTERS, 0),
    "exif_large.png": (lambda: png_with(chunk(b"eXIf", exif(6)[6:] + bytes(BIG)), image=png(turned(6))), QUARTERS, 0),
    "exif_in_text.png": (lambda: png_with(packed_exif(8), image=png(turned(8))), QUARTERS, 0),
    "orientation_bomb.png": (lambda: png_with(zipped_text(b"Raw profile type exif", 2**24)), QUARTERS, 0),
    "size_wrong.png": (lambda: png_with(chunk(b"pHYs", b"x")), QUARTERS, 0),
    "frames_wrong.png": (lambda: png_with(chunk(b"acTL", b"\xff"), behind=chunk(b"fdAT", b"")), QUARTERS, 0),
    "profile_large.png": (
        lambda: png_with(png_profile(padded_profile())),
        tuple((b, g, r) for r, g, b in QUARTERS),
        8,
    ),
    "profile_bomb.png": (lambda: png_with(png_profile(bytes(20 * 2**20))), QUARTERS, 0),
    "profile_wrong_sum.png": (lambda: png_with(wrong_sum(png_profile(b"x" * 200))), QUARTERS, 0),
    "xmp_large.jpg": (
        lambda: jpeg_with(*[(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65000))] * 40),
        QUARTERS,
        3,
    ),
    "index_damaged.jpg": (lambda: jpeg_with((0xE2, damaged_index())), QUARTERS, 3),
    "index_nonsense.jpg": (lambda: jpeg_with((0xE2, b"MPF\0" + bytes(40))), QUARTERS, 3),
    "photoshop_damaged.jpg": (lambda: jpeg_with((0xED, b"Photoshop 3.0\x008BIM\x03\xed\xff")), QUARTERS, 3),
    "comment.jpg": (lambda: jpeg_with((0xFE, b"\xff" * 60000)), QUARTERS, 3),
    "xmp_cut_off.webp": (
        lambda: webp_with_rest(flags=0x04, rest=b"XMP " + struct.pack("<I", 5000) + b"half of it"),
        QUARTERS,
        0,
    ),
    "exif_cut_off.webp": (
        lambda: webp_with_rest(flags=0x08, rest=b"EXIF" + struct.pack("<I", 5000) + b"half of it"),
        QUARTERS,
        0,
    ),
    "still.gif": (lambda: encoded(quarters(), "GIF"), QUARTERS, 2),
    "anim.gif": (
        lambda: encoded(quarters(), "GIF", save_all=True, append_images=[Image.new("RGB", SIZE, BLACK)]),
        QUARTERS,
        2,
    ),
    "frame_damaged.gif": (damaged_second_frame, QUARTERS, 2),
    "transparent.gif": (
        lambda: encoded(quarters().quantize(4), "GIF", transparency=palette_index(BLUE), disposal=2),
        (RED, GREEN, WHITE, GREY),
        2,
    ),
    "gif_inside.png": (lambda: encoded(quarters(), "GIF"), QUARTERS, 2),
    "scan.tif": (tiff, QUARTERS, 0),
    "packed.tiff": (lambda: tiff(compression="tiff_lzw"), QUARTERS, 0),
    "jpeg_inside.tif": (lambda: tiff(compression="jpeg", quality=95), QUARTERS, 12),
    "cmyk.tif": (lambda: tiff(quarters().convert("CMYK")), QUARTERS, 1),
    "cmyk_profile.tif": (lambda: tiff(quarters().convert("CMYK"), icc_profile=cmyk_profile()), CYAN_AS_BLACK, 4),
    "grey_16.tif": (tiff_16, grey(), 0),
    "alpha.tif": (lambda: tiff(with_alpha()), FLAT, 1),
    "one_bit.tif": (lambda: tiff(quarters(ONE_BIT).convert("1"), compression="group4"), ONE_BIT, 0),
    "orientation.tif": (lambda: tiff(turned(6), tiffinfo={274: 6}), QUARTERS, 0),
    "pages.tif": (pages, QUARTERS, 0),
    "tiny.png": (lambda: png(quarters(size=(2, 2))), QUARTERS, 60),
}


def damaged_png() -> bytes:
    data = bytearray(png(Image.effect_noise(SIZE, 60)))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    return bytes(data)


def claims(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + png()[33:]


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


# name of the file -> (its bytes, words that the reason must contain)
UNUSABLE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.png": (lambda: b"", "zero bytes"),
    "truncated.jpg": (lambda: cut(jpeg(Image.effect_noise(SIZE, 60))), "truncated"),
    "truncated_by_100.jpg": (lambda: jpeg(Image.effect_noise((400, 300), 60))[:-100], "truncated"),
    "truncated_progressive.jpg": (lambda: cut(jpeg(Image.effect_noise(SIZE, 60), progressive=True)), "truncated"),
    "truncated.png": (lambda: cut(png(Image.effect_noise(SIZE, 60))), "truncated"),
    "truncated.webp": (lambda: cut(encoded(Image.effect_noise(SIZE, 60), "WEBP")), "damaged"),
    "truncated.bmp": (lambda: cut(encoded(quarters(), "BMP")), "truncated"),
    "truncated.avif": (lambda: cut(encoded(Image.effect_noise(SIZE, 60).convert("RGB"), "AVIF")), "damaged"),
    "header_only.jpg": (lambda: jpeg()[:20], "damaged"),
    "damaged.png": (damaged_png, "damaged"),
    "text.png": (lambda: b"this is not a picture at all", "not an image"),
    "random.jpg": (lambda: np.random.default_rng(0).bytes(5000), "not an image"),
    "zeros.webp": (lambda: bytes(5000), "not an image"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html>404</html>", "HTML"),
    "truncated.gif": (lambda: cut(encoded(Image.effect_noise(SIZE, 60), "GIF")), "truncated"),
    "truncated.tif": (lambda: cut(tiff(Image.effect_noise(SIZE, 60), compression="tiff_deflate")), "damaged"),
    "float.tif": (lambda: tiff(Image.new("F", SIZE, 0.3)), "floating-point"),
    "float_colours.tif": (float_colours, "not read"),
    "whole_numbers.tif": (lambda: tiff(Image.new("I", SIZE, 70000)), "32-bit"),
    "lab.tif": (lambda: tiff(Image.new("LAB", SIZE)), "Lab"),
    "huge_tiles.tif": (huge_tiles, "tiles"),
    "preview.nef": (lambda: tiff(tiffinfo={254: 1}), "small preview"),
    "camera.dng": (lambda: tiff(tiffinfo={50706: b"\1\4\0\0"}), "camera raw"),
    "canon.cr2": (lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "camera raw"),
    "picture.jxl": (lambda: b"\xff\x0a" + bytes(100), "JPEG XL"),
    "picture.jp2": (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), "JPEG 2000"),
    "stream.j2k": (lambda: b"\xff\x4f\xff\x51" + bytes(100), "JPEG 2000"),
    "phone.heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(100), "HEIC"),
    "clip.mp4": (lambda: b"\0\0\0\x18ftypmp42" + bytes(100), "video"),
    "drawing.svg": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
    "pointer.png": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
    "huge_claim.png": (lambda: claims(60000, 60000), "too many pixels"),
    "over_limit.png": (lambda: claims(13000, 13000), "max_megapixels"),
    "zero_width.png": (lambda: claims(0, 10), "damaged"),
    "bad_header.bmp": (lambda: b"BM" + b"\xff" * 60, "truncated"),
    "only_riff.webp": (lambda: b"RIFF\x10\0\0\0WEBPVP8 " + bytes(30), "damaged"),
}
