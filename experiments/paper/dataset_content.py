"""Identifies the content of a dataset, cheaply: no image is read, and no dataset is built.

The content of a user's own dataset belongs to the key of its runs, because its config names only a
place. The content of other datasets is known by their name.
"""

import functools
import hashlib
import json
import os
import pathlib

from ml_collections import ConfigDict

from dgia_jax import bucket, files
from dgia_jax.data import dataset_files, datasets
from dgia_jax.errors import UserError

_DRAWN = "synth_pedes"
_OWN = "custom"

Content = dict[str, str]


def of_own_data(settings: ConfigDict) -> Content:
  """`identify` for a user's own dataset; {} for a dataset that its name identifies.

  Raises:
    UserError: as `identify`.
  """
  return identify(settings) if settings.name == _OWN else {}


def identify(settings: ConfigDict) -> Content:
  """What tells the content of a dataset from another's.

  Args:
    settings: the `dataset` group of a config.

  Returns:
    {"options": text} for a dataset that is drawn, {"annotations": digest} for files, and
    {"build": name} for the only build in `data_dir`; {} if it is not built, in a bucket, or one of
    several builds, which a training refuses.

  Raises:
    UserError: the annotations cannot be found or read.
  """
  if settings.name == _DRAWN:
    return {"options": json.dumps(settings.options.to_dict(), sort_keys=True)}
  if not (settings.source or settings.annotations or settings.images):
    return _only_build(settings)
  found = dataset_files.annotation_files(
    settings.name, source=settings.source, annotations=settings.annotations
  )
  return {"annotations": _digest(found)}


def short(content: Content) -> str:
  """Eight hexadecimal digits for names; "" for no content."""
  if not content:
    return ""
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _only_build(settings: ConfigDict) -> Content:
  data_dir = datasets.resolved_data_dir(settings.data_dir)
  if bucket.is_remote(data_dir) or not pathlib.Path(data_dir, settings.name).is_dir():
    return {}
  from dgia_jax.data import tfds_builder  # imports TFDS, which is slow

  holdout = settings.options.get("holdout", 0)
  built = tfds_builder.find_built(settings.name, data_dir=data_dir, holdout=holdout)
  return {"build": pathlib.Path(built[0]).parent.name} if len(built) == 1 else {}


def _digest(paths: list[str]) -> str:
  """Digest of annotation files; of several, a name may say which split a file holds."""
  parts = []
  for path in paths:
    try:
      status = os.stat(path)
      content = _sha256(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
      raise UserError(f"annotations {path}: cannot be read ({error.strerror})") from error
    parts.append((os.path.basename(path) if len(paths) > 1 else "", content))
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@functools.cache
def _sha256(path: str, size: int, modified: int) -> str:
  """Digest of a file's content; cached, because all runs of a dataset ask for it."""
  del size, modified
  return files.sha256(pathlib.Path(path))
