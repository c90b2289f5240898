"""Running a TFDS builder so that a dataset is either complete or absent.

TFDS writes to a temporary folder and renames it at the end, so an error or Ctrl-C leaves nothing
behind. A killed process leaves the temporary folder; readers ignore it, and the next build of the
same dataset removes it. A lock lets only one process build a dataset at a time: the others wait
and then find it built.
"""

import contextlib
import io
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import TextIO

import tensorflow_datasets as tfds
from absl import logging

from dgia_jax import files
from dgia_jax.errors import UserError

_INFO = "dataset_info.json"


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
  """Builds a dataset if it is absent, and returns a reader of it that can be pickled.

  Exceptions of the builder reach the caller, with nothing left behind.

  Raises:
    UserError: the folder for datasets cannot be written, or its disk is full, or the dataset is
      there without a file of it.
  """
  if _is_complete(builder.data_dir):
    return tfds.builder_from_directory(builder.data_dir)  # the folder may be read-only
  home = os.path.dirname(builder.data_dir)  # one variant of the dataset; it contains the versions
  with _write_errors_explained(home), _sole_builder(home):
    if not _is_complete(builder.data_dir):
      if os.path.lexists(builder.data_dir):  # builds are renamed to it when they are complete
        raise UserError(
          f"{builder.data_dir} is incomplete (no {_INFO}), perhaps because a copy of it was"
          " interrupted: delete this folder and run the command again to rebuild the dataset"
        )
      logging.info("building %s in %s", builder.name, builder.data_dir)
      _build(builder)
  return tfds.builder_from_directory(builder.data_dir)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
  """Silences TFDS's warning about configurations that are not class attributes, as ours are not."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


@contextlib.contextmanager
def exclusive(path: pathlib.Path | str) -> Iterator[None]:
  """Waits until no other process holds the lock of `path`, and holds it for the block.

  The lock is a file beside `path`, removed at the end; the system releases it when a process dies.
  On a file system without locks the block runs without one, after a warning.

  Raises:
    OSError: the folder of `path` cannot be created, or the lock file cannot be written.
  """
  lock_path = f"{path}.lock"
  lock = _acquire(lock_path)
  try:
    yield
  finally:
    with contextlib.suppress(FileNotFoundError):  # without locks another process may be first
      os.unlink(lock_path)
    lock.close()


def _is_complete(folder: str) -> bool:
  return os.path.isfile(os.path.join(folder, _INFO))


def _build(builder: tfds.core.DatasetBuilder) -> None:
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()  # a log file would contain every state of the bar
  with tempfile.TemporaryDirectory() as downloads:
    # TFDS prints "Downloading, unknown size", but nothing is downloaded and the size is known.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_dir=downloads, file_format="array_record")


@contextlib.contextmanager
def _write_errors_explained(home: str) -> Iterator[None]:
  """Turns errors of writing into a UserError. (Errors of reading images have their own class.)"""
  try:
    yield
  except OSError as error:
    reason, cause = error.strerror or str(error), error
  except RuntimeError as error:
    # ArrayRecord's writer raises these: "write() failed: No space left on device; writing ...".
    if home not in str(error):
      raise
    reason, cause = str(error).split("; writing")[0].removeprefix("write() failed: "), error
  else:
    return
  raise UserError(
    f"cannot write the dataset to {home} ({reason}): free some space or choose another data_dir"
  ) from cause


@contextlib.contextmanager
def _sole_builder(home: str) -> Iterator[None]:
  """Holds the lock of a folder, and removes the unfinished builds of killed processes.

  A killed process has lost its lock, so no process is using an unfinished build that is present
  while we hold the lock.
  """
  try:
    with exclusive(home):
      for entry in os.listdir(home) if os.path.isdir(home) else []:
        if entry.startswith("incomplete."):
          shutil.rmtree(os.path.join(home, entry))
      yield
  finally:
    for folder in (home, os.path.dirname(home)):
      with contextlib.suppress(OSError):  # absent or not empty
        os.rmdir(folder)


def _acquire(path: str) -> TextIO:
  """Waits for the exclusive lock of a file, and returns the open file."""
  while True:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # The previous owner removes the file, and the folder if it is empty, perhaps at this moment.
    # A lock on a removed file would exclude no other process, hence the check and the loop.
    with contextlib.suppress(FileNotFoundError):
      lock = open(path, "w")
      try:
        files.lock(lock, wait=True)
      except files.NoLocksError:
        logging.warning(
          "the file system of %s has no locks: do not build this dataset twice at the same time",
          os.path.dirname(path),
        )
        return lock
      if os.path.exists(path) and os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
        return lock
      lock.close()
