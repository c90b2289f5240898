"""Tables of (image, caption) pairs.

A table has one row per pair, ordered by image and then by caption; the row number is the pair's
index everywhere else, memory banks included. Captions and identities are read once and kept in
memory. Images stay in their files and are decoded one by one, usually by the worker processes of
the input pipeline. Tables can be pickled cheaply: an image reader carries file names, not the TFDS
builder.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dgia_jax.data import images as images_lib
from dgia_jax.errors import UserError

_RECORDS_PER_READ = 1024


@runtime_checkable
class Images(Protocol):
  """Random access to M images, each uint8 (H, W, 3); a NumPy array is one."""

  def __len__(self) -> int: ...

  def __getitem__(self, image: int | np.integer, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class PairTable:
  """N pairs over M images.

  Attributes:
    images: images[m] is uint8 (H, W, 3).
    image_of_pair_N: int32, the image number of each pair; never decreasing.
    captions: N captions.
    person_of_image_M: int64, identity labels. For evaluation and logging only: training is weakly
      supervised, and no training batch carries them.
  """

  images: Images
  image_of_pair_N: np.ndarray
  captions: Sequence[str]
  person_of_image_M: np.ndarray

  @property
  def num_pairs(self) -> int:
    """N."""
    return len(self.captions)

  @property
  def num_images(self) -> int:
    """M."""
    return len(self.images)

  @property
  def has_identities(self) -> bool:
    """Whether the identity labels group images: not one for all images, nor one per image."""
    return 1 < len(np.unique(self.person_of_image_M)) < self.num_images

  @property
  def person_of_pair_N(self) -> np.ndarray:
    """int64, the identity label of each pair; for evaluation and logging only."""
    return self.person_of_image_M[self.image_of_pair_N]

  @classmethod
  def from_arrays(
    cls,
    images: Images,
    captions_of_image: Sequence[Sequence[str]],
    person_ids: Sequence[int] | np.ndarray,
  ) -> "PairTable":
    """A table of data in memory; images may have different numbers of captions, or none."""
    if not len(images) == len(captions_of_image) == len(person_ids):
      raise ValueError(
        f"{len(images)} images, {len(captions_of_image)} caption lists and"
        f" {len(person_ids)} person ids: one of each per image is needed"
      )
    counts = [len(captions) for captions in captions_of_image]
    return cls(
      images=images,
      image_of_pair_N=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
      captions=[caption for captions in captions_of_image for caption in captions],
      person_of_image_M=np.asarray(person_ids, np.int64),
    )


def load_pairs(builder: Any, split: str, image_size: tuple[int, int], resize: str) -> PairTable:
  """Reads the captions and identities of a split, without decoding its images.

  Args:
    builder: a prepared TFDS builder in ArrayRecord format, one example per image, with the
      features "image", "captions" and "person_id".
    split: "train", "val" or "test", or a part such as "train[:100]".
    image_size: (height, width) in pixels that images are resized to when they are read.
    resize: the filter, a key of `images.RESIZE_FILTERS`.

  Raises:
    UserError: the split does not exist, or has no captions.
  """
  if split.split("[")[0] not in builder.info.splits:
    raise UserError(
      f"dataset {builder.name!r} has no split {split!r}, only {', '.join(builder.info.splits)}"
    )
  images = _StoredImages(builder, split, image_size, resize)
  captions_of_image, person_ids = [], []
  for example in images.undecoded():
    captions_of_image.append([caption.decode("utf-8") for caption in example["captions"]])
    person_ids.append(int(example["person_id"]))
  table = PairTable.from_arrays(images, captions_of_image, person_ids)
  if not table.captions:
    raise UserError(
      f"split {split!r} of dataset {builder.name!r} holds no captions ({len(images)} images):"
      " check its annotation file and prepare it again"
    )
  return table


class _StoredImages(Sequence):
  """The images of a split, decoded and resized on access.

  It keeps the record reader and the features rather than TFDS's data source, which would make every
  worker process rebuild the dataset builder.
  """

  def __init__(self, builder: Any, split: str, image_size: tuple[int, int], resize: str):
    # Imported here because data held in memory, and so the training code, needs no TFDS.
    import tensorflow_datasets as tfds

    self._decoders = {"image": tfds.decode.SkipDecoding()}
    self._features = builder.info.features
    self._records = builder.as_data_source(split, decoders=self._decoders).data_source
    self._image_size, self._resize = tuple(image_size), resize

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, image: int | np.integer) -> np.ndarray:
    if not 0 <= image < len(self):
      raise IndexError(image)
    example = self._parse(self._records[image])
    # Not TFDS's decoder, which uses OpenCV where that is installed and then gives other values.
    decoded = images_lib.decode(example["image"], example["image_path"].decode("utf-8"))
    return images_lib.resized(decoded, self._image_size, self._resize)

  def undecoded(self) -> Iterator[dict[str, Any]]:
    """Yields every example with its image still encoded."""
    for start in range(0, len(self), _RECORDS_PER_READ):
      keys = range(start, min(start + _RECORDS_PER_READ, len(self)))
      yield from map(self._parse, self._records.__getitems__(keys))

  def _parse(self, record: bytes) -> dict[str, Any]:
    return self._features.deserialize_example_np(record, decoders=self._decoders)
