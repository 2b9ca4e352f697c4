"""An image is an image: what is decoded, to which pixels, and what is refused with its name."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from src.datasets import cache
from src.datasets.cache import cached
from src.datasets.examples import FORMATS, CorruptImage, DataError, Files, decode, digest
from src.datasets.loading import centre_crop

RED, GREEN = (200, 30, 10), (20, 180, 40)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def two_halves(left=RED, right=GREEN) -> Image.Image:
    """8 x 8, one colour at the left and one at the right."""
    pixels = np.empty((8, 8, 3), np.uint8)
    pixels[:, :4], pixels[:, 4:] = left, right
    return Image.fromarray(pixels)


def palette() -> bytes:
    image = two_halves().quantize(4)
    return saved(image, "PNG", transparency=0)


def exif_turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera that was held upright
    return saved(two_halves(), "PNG", exif=exif)


def sixteen_bits(kind: str) -> bytes:
    return saved(Image.fromarray(np.tile(np.array([0, 257 * 100, 65535], np.uint16), (3, 1))), kind)


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
CLOSE = 12  # what JPEG and colour spaces lose
HALVES, GREY16 = (RED, GREEN), ((0,) * 3, (100,) * 3, (255,) * 3)
# kind -> bytes, colours from left to right, how close
PIXELS = {
    "png": (saved(two_halves(), "PNG"), HALVES, 0),
    "jpeg": (saved(two_halves(), "JPEG", quality=95, subsampling=0), HALVES, CLOSE),
    "progressive jpeg": (saved(two_halves(), "JPEG", quality=95, subsampling=0, progressive=True), HALVES, CLOSE),
    "cmyk jpeg": (saved(two_halves().convert("CMYK"), "JPEG", quality=95), HALVES, CLOSE),
    "palette with transparency": (palette(), HALVES, 0),
    "transparent": (saved(two_halves().convert("RGBA"), "PNG"), HALVES, 0),
    "grey with alpha": (saved(Image.new("LA", (8, 8), (77, 0)), "PNG"), ((77,) * 3,), 0),
    "one bit": (saved(Image.new("1", (8, 8), 1), "PNG"), ((255,) * 3,), 0),
    "gif": (saved(two_halves().quantize(4), "GIF"), HALVES, 0),
    "bmp": (saved(two_halves(), "BMP"), HALVES, 0),
    "tiff": (saved(two_halves(), "TIFF"), HALVES, 0),
    "webp": (saved(two_halves(), "WEBP", lossless=True), HALVES, 0),
    "ppm": (saved(two_halves(), "PPM"), HALVES, 0),
    "turned by exif": (exif_turned(), HALVES, 0),
    "16-bit png": (sixteen_bits("PNG"), GREY16, 0),
    "16-bit tiff": (sixteen_bits("TIFF"), GREY16, 0),
    "16-bit pgm": (sixteen_bits("PPM"), GREY16, 0),
    "one pixel": (saved(Image.new("RGB", (1, 1), RED), "PNG"), (RED,), 0),
    "narrow": (saved(Image.new("RGB", (1, 6000), RED), "PNG"), (RED,), 0),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_the_pixels_of_each_kind(kind, tmp_path):
    data, colours, close = PIXELS[kind]
    path = tmp_path / "picture.jpg"  # whatever a file is called
    path.write_bytes(data)
    for image in (decode(data, "here"), decode(str(path), "here")):
        assert image.mode == "RGB"
        row = np.asarray(image)[0].astype(int)
        for place, colour in enumerate(colours):
            middle = row[(2 * place + 1) * len(row) // (2 * len(colours))]
            assert abs(middle - colour).max() <= close


def png(width: int, height: int) -> bytes:
    """A PNG of this size by its header, with no more than a few bytes of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def eps(marker: Path) -> bytes:
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n({marker}) (w) file closefile\nshowpage\n".encode()


def text_bomb() -> bytes:
    """A PNG whose comment unpacks to 64 MB."""
    data = b"a\0\0" + zlib.compress(bytes(1 << 26))
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    whole = png(8, 8)
    return whole[:33] + chunk + whole[33:]


REFUSED = {
    "nothing": b"",
    "text": b"<html>not found</html>",
    "cut short": PIXELS["jpeg"][0][:200],
    "cut short png": PIXELS["png"][0][:60],
    "cut short tiff": PIXELS["tiff"][0][:40],
    "wrong checksum": PIXELS["png"][0].replace(b"IDAT", b"IDAU"),
    "pixel bomb": png(60000, 60000),
    "pixels beyond the limit": png(10000, 9000),
    "no pixels": png(0, 0),
    "comment bomb": text_bomb(),
    "floating point": saved(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF"),
    "32-bit integers": saved(Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)), "TIFF"),
    "icon": saved(two_halves().resize((16, 16)), "ICO"),
    "lab": saved(two_halves().convert("HSV").convert("RGB").convert("LAB"), "TIFF")[:90],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_image_is_refused_by_name(kind):
    with pytest.raises(CorruptImage, match="^corrupt image here: ."):
        decode(REFUSED[kind], "here")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_eps_file_never_reaches_ghostscript(kind, tmp_path, monkeypatch):
    """Under whatever name: it is a program, which Pillow would have run."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *which, **more: pytest.fail("Ghostscript was called"))
    Image.init()  # every reader is loaded, and yet it is not asked
    path = tmp_path / f"picture.{kind.lower()}"
    path.write_bytes(eps(tmp_path / "marker"))
    for source in (str(path), path.read_bytes()):
        with pytest.raises(CorruptImage):
            decode(source, "here")
    assert "EPS" not in FORMATS


def broken(tmp_path) -> dict[str, Path]:
    """Paths that are no files of images."""
    places = {name: tmp_path / name for name in ("pipe", "folder", "dead link", "absent")}
    os.mkfifo(places["pipe"])
    places["folder"].mkdir()
    places["dead link"].symlink_to(tmp_path / "nowhere")
    return places


def test_all_that_is_refused_is_counted_and_named(tmp_path):
    """Bytes that are no image, and what is no file; and names that are no UTF-8."""
    whole = tmp_path / "whole.png"
    whole.write_bytes(PIXELS["png"][0])
    latin1 = Path(os.fsdecode(bytes(tmp_path) + b"/rivi\xe8re.jpg"))
    latin1.write_bytes(b"no image")
    paths = [whole, latin1, *broken(tmp_path).values()]
    for number, data in enumerate(REFUSED.values()):
        paths.append(tmp_path / f"{number}.png")
        paths[-1].write_bytes(data)
    examples = Files.of((path, 0) for path in paths)
    crop = lambda image: centre_crop(image, 8)  # noqa: E731
    wrong = len(paths) - 1
    told = f"Cars test: {wrong} of {len(paths)} images cannot be decoded"
    with pytest.raises(DataError, match=told) as caught:
        cached(examples, crop, "8", tmp_path / "cache", "Cars", "test")
    assert r"rivi\xe8re.jpg" in str(caught.value)
    str(caught.value).encode()  # it can be printed
    with pytest.warns(UserWarning, match=told):
        found = cached(examples, crop, "8", tmp_path / "cache", "Cars", "test", skip_corrupt=True)
        assert len(cache.without_corrupt(examples, "Cars", "test", True)) == 1
    assert len(found) == 1 and np.array_equal(found.pixels[0], np.asarray(two_halves()))
    with pytest.raises(CorruptImage, match="pipe: no regular file"):
        examples.raw(paths.index(tmp_path / "pipe"))


def test_names_that_are_no_utf8_tell_files_apart():
    assert digest([os.fsdecode(b"\xe8")]) != digest([os.fsdecode(b"\xe9")])


@given(data=st.data())
def test_damaged_bytes_end_in_one_kind_of_error(data):
    """Bytes of images that are changed, removed or inserted: an image, or CorruptImage."""
    kind = data.draw(st.sampled_from(sorted(PIXELS)))
    damaged = bytearray(PIXELS[kind][0][:5000])
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(damaged)))
        stop = start + data.draw(st.integers(0, 4))
        damaged[start:stop] = data.draw(st.binary(max_size=4))
    try:
        assert decode(bytes(damaged), "here").mode == "RGB"
    except CorruptImage:
        pass
