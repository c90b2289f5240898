"""Image files of every mode and orientation become the same upright RGB picture."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from dgia_jax.data import images


def _gradient(height=48, width=24):
  """(H, W, 3) smooth picture, bright at the top, so that turning it over shows."""
  rows_H = np.linspace(240, 10, height).astype(np.uint8)
  return np.repeat(np.repeat(rows_H[:, None, None], width, 1), 3, 2)


def _pixels(path):
  return np.asarray(images.read_rgb(str(path)))


@pytest.mark.parametrize(
  ("mode", "ending"),
  [("RGB", "png"), ("L", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("CMYK", "jpg"),
   ("L", "jpg"), ("YCbCr", "tif"), ("RGB", "webp"), ("RGB", "bmp"), ("P", "gif")],
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


@pytest.mark.parametrize(("encoding", "form", "error"), [("jpeg", "JPEG", 4), ("png", "PNG", 0)])
def test_encode_resized(tmp_path, encoding, form, error):
  Image.fromarray(_gradient(60, 40)).save(tmp_path / "x.png")
  image = Image.open(io.BytesIO(images.encode_resized(str(tmp_path / "x.png"), (24, 8), encoding)))
  assert image.format == form and image.size == (8, 24)
  expected = Image.fromarray(_gradient(60, 40)).resize((8, 24), Image.Resampling.BICUBIC)
  assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= error


def test_inspect_reports_what_is_stored(tmp_path):
  Image.fromarray(_gradient()).convert("P").save(tmp_path / "x.png")
  assert images.inspect(str(tmp_path / "x.png")) == images.ImageFacts(24, 48, "P")


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
    read(str(path))
  assert reason in str(caught.value) and "\n" not in str(caught.value)


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
