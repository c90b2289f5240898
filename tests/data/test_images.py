"""Image files of every mode and orientation become the same upright RGB image."""

import os
import pickle
import struct
import threading

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageFile

from dgia_jax.data import images


def _gradient(height=48, width=24):
  """A smooth (H, W, 3) image, bright at the top, so that a wrong orientation is visible."""
  rows_H = np.linspace(240, 10, height).astype(np.uint8)
  return np.repeat(np.repeat(rows_H[:, None, None], width, 1), 3, 2)


def _pixels(path):
  return np.asarray(images.read_rgb(path))


@pytest.mark.parametrize(
  ("mode", "ending"),
  [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("CMYK", "jpg"),
   ("L", "jpg"), ("YCbCr", "jpg"), ("RGB", "tif"), ("RGB", "webp"), ("RGB", "bmp"), ("P", "gif")],
)  # fmt: skip
def test_modes(tmp_path, mode, ending):
  path = tmp_path / f"ü {mode}.{ending}"
  Image.fromarray(_gradient()).convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
  pixels = _pixels(path)
  assert pixels.shape == (48, 24, 3) and pixels.dtype == np.uint8
  assert np.abs(pixels.astype(int) - _gradient()).max() <= 12


def test_black_and_white(tmp_path):
  Image.fromarray(_gradient()).convert("1").save(tmp_path / "x.png")
  assert set(np.unique(_pixels(tmp_path / "x.png"))) == {0, 255}


def test_palette_with_transparency_gives_no_warning(tmp_path, recwarn):
  image = Image.fromarray(_gradient()).convert("P")
  image.info["transparency"] = bytes(range(256))
  image.save(tmp_path / "x.png")
  assert _pixels(tmp_path / "x.png").shape == (48, 24, 3)
  assert not list(recwarn)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_grayscale_keeps_its_shades(tmp_path, mode):
  gray = _gradient()[..., 0]
  array = {"I;16": gray.astype(np.uint16) * 257, "I": gray.astype(np.int32) * 257,
           "F": gray.astype(np.float32) / 255}[mode]  # fmt: skip
  path = tmp_path / "x.tif"
  Image.fromarray(array).save(path)
  assert Image.open(path).mode == mode
  assert np.abs(_pixels(path).astype(int) - _gradient()).max() <= 1


@pytest.mark.parametrize("gap", [np.nan, np.inf, -np.inf])
def test_a_gap_in_a_float_image_leaves_the_other_pixels_as_they_are(tmp_path, gap):
  array = _gradient()[..., 0].astype(np.float32) / 255
  array[3, 5] = gap
  Image.fromarray(array).save(tmp_path / "x.tif")
  pixels, expected = _pixels(tmp_path / "x.tif").astype(int), _gradient().astype(int)
  expected[3, 5] = 255 if gap == np.inf else 0
  assert np.abs(pixels - expected).max() <= 1


def test_a_float_image_of_gaps_is_black(tmp_path):
  Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "x.tif")
  assert not _pixels(tmp_path / "x.tif").any()


def test_dark_16_bit_images_stay_dark(tmp_path):
  Image.fromarray(np.full((4, 4), 200, np.uint16)).save(tmp_path / "x.png")
  assert _pixels(tmp_path / "x.png").max() == 1


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, -1), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = np.rot90(_gradient(), -turn)
  Image.fromarray(stored).save(tmp_path / "x.jpg", exif=exif, quality=95)
  pixels = _pixels(tmp_path / "x.jpg")
  assert pixels.shape == (48, 24, 3)
  assert np.abs(pixels.astype(int) - _gradient()).max() <= 8


def _exif(*entries):
  """EXIF with an orientation of 6, and entries (tag, type, four bytes) of one value each."""
  entries = [(0x0112, 3, struct.pack("<HH", 6, 0)), *entries]
  body = b"".join(struct.pack("<HHI4s", tag, kind, 1, value) for tag, kind, value in entries)
  return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("tag", [0x0128, 0x011A])  # unit and value of the resolution
def test_faulty_exif_does_not_hide_the_orientation(tmp_path, ending, tag):
  path = tmp_path / f"x.{ending}"
  text = 2
  image = Image.fromarray(np.rot90(_gradient(), 1))
  image.save(path, exif=_exif((tag, text, b"a\0\0\0")), quality=95)
  pixels = _pixels(path)
  assert pixels.shape == (48, 24, 3)
  assert np.abs(pixels.astype(int) - _gradient()).max() <= 8
  assert images.inspect(path) == images.ImageFacts(48, 24, "RGB")


def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
  _noise(4, 6).save(tmp_path / "x.png", exif=b"Exif\0\0no EXIF at all")
  np.testing.assert_array_equal(_pixels(tmp_path / "x.png"), np.asarray(_noise(4, 6)))


def test_large_images_are_not_copied():
  image = _noise(4, 6)
  assert images.upright_rgb(image) is image


def _noise(height, width):
  pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
  return Image.fromarray(pixels)


FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("size", [(60, 40), (12, 4), (24, 40), (7, 5)])
@pytest.mark.parametrize("resize", FILTERS)
def test_resized_is_pillows_filter_to_the_bit(tmp_path, resize, size):
  _noise(*size).save(tmp_path / "x.png")
  pixels = images.read_resized(tmp_path / "x.png", (24, 8), resize)
  expected = _noise(*size).resize((8, 24), FILTERS[resize])
  np.testing.assert_array_equal(pixels, np.asarray(expected))
  assert pixels.dtype == np.uint8


def test_bilinear_resizing_is_antialiased():
  """Each pixel is the triangle-weighted mean of all pixels below it, not of its four neighbours."""
  stripes_W = np.arange(32) % 4 == 0
  image = Image.fromarray(np.broadcast_to(stripes_W[None, :, None] * 255, (8, 32, 3)).astype("u1"))
  pixels = images.resized(image, (8, 8), "bilinear")
  assert np.abs(pixels[:, 1:-1].astype(int) - 64).max() <= 1


def test_an_image_of_the_right_size_keeps_its_pixels():
  for resize in FILTERS:
    image = _noise(24, 8)
    np.testing.assert_array_equal(images.resized(image, (24, 8), resize), np.asarray(image))


def test_the_filters_differ():
  image = _noise(60, 40)
  one, other = (images.resized(image, (24, 8), resize).astype(int) for resize in FILTERS)
  assert (one != other).mean() > 0.5


def test_inspect_reports_what_is_stored(tmp_path):
  Image.fromarray(_gradient()).convert("P").save(tmp_path / "x.png")
  assert images.inspect(str(tmp_path / "x.png")) == images.ImageFacts(24, 48, "P")


@pytest.mark.parametrize("read", [images.read_rgb, images.inspect])
def test_inspect_fails_wherever_reading_does(tmp_path, monkeypatch, read):
  def upright_rgb(image):
    raise ValueError("no RGB")

  _noise(4, 4).save(tmp_path / "x.png")
  monkeypatch.setattr(images, "upright_rgb", upright_rgb)
  with pytest.raises(images.UnreadableImageError, match="x.png: no RGB"):
    read(tmp_path / "x.png")


@pytest.mark.parametrize("read", [images.read_rgb, images.inspect])
def test_images_that_do_not_fit_into_the_memory_are_named(tmp_path, monkeypatch, read):
  def load(image):
    raise MemoryError

  _noise(4, 4).save(tmp_path / "x.png")
  monkeypatch.setattr(ImageFile.ImageFile, "load", load)
  with pytest.raises(images.UnreadableImageError, match="x.png: too large for the memory"):
    read(tmp_path / "x.png")


@pytest.mark.parametrize(
  "start", [b"\0\0\1\xb3" + bytes(8), b"\x89HDF\r\n\x1a\n", b"\0\0\0\x18ftypmp42"]
)
def test_of_videos_only_the_beginning_is_read(tmp_path, start):
  with (tmp_path / "x.jpg").open("wb") as file:
    file.write(start)
    file.truncate(2**40)
  with pytest.raises(images.UnreadableImageError, match="x.jpg: not an image in a known format"):
    images.read_bytes(tmp_path / "x.jpg")


def test_worker_processes_can_pass_the_error_on():
  error = pickle.loads(pickle.dumps(images.UnreadableImageError("a.jpg", "broken")))
  assert (str(error), error.path, error.reason) == ("a.jpg: broken", "a.jpg", "broken")


def _truncated(path):
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
  path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize(
  ("damage", "reason"),
  [
    (lambda path: path.write_bytes(b""), "empty"),
    (lambda path: path.write_text("<html>not found</html>"), "not an image"),
    (_truncated, "truncated"),
    (lambda path: None, "No such file"),
  ],
)
@pytest.mark.parametrize("read", [images.read_rgb, images.inspect])
def test_unreadable_images_are_named(tmp_path, damage, reason, read):
  path = tmp_path / "bad.jpg"
  damage(path)
  with pytest.raises(images.UnreadableImageError, match="bad.jpg") as caught:
    read(path)
  assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [images.read_rgb, images.inspect])
def test_no_image_starts_another_program(tmp_path, monkeypatch, read):
  """An EPS file named x.jpg is not given to Ghostscript, which would run its PostScript."""
  program = tmp_path / "gs"
  program.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
  program.chmod(0o755)
  monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
  monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
  Image.fromarray(_gradient()).save(tmp_path / "x.jpg", format="EPS")
  with pytest.raises(images.UnreadableImageError, match="x.jpg: EPS files are not decoded"):
    read(tmp_path / "x.jpg")
  assert not (tmp_path / "started").exists()


def test_windows_metafiles_are_named(tmp_path):
  (tmp_path / "x.wmf").write_bytes(b"\xd7\xcd\xc6\x9a" + bytes(80))
  with pytest.raises(images.UnreadableImageError, match="WMF files are not decoded"):
    images.read_rgb(tmp_path / "x.wmf")


def test_format_of(tmp_path):
  _noise(4, 4).save(tmp_path / "x.png")
  assert images.format_of((tmp_path / "x.png").read_bytes(), "x") == "PNG"
  with pytest.raises(images.UnreadableImageError, match="x: not an image"):
    images.format_of(b"text", "x")


def test_ordered_map_keeps_the_order_and_reads_ahead_a_little():
  taken = []

  def items():
    for n in range(200):
      taken.append(n)
      yield n

  results = images.ordered_map(lambda n: n * n, items(), 3)
  assert next(results) == 0
  assert len(taken) < 30
  assert list(results) == [n * n for n in range(1, 200)]


def test_ordered_map_passes_errors_on_and_stops():
  started = threading.active_count()

  def half(n):
    if n == 5:
      raise ValueError("five")
    return n

  results = images.ordered_map(half, range(1000), 2)
  assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
  with pytest.raises(ValueError, match="five"):
    next(results)
  assert threading.active_count() == started
