"""The TFDS builders of the person datasets: one class, since they differ only in layout facts.

A build is named by everything that changes its content (image size, encoding, a digest of the
annotations and of the image files' sizes, a hold-out), so a stale one is never taken for the right
one.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import types
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from dgia_jax.data import images as images_lib
from dgia_jax.data import locked_build as prepare_lib
from dgia_jax.data.annotations import SPLITS, ImageRecord
from dgia_jax.data.dataset_files import Source
from dgia_jax.errors import UserError

_SHARD_IMAGES = 4096
_HOLDOUT_SEED = 0


@dataclasses.dataclass(eq=False)
class PersonSearchConfig(tfds.core.BuilderConfig):
  """What to build. `source` and below are needed while building only."""

  image_size: tuple[int, int] = (384, 128)
  encoding: str = "jpeg"
  holdout: int = 0
  source: Source | None = dataclasses.field(default=None, repr=False)
  skip_unreadable: bool = False
  workers: int = 0
  on_image: Callable[[], object] = dataclasses.field(default=lambda: None, repr=False)


class PersonSearch(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Images with captions and a person id, one example an image, in the order of the annotations.

  Shard-based, because TFDS's shuffling writer needs TensorFlow as soon as a split is larger than
  its memory buffer; the input pipeline shuffles anyway.
  """

  VERSION = tfds.core.Version("1.0.0")
  # Nothing is downloaded. Left alone, TFDS looks for a list of checksums beside this file, and for
  # that imports a package it does not always install (importlib_resources).
  url_infos = {}

  def _info(self) -> tfds.core.DatasetInfo:
    height, width = self.builder_config.image_size
    return tfds.core.DatasetInfo(
      builder=self,
      description="Images of people with captions, for text-to-person retrieval.",
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(
            shape=(height, width, 3), encoding_format=self.builder_config.encoding
          ),
          "captions": tfds.features.Sequence(tfds.features.Text()),
          "person_id": np.int64,
          "image_path": tfds.features.Text(),
        }
      ),
      metadata=tfds.core.MetadataDict(),
    )

  def _shard_iterators_per_split(self, dl_manager):
    del dl_manager
    config = self.builder_config
    annotations = config.source.annotations
    self.info.metadata.update(
      annotations=list(annotations.files),
      identities=annotations.identities,
      notes=list(annotations.notes),
      skipped=[],
    )
    splits = {split: [] for split in SPLITS}
    held_out = holdout_people(annotations.records, config.holdout)
    for record, path in zip(annotations.records, config.source.paths, strict=True):
      split = "val" if record.split == "train" and record.person in held_out else record.split
      splits[split].append((record, path))
    return {
      split: [
        functools.partial(self._examples, rows[start : start + _SHARD_IMAGES])
        for start in range(0, len(rows), _SHARD_IMAGES)
      ]
      for split, rows in splits.items()
      if rows
    }

  def _examples(self, rows: list[tuple[ImageRecord, str | None]]) -> Iterator[tuple[int, dict]]:
    """Yields the examples of one shard, decoding on threads."""
    config = self.builder_config

    def encode(row):
      record, path = row
      if path is None:
        return images_lib.UnreadableImageError(record.path, "no such file")
      try:
        return images_lib.encode_resized(path, config.image_size, config.encoding)
      except images_lib.UnreadableImageError as error:
        return error

    written = 0
    encoded = images_lib.ordered_map(encode, rows, config.workers)
    with contextlib.closing(encoded):
      for (record, _), image in zip(rows, encoded, strict=True):
        config.on_image()
        if isinstance(image, images_lib.UnreadableImageError):
          if not config.skip_unreadable:
            raise UserError(
              f"{self.name}: cannot read image {image}; repair or replace it, or "
              "prepare the dataset without it: --skip_unreadable"
            )
          self.info.metadata["skipped"].append(str(image))
          continue
        yield (
          written,
          {
            "image": image,
            "captions": list(record.captions),
            "person_id": record.person,
            "image_path": record.path,
          },
        )
        written += 1
    if not written:
      raise UserError(
        f"{self.name}: none of {len(rows)} images from {rows[0][0].path} on can be "
        "read: check the image folder"
      )


@functools.cache
def builder_class(name: str) -> type[PersonSearch]:
  """The builder of a dataset that `layouts` describes: TFDS files a build under its `name`."""
  members = {"name": name, "__doc__": f"{name}.", "__module__": __name__}
  title = name.title().replace("_", "")
  return types.new_class(
    title, (PersonSearch,), {"skip_registration": True}, lambda body: body.update(members)
  )


def holdout_people(records: tuple[ImageRecord, ...], holdout: int) -> frozenset[int]:
  """The people of "train" that become "val": always the same ones for the same ids.

  Args:
    records: the whole dataset.
    holdout: number of people, 0 for none.

  Raises:
    UserError: there is a val split already, or nobody would be left to train on.
  """
  if not holdout:
    return frozenset()
  people = {record.person for record in records if record.split == "train"}
  if any(record.split == "val" for record in records):
    raise UserError(f"holdout={holdout}: this dataset has a val split of its own; use holdout=0")
  if not 0 < holdout < len(people):
    raise UserError(f"holdout={holdout}: must be between 0 and the {len(people)} train people")
  # A hash, not a random generator: no library version can change who is held out.
  ranks = {
    hashlib.sha256(f"{_HOLDOUT_SEED}:{person}".encode()).digest(): person for person in people
  }
  return frozenset(ranks[rank] for rank in sorted(ranks)[:holdout])


def variant_name(image_size, encoding: str, digest: str, holdout: int) -> str:
  """Name of a build's folder; `digest` may be "*" to look for builds of any content."""
  height, width = image_size
  quality = images_lib.JPEG_QUALITY if encoding == "jpeg" else ""
  return f"{height}x{width}-{encoding}{quality}-{digest}" + (f"-val{holdout}" if holdout else "")


def build(
  source: Source,
  *,
  data_dir: str,
  image_size: tuple[int, int],
  encoding: str = "jpeg",
  holdout: int = 0,
  skip_unreadable: bool = False,
  workers: int = 0,
) -> tfds.core.DatasetBuilder:
  """Builds a dataset unless it is there, and returns a reader of it (picklable).

  Args:
    source: the opened files.
    data_dir: root of the built datasets.
    image_size: (height, width) in pixels.
    encoding: "jpeg" (quality 95) or "png".
    holdout: number of train people to set apart as "val".
    skip_unreadable: leave out images that are missing or cannot be decoded, instead of stopping.
      They are listed in `builder.info.metadata["skipped"]`.
    workers: decoding threads, 0 for one a core.

  Raises:
    UserError: unusable entries in the annotations, a missing or unreadable image, a bad holdout.
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
  name = variant_name(image_size, encoding, source.digest(), holdout)
  root = os.path.abspath(os.path.expanduser(data_dir))
  built = _complete(root, source.name, name)
  if built:
    return tfds.builder_from_directory(built)
  missing = source.missing()
  if missing and not skip_unreadable:
    folders = [folder for folder in source.missing_folders() if folder]
    raise UserError(
      f"{source.name}: {len(missing)} of {len(annotations.records)} images are missing under "
      f"{source.image_folder}, first {missing[0].path}"
      + (f" (missing folders: {', '.join(folders[:8])})" if folders else "")
      + "; add them, or prepare the dataset without them: --skip_unreadable"
    )
  # TFDS shows no progress for builders by shard. A bar only on a terminal, not in a log file.
  with tqdm.tqdm(
    total=len(annotations.records),
    desc=f"building {source.name}",
    unit=" images",
    disable=None,
    mininterval=1.0,
    delay=1.0,
  ) as bar:
    config = PersonSearchConfig(
      name=name,
      image_size=tuple(image_size),
      encoding=encoding,
      holdout=holdout,
      source=source,
      skip_unreadable=skip_unreadable,
      workers=workers,
      on_image=bar.update,
    )
    with prepare_lib.quiet_tfds():
      builder = builder_class(source.name)(data_dir=root, config=config)
    return prepare_lib.prepare(builder)


def find_built(
  name: str, *, data_dir: str, image_size: tuple[int, int], encoding: str, holdout: int
) -> list[str]:
  """Folders of complete builds with these settings, whatever files they were built from."""
  root = os.path.join(os.path.abspath(os.path.expanduser(data_dir)), name)
  variants = os.listdir(root) if os.path.isdir(root) else []
  start, end = variant_name(image_size, encoding, "*", holdout).split("*")
  matching = (
    variant
    for variant in sorted(variants)
    if variant.startswith(start) and variant.removeprefix(start)[8:] == end
  )
  folders = (_complete(os.path.dirname(root), name, variant) for variant in matching)
  return [folder for folder in folders if folder]


def _complete(root: str, name: str, variant: str) -> str | None:
  """The folder of a finished build, None when there is none."""
  folder = os.path.join(root, name, variant, str(PersonSearch.VERSION))
  return folder if os.path.isfile(os.path.join(folder, "dataset_info.json")) else None
