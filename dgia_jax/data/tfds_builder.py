"""The TFDS builder of the person datasets: one class, because they differ only in their layouts.

A build stores every image file as it is, byte for byte, so that images are resized from their
original pixels when they are read. Its folder is named by everything that changes its content: a
digest of the annotations and of all image files, and the hold-out. So a build of other files is
never mistaken for the requested one.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging

from dgia_jax.data import image_hashes, locked_build
from dgia_jax.data import images as images_lib
from dgia_jax.data.annotations import SPLITS, ImageRecord
from dgia_jax.data.dataset_files import DatasetFiles
from dgia_jax.errors import UserError

_SHARD_IMAGES = 4096
_HOLDOUT_SEED = 0
_LARGE_IMAGE_PIXELS = 1_000_000
_MEMORY = "image_hashes.json"  # beside the builds of a dataset


@dataclasses.dataclass(frozen=True)
class Row:
  """One image to store: its record, its file, and the SHA-256 that the file should have."""

  record: ImageRecord
  path: str | None
  sha256: str


@dataclasses.dataclass(eq=False)
class PersonSearchConfig(tfds.core.BuilderConfig):
  """What to build. `source` and the fields below it are needed only while building."""

  holdout: int = 0
  source: DatasetFiles | None = dataclasses.field(default=None, repr=False)
  hashes: Sequence[str] = dataclasses.field(default=(), repr=False)
  skip_unreadable: bool = False
  workers: int = 0
  on_image: Callable[[], object] = dataclasses.field(default=lambda: None, repr=False)


class PersonSearch(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Images with captions and a person id, one example per image, in the order of the annotations.

  Shard-based, because TFDS's shuffling writer needs TensorFlow as soon as a split is larger than
  its memory buffer. The input pipeline shuffles anyway.
  """

  VERSION = tfds.core.Version("2.0.0")
  RELEASE_NOTES = {
    "1.0.0": "Images resized with a bicubic filter to one size, as JPEG of quality 95.",
    "2.0.0": "Image files as they are.",
  }
  # Nothing is downloaded. Without this TFDS looks for a list of checksums beside this file, and for
  # that imports a package it does not always install (importlib_resources).
  url_infos = {}

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Images of people with captions, for text-to-person retrieval.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "captions": tfds.features.Sequence(tfds.features.Text()),
          "person_id": np.int64,
          "image_path": tfds.features.Text(),
        }
      ),
      metadata=tfds.core.MetadataDict(),
    )

  def _shard_iterators_per_split(self, dl_manager: object) -> dict[str, list[Callable]]:
    del dl_manager
    config = self.builder_config
    annotations = config.source.annotations
    self.info.metadata.update(
      annotations=list(annotations.files),
      identities=annotations.identities,
      notes=list(annotations.notes),
      skipped=[],
      pixels=0,  # of all stored images together
    )
    splits = {split: [] for split in SPLITS}
    held_out = holdout_people(annotations.records, config.holdout)
    for record, path, sha256 in zip(
      annotations.records, config.source.paths, config.hashes, strict=True
    ):
      split = "val" if record.split == "train" and record.person in held_out else record.split
      splits[split].append(Row(record, path, sha256))
    stored = collections.Counter()  # images per split
    return {
      split: [
        functools.partial(self._examples, split, rows, start, stored)
        for start in range(0, len(rows), _SHARD_IMAGES)
      ]
      for split, rows in splits.items()
      if rows
    }

  def _examples(
    self, split: str, rows: Sequence[Row], start: int, stored: collections.Counter[str]
  ) -> Iterator[tuple[int, dict]]:
    """Yields the examples of the shard that begins at row `start` of a split.

    Threads read and check the image files. A shard may stay empty, a split may not.
    """
    config, metadata = self.builder_config, self.info.metadata
    shard = rows[start : start + _SHARD_IMAGES]
    contents = images_lib.ordered_map(_checked_content, shard, config.workers)
    with contextlib.closing(contents):
      for number, (row, content) in enumerate(zip(shard, contents, strict=True)):
        config.on_image()
        if isinstance(content, images_lib.TooLargeImageError):
          # Never skipped: the same files would give another dataset on a machine that is less busy.
          raise UserError(
            f"{self.name}: cannot read image {content}; decode fewer at once (--workers 1), or make"
            " the image smaller"
          )
        if isinstance(content, images_lib.UnreadableImageError):
          if not config.skip_unreadable:
            raise UserError(
              f"{self.name}: cannot read image {content}; repair or replace it, or "
              "prepare the dataset without it: --skip_unreadable"
            )
          metadata["skipped"].append(str(content))
          continue
        encoded, pixels = content
        metadata["pixels"] += pixels
        stored[split] += 1
        yield (
          number,
          {
            "image": encoded,
            "captions": list(row.record.captions),
            "person_id": row.record.person,
            "image_path": row.record.path,
          },
        )
    if not stored[split] and start + _SHARD_IMAGES >= len(rows):
      raise UserError(
        f"{self.name}: none of {len(rows)} images of {split} can be read, first "
        f"{rows[0].record.path}: check the image folder"
      )


def _checked_content(row: Row) -> tuple[bytes, int] | images_lib.UnreadableImageError:
  """The content of an image file that can be decoded, and its number of pixels.

  Raises:
    UserError: the file is not the one that was hashed.
  """
  if row.path is None:
    return images_lib.UnreadableImageError(row.record.path, "no such file")
  try:
    content = images_lib.read_bytes(row.path)
    if hashlib.sha256(content).hexdigest() != row.sha256:
      raise UserError(f"{row.path} changed while the dataset was built: try again")
    image = images_lib.decode(content, row.path)
  except images_lib.UnreadableImageError as error:
    return error
  return content, image.width * image.height


@functools.cache
def builder_class(name: str) -> type[PersonSearch]:
  """The builder of a dataset in `catalog.LAYOUTS`: TFDS stores a build under the class's `name`."""
  members = {"name": name, "__doc__": f"{name}.", "__module__": __name__}
  title = name.title().replace("_", "")
  return types.new_class(
    title, (PersonSearch,), {"skip_registration": True}, lambda body: body.update(members)
  )


def holdout_people(records: Sequence[ImageRecord], holdout: int) -> frozenset[int]:
  """Selects people of "train" to become "val"; equal ids always give an equal selection.

  Args:
    records: the whole dataset.
    holdout: number of people, 0 for none.

  Raises:
    UserError: the dataset already has a val split, or no train people would remain.
  """
  if not holdout:
    return frozenset()
  people = {record.person for record in records if record.split == "train"}
  if any(record.split == "val" for record in records):
    raise UserError(f"holdout={holdout}: this dataset has a val split of its own; use holdout=0")
  if not 0 < holdout < len(people):
    raise UserError(f"holdout={holdout}: must be between 0 and the {len(people)} train people")
  # A hash, not a random generator: no library version can change the selection.
  ranks = {
    hashlib.sha256(f"{_HOLDOUT_SEED}:{person}".encode()).digest(): person for person in people
  }
  return frozenset(ranks[rank] for rank in sorted(ranks)[:holdout])


def content_digest(source: DatasetFiles, hashes: Sequence[str]) -> str:
  """12 hexadecimal digits that change when an annotation or the content of an image changes."""
  digest = hashlib.sha256()
  for record, sha256 in zip(source.annotations.records, hashes, strict=True):
    row = [record.path, record.captions, record.person, record.split, sha256]
    digest.update(json.dumps(row).encode())
  return digest.hexdigest()[:12]


def variant_name(digest: str, holdout: int) -> str:
  """The name of a build's folder."""
  return f"original-{digest}" + (f"-val{holdout}" if holdout else "")


def build(
  source: DatasetFiles,
  *,
  data_dir: str,
  holdout: int = 0,
  skip_unreadable: bool = False,
  workers: int = 0,
) -> tfds.core.DatasetBuilder:
  """Builds a dataset if it is absent, and returns a reader of it that can be pickled.

  Args:
    source: the opened files.
    data_dir: absolute path of the root of the built datasets.
    holdout: number of train people to move to "val".
    skip_unreadable: leave out images that are missing or cannot be decoded, instead of stopping.
      They are listed in `builder.info.metadata["skipped"]`. One that does not fit into the memory
      always stops the build.
    workers: reading and decoding threads, 0 for one per core.

  Raises:
    UserError: unusable entries in the annotations, a missing or unreadable image, a bad hold-out,
      or a folder that cannot be written.
  """
  annotations = source.annotations
  if annotations.errors:
    more = len(annotations.errors) - 1
    raise UserError(
      f"{source.name}: {annotations.files[0]}: {annotations.errors[0]}"
      + (f" (and {more} more kinds of error)" if more else "")
    )
  if not annotations.records:
    raise UserError(f"{source.name}: {annotations.files[0]} has no usable entry")
  holdout_people(annotations.records, holdout)
  memory = pathlib.Path(data_dir, source.name, _MEMORY)
  hashes, memorable = image_hashes.hash_files(source.paths, memory, workers)
  name = variant_name(content_digest(source, hashes), holdout)
  if built := _complete(data_dir, source.name, name):
    builder = tfds.builder_from_directory(built)
  else:
    _check_for_missing_images(source, skip_unreadable)
    builder = _build(source, hashes, name, data_dir, holdout, skip_unreadable, workers)
  image_hashes.remember(memorable, memory)
  return builder


def _build(
  source: DatasetFiles,
  hashes: Sequence[str],
  name: str,
  root: str,
  holdout: int,
  skip_unreadable: bool,
  workers: int,
) -> tfds.core.DatasetBuilder:
  # TFDS shows no progress for shard-based builders. The bar appears only on a terminal.
  with tqdm.tqdm(
    total=len(source.annotations.records),
    desc=f"building {source.name}",
    unit=" images",
    disable=None,
    mininterval=1.0,
    delay=1.0,
  ) as bar:
    config = PersonSearchConfig(
      name=name,
      holdout=holdout,
      source=source,
      hashes=hashes,
      skip_unreadable=skip_unreadable,
      workers=workers,
      on_image=bar.update,
    )
    with locked_build.quiet_tfds():
      builder = builder_class(source.name)(data_dir=root, config=config)
    builder = locked_build.prepare(builder)
  average = builder.info.metadata["pixels"] / max(builder.info.splits.total_num_examples, 1)
  if average > _LARGE_IMAGE_PIXELS:
    logging.warning(
      "%s: the images have %.1f megapixels on average, and each is decoded in full whenever it is"
      " read; training is faster on a copy of them that is about 1,000 pixels high",
      source.name,
      average / 1e6,
    )
  return builder


def _check_for_missing_images(source: DatasetFiles, skip_unreadable: bool) -> None:
  missing = source.missing()
  if missing and not skip_unreadable:
    folders = [folder for folder in source.missing_folders() if folder]
    raise UserError(
      f"{source.name}: {len(missing)} of {len(source.annotations.records)} images are missing under"
      f" {source.image_folder}, first {missing[0].path}"
      + (f" (missing folders: {', '.join(folders[:8])})" if folders else "")
      + "; add them, or prepare the dataset without them: --skip_unreadable"
    )


def find_built(name: str, *, data_dir: str, holdout: int) -> list[str]:
  """Folders in `data_dir` of the complete builds with this hold-out, of whatever files.

  Raises:
    UserError: the dataset's folder cannot be read.
  """
  home = os.path.join(data_dir, name)
  try:
    variants = os.listdir(home) if os.path.isdir(home) else []
  except OSError as error:
    raise UserError(
      f"data_dir {home} cannot be read ({error.strerror}): make the folder readable"
    ) from error
  pattern = re.compile(variant_name("[0-9a-f]{12}", holdout))
  matching = (variant for variant in sorted(variants) if pattern.fullmatch(variant))
  folders = (_complete(data_dir, name, variant) for variant in matching)
  return [folder for folder in folders if folder]


def _complete(root: str, name: str, variant: str) -> str | None:
  """The folder of a finished build, None if there is none."""
  folder = os.path.join(root, name, variant, str(PersonSearch.VERSION))
  return folder if os.path.isfile(os.path.join(folder, "dataset_info.json")) else None
