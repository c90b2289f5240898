"""Running a TFDS builder so that a dataset is either complete or absent.

TFDS writes to a temporary folder and renames it when done, so an error or Ctrl-C leaves nothing. A
killed process leaves that folder, which no reader looks at; the next build of the same dataset
removes it. A lock keeps two processes from building one dataset at a time: the second waits and
then finds it built.
"""

import contextlib
import fcntl
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import tensorflow_datasets as tfds
from absl import logging

from dgia_jax.errors import UserError


def prepare(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
  """Builds a dataset unless it is there, and returns a reader of it that can be pickled.

  Whatever the builder raises is passed on, with nothing left behind.

  Raises:
    UserError: the folder for datasets cannot be written to.
  """
  if os.path.isfile(os.path.join(builder.data_dir, "dataset_info.json")):
    return tfds.builder_from_directory(builder.data_dir)  # perhaps where nobody may write
  home = os.path.dirname(builder.data_dir)  # one variant of the dataset; versions are inside
  with _sole_builder(home), tempfile.TemporaryDirectory() as downloads:
    if not os.path.exists(builder.data_dir):
      logging.info("building %s in %s", builder.name, builder.data_dir)
      if not sys.stderr.isatty():
        tfds.disable_progress_bar()  # a log file would keep every state of it
      # TFDS prints "Downloading, unknown size", which is wrong twice.
      with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=downloads, file_format="array_record")
  return tfds.builder_from_directory(builder.data_dir)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
  """TFDS warns about every configuration that is not a class attribute; ours never are."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


@contextlib.contextmanager
def _sole_builder(home: str) -> Iterator[None]:
  """Holds the lock of a folder, and clears it of what a killed build left.

  The system frees the lock of a process that dies, so an unfinished folder seen while holding it
  belongs to nobody.
  """
  path = f"{home}.lock"
  lock = _locked(path)
  try:
    for entry in os.listdir(home) if os.path.isdir(home) else []:
      if entry.startswith("incomplete."):
        shutil.rmtree(os.path.join(home, entry))
    yield
  finally:
    os.unlink(path)
    lock.close()
    for folder in (home, os.path.dirname(home)):
      with contextlib.suppress(OSError):  # not there, or not empty
        os.rmdir(folder)


def _locked(path: str):
  """An open file with its exclusive lock, once nobody else has it."""
  while True:
    folder = os.path.dirname(path)
    try:
      os.makedirs(folder, exist_ok=True)
    except OSError as error:
      raise UserError(
        f"cannot write to {folder} ({error.strerror}): choose another data_dir"
      ) from error
    # The last owner removes the file, and the folder if it is empty, perhaps just now: a lock on a
    # file without a name would exclude nobody.
    with contextlib.suppress(FileNotFoundError):
      lock = open(path, "w")
      fcntl.flock(lock, fcntl.LOCK_EX)
      if os.path.exists(path) and os.path.samestat(os.fstat(lock.fileno()), os.stat(path)):
        return lock
      lock.close()
