"""Images for the input pipeline of a made-up dataset."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

_STORED_IMAGES = 64


class StoredImages(Sequence):
  """As many images as the dataset would have; a few JPEGs in memory, decoded on access."""

  def __init__(self, image_size: tuple[int, int], count: int):
    random, (height, width) = np.random.default_rng(0), image_size
    self._count, self._encoded = count, []
    for _ in range(min(_STORED_IMAGES, count)):
      coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
      file = io.BytesIO()
      coarse.resize((width, height)).save(file, "JPEG")
      self._encoded.append(file.getvalue())

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, image: int | np.integer) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(self._encoded[image % len(self._encoded)])))
