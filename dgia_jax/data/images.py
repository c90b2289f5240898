"""Image files to pixels: upright 8-bit RGB, squeezed to the model's size.

Training, evaluation and search all resize here, so an image has the same pixels everywhere. A
file that cannot be decoded raises `UnreadableImageError`, whatever its decoder raised; the caller
decides whether to stop or to skip it. Formats for which Pillow starts another program count as
unreadable, because images may come from strangers.
"""

import collections
import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image

# Names of `dataset.resize`. Both filters are Pillow's, antialiased, on 8-bit pixels.
RESIZE_FILTERS = {
  "bilinear": Image.Resampling.BILINEAR,  # the released DGIA code
  "bicubic": Image.Resampling.BICUBIC,  # CLIP's own preprocessing
}

# Pillow runs Ghostscript on EPS files, whatever their names, and Windows' own drawing on WMF files.
_OTHER_PROGRAMS = ("EPS", "WMF")
# Pillow only recognises these: videos, and measurements that may be larger than the memory.
_NOT_IMAGES = ("BUFR", "GRIB", "HDF5", "MPEG")

# EXIF orientation -> what turns the image upright; 1 is upright.
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}

Item = TypeVar("Item")
Result = TypeVar("Result")


class UnreadableImageError(Exception):
  """An image that cannot be decoded: its path and the decoder's reason."""

  def __init__(self, path: str, reason: str):
    super().__init__(path, reason)  # both, as worker processes pass the error on pickled
    self.path, self.reason = path, reason

  def __str__(self) -> str:
    return f"{self.path}: {self.reason}"


class TooLargeImageError(UnreadableImageError):
  """An image that did not fit into the memory, perhaps only while others were decoded."""


@dataclasses.dataclass(frozen=True)
class ImageFacts:
  """Size in pixels and PIL mode of a file, as stored."""

  width: int
  height: int
  mode: str


def decoded_formats() -> list[str]:
  """Pillow's names of the formats that are decoded without another program, in its order."""
  Image.init()
  return [name for name in Image.ID if name not in (*_OTHER_PROGRAMS, *_NOT_IMAGES)]


def read_bytes(path: pathlib.Path | str) -> bytes:
  """Returns the content of an image file; of other files it reads the beginning only.

  Raises:
    UnreadableImageError: the file cannot be read, or no decoder knows its format.
  """
  try:
    with open(path, "rb") as file:
      if not file.read(1):
        raise UnreadableImageError(str(path), "the file is empty")
      with _opened(file, path):
        pass  # a video with the name of an image may be larger than the memory
      file.seek(0)
      return file.read()
  except OSError as error:
    raise UnreadableImageError(str(path), error.strerror or str(error)) from error
  except MemoryError as error:
    raise TooLargeImageError(str(path), "too large for the memory") from error


def decode(content: bytes, path: pathlib.Path | str) -> Image.Image:
  """Decodes the content of a file to an upright RGB image.

  Raises:
    UnreadableImageError: naming `path`, when the content cannot be decoded.
  """
  with _opened(io.BytesIO(content), path) as image:
    return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
  """Converts an image of any mode to RGB, turned as its EXIF orientation asks.

  An upright RGB image is returned itself: a copy of a large one may not fit into the memory.
  """
  image.load()  # PNG files may have their EXIF behind the pixels
  turn = _UPRIGHT.get(_orientation(image))
  # Pillow's `exif_transpose` would also write the EXIF again, which fails where it has faults.
  return _to_rgb(image if turn is None else image.transpose(turn))


def read_rgb(path: pathlib.Path | str) -> Image.Image:
  """Reads and decodes a file; see `decode`. Raises UnreadableImageError."""
  return decode(read_bytes(path), path)


def read_thumbnail(path: pathlib.Path | str, width: int, height: int) -> Image.Image:
  """Reads a file as an upright RGB image of at most this size, its proportions kept.

  Large JPEG files are decoded at a fraction of their size, so this is for showing images only.

  Raises:
    UnreadableImageError: the file cannot be decoded.
  """
  with _opened(io.BytesIO(read_bytes(path)), path) as image:
    side = 2 * max(min(width, height), 1)
    image.draft(None, (side, side))  # never below this size; does nothing for other formats
    image = upright_rgb(image)
  image.thumbnail((width, height), Image.Resampling.LANCZOS)
  return image


def inspect(path: pathlib.Path | str) -> ImageFacts:
  """Decodes a file as `read_rgb` does, and describes it. Raises UnreadableImageError."""
  with _opened(io.BytesIO(read_bytes(path)), path) as image:
    image.load()
    facts = ImageFacts(image.width, image.height, image.mode)
    upright_rgb(image)
    return facts


def format_of(content: bytes, path: pathlib.Path | str) -> str:
  """Pillow's name of a format, such as "JPEG". Raises UnreadableImageError, naming `path`."""
  with _opened(io.BytesIO(content), path) as image:
    return image.format


def resized(image: Image.Image, image_size: tuple[int, int], resize: str) -> np.ndarray:
  """Squeezes a whole RGB image to (height, width) pixels, as is usual in person retrieval.

  Cropping instead would cut off heads or shoes.

  Args:
    image: an RGB image.
    image_size: (height, width); an image of this size keeps its pixels.
    resize: a key of `RESIZE_FILTERS`.

  Returns:
    uint8 (height, width, 3).
  """
  height, width = image_size
  return np.asarray(image.resize((width, height), RESIZE_FILTERS[resize]))


def read_resized(path: pathlib.Path | str, image_size: tuple[int, int], resize: str) -> np.ndarray:
  """Reads, decodes and resizes a file; see `resized`. Raises UnreadableImageError."""
  return resized(read_rgb(path), image_size, resize)


def ordered_map(
  function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
  """`map` on threads, results in order.

  Decoders and hashes release the interpreter lock. At most 4 results per thread are kept waiting.

  Args:
    function: called in the threads.
    items: consumed a little ahead of the results.
    workers: threads; 0 for one per core, at most 16.
  """
  workers = workers or min(16, os.cpu_count() or 1)
  with futures.ThreadPoolExecutor(workers) as pool:
    pending = collections.deque()
    try:
      for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > 4 * workers:
          yield pending.popleft().result()
      while pending:
        yield pending.popleft().result()
    finally:
      for future in pending:
        future.cancel()


@contextlib.contextmanager
def _opened(file: io.BufferedIOBase, path: pathlib.Path | str) -> Iterator[Image.Image]:
  """Opens an image; any exception of its decoder becomes an UnreadableImageError."""
  try:
    with Image.open(file, formats=decoded_formats()) as image:
      yield image
  except MemoryError as error:
    raise TooLargeImageError(str(path), "too large for the memory") from error
  except Exception as error:
    # Decoders of damaged files raise almost anything: OSError, SyntaxError, struct.error, ...
    unknown = isinstance(error, Image.UnidentifiedImageError)
    reason = _unknown_format(file) if unknown else str(error) or type(error).__name__
    raise UnreadableImageError(str(path), " ".join(reason.split())) from error


def _unknown_format(file: io.BufferedIOBase) -> str:
  file.seek(0)
  start = file.read(16)
  for name in _OTHER_PROGRAMS:
    _, accepts = Image.OPEN[name]
    if accepts(start):
      return f"{name} files are not decoded, as that takes another program: convert it to PNG"
  return "not an image in a known format"


def _orientation(image: Image.Image) -> object:
  """The EXIF orientation of a loaded image; 1, upright, where its EXIF cannot be read."""
  try:
    return image.getexif().get(ExifTags.Base.Orientation, 1)
  except MemoryError:
    raise
  except Exception:  # of almost any class, as in `_opened`
    return 1


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I;16"):
    return _deep_to_rgb(image, white=65535.0)
  if image.mode in ("I", "F"):
    values_HxW = np.asarray(image)
    brightest = float(np.max(values_HxW, initial=0, where=np.isfinite(values_HxW)))
    ranges = (1.0, 255.0, 65535.0)
    return _deep_to_rgb(image, white=next((w for w in ranges if brightest <= w), brightest))
  if image.mode == "P" and "transparency" in image.info:
    image = image.convert("RGBA")  # PIL warns when a transparent palette is converted directly
  return image if image.mode == "RGB" else image.convert("RGB")


def _deep_to_rgb(image: Image.Image, white: float) -> Image.Image:
  """Scales deep grayscale so that `white` becomes 255; PIL would clip values above 255."""
  gray_HxW = np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=white, neginf=0.0)
  gray_HxW *= 255.0 / white
  return Image.fromarray(np.clip(np.rint(gray_HxW), 0, 255).astype(np.uint8)).convert("RGB")
