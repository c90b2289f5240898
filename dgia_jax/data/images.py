"""Image files in, pixels out: any mode and any orientation becomes upright 8-bit RGB.

A file that cannot be decoded, for whatever reason its decoder has, is an `UnreadableImageError`
that names the file; whether that stops a build or is counted is decided by the caller.
"""

import collections
import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures

import numpy as np
from PIL import Image, ImageOps

ENCODINGS = ("jpeg", "png")
JPEG_QUALITY = 95


class UnreadableImageError(Exception):
  """An image that cannot be decoded: its path and the decoder's reason."""

  def __init__(self, path: str, reason: str):
    super().__init__(f"{path}: {reason}")
    self.path, self.reason = path, reason


@dataclasses.dataclass(frozen=True)
class ImageFacts:
  """Size in pixels and PIL mode of a file, as stored."""

  width: int
  height: int
  mode: str


def read_rgb(path: str) -> Image.Image:
  """Decodes a file to an upright RGB image. Raises UnreadableImageError."""
  with _opened(path) as image:
    return _to_rgb(ImageOps.exif_transpose(image))


def inspect(path: str) -> ImageFacts:
  """Decodes a file completely and says what it is. Raises UnreadableImageError."""
  with _opened(path) as image:
    image.load()
    return ImageFacts(image.width, image.height, image.mode)


def read_resized(path: str, image_size: tuple[int, int]) -> Image.Image:
  """Decodes a file and squeezes the whole image, bicubic, to (height, width) pixels.

  The person search literature does so: a cut would lose head or shoes.

  Raises:
    UnreadableImageError: the file cannot be decoded.
  """
  height, width = image_size
  return read_rgb(path).resize((width, height), Image.Resampling.BICUBIC)


def encode_resized(path: str, image_size: tuple[int, int], encoding: str) -> bytes:
  """Reads a file, resizes it to (height, width) and encodes it again.

  JPEG is written at quality 95 with full colour resolution.

  Args:
    path: image file.
    image_size: (height, width) in pixels.
    encoding: "jpeg" or "png".

  Raises:
    UnreadableImageError: the file cannot be decoded.
  """
  image = read_resized(path, image_size)
  buffer = io.BytesIO()
  if encoding == "jpeg":
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
  else:
    image.save(buffer, "PNG")
  return buffer.getvalue()


def ordered_map(function: Callable, items: Iterable, workers: int) -> Iterator:
  """`map` on threads (the decoders release the lock), results in order, few of them waiting."""
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
def _opened(path: str) -> Iterator[Image.Image]:
  try:
    with Image.open(path) as image:
      yield image
  except MemoryError:
    raise
  except Exception as error:
    # Decoders of damaged files raise almost anything: OSError, SyntaxError, struct.error, ...
    reason = (
      "not an image that can be recognised"
      if isinstance(error, Image.UnidentifiedImageError)
      else f"{error}" or type(error).__name__
    )
    if os.path.isfile(path) and os.path.getsize(path) == 0:
      reason = "the file is empty"
    raise UnreadableImageError(path, " ".join(reason.split())) from error


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I;16"):
    return _to_uint8(image, white=65535.0)
  if image.mode in ("I", "F"):
    top = float(np.asarray(image).max())
    return _to_uint8(image, white=next((w for w in (1.0, 255.0, 65535.0) if top <= w), top))
  if image.mode == "P" and "transparency" in image.info:
    # By way of RGBA, or PIL warns about the transparent entry of the palette.
    image = image.convert("RGBA")
  return image.convert("RGB")


def _to_uint8(image: Image.Image, white: float) -> Image.Image:
  """Deep grayscale to RGB by its range; PIL would clip at 255 and turn most of them white."""
  gray_HxW = np.asarray(image, np.float32) * (255.0 / white)
  return Image.fromarray(np.clip(np.rint(gray_HxW), 0, 255).astype(np.uint8)).convert("RGB")
