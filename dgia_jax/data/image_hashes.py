"""SHA-256 of image files, remembered between runs so that unchanged files are not read again.

A file counts as unchanged while its path, size, inode, modification time and change time are the
same. (The change time cannot be set by a program, so a copy that preserves modification times is
noticed.) The memory is one JSON file per dataset; without it all files are read again.
"""

import json
import pathlib
import time
from collections.abc import Sequence

import tqdm
from absl import logging

from dgia_jax import files
from dgia_jax.data import images as images_lib
from dgia_jax.data import locked_build

# A file may change twice within the resolution of its times, so recent changes are not remembered.
_SETTLED_NS = 2_000_000_000

Entry = list  # SHA-256, size, inode, modification time and change time in nanoseconds


def hash_files(
  paths: Sequence[str | None], memory: pathlib.Path, workers: int = 0
) -> tuple[list[str], dict[str, Entry] | None]:
  """Hashes the content of files.

  Args:
    paths: absolute paths, None where an image has no file.
    memory: the JSON file that `remember` wrote; may be absent.
    workers: reading threads, 0 for one per core.

  Returns:
    One hexadecimal SHA-256 per path, "" where the file is missing or cannot be read; and the
    entries for `remember`, None if the memory holds them already.
  """
  known = _recall(memory)
  settled = time.time_ns() - _SETTLED_NS

  def entry_of(path: str | None) -> Entry | None:
    if path is None:
      return None
    try:
      stat = pathlib.Path(path).stat()
      facts = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
      if path in known and known[path][1:] == facts:
        return known[path]
      # The facts are older than the content: if the file changes in between, they never match.
      return [files.sha256(pathlib.Path(path)), *facts]
    except OSError:
      return None  # the build reads the file again and reports the reason

  with tqdm.tqdm(
    images_lib.ordered_map(entry_of, paths, workers),
    desc="comparing image files", total=len(paths), unit=" images", disable=None, delay=1.0,
  ) as entries:  # fmt: skip
    entries = list(entries)
  remembered = {
    path: entry
    for path, entry in zip(paths, entries, strict=True)
    if entry and max(entry[3:]) < settled
  }
  hashes = [entry[0] if entry else "" for entry in entries]
  memorable = {**known, **remembered}
  return hashes, None if memorable == known else memorable


def remember(entries: dict[str, Entry] | None, memory: pathlib.Path) -> None:
  """Stores entries of `hash_files`; logs a warning if the folder is not writable."""
  if entries is None:
    return
  try:
    with locked_build.exclusive(memory):
      files.write_text(memory, json.dumps(entries) + "\n")
  except OSError as error:
    logging.warning(
      "%s cannot be written (%s): every start reads all image files again", memory, error.strerror
    )


def _recall(memory: pathlib.Path) -> dict[str, Entry]:
  try:
    content = json.loads(memory.read_text(encoding="utf-8"))
  except (OSError, ValueError):
    content = None  # absent or damaged: everything is read again
  entries = content.items() if isinstance(content, dict) else ()
  return {path: entry for path, entry in entries if isinstance(entry, list)}
