"""Writes the features and paths of an index for other programs."""

import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dgia_jax import files, user_files
from dgia_jax.errors import UserError
from dgia_jax.search.index import SearchIndex
from dgia_jax.search.query import text_of

BLOCK_ROWS = 16384


def export(index: SearchIndex, path: pathlib.Path | str, file_format: str) -> None:
  """Writes an index to `path`, block by block.

  Args:
    index: the index.
    path: the file to write; its folder must exist.
    file_format: "npy" (features; the paths go to PATH.paths.json), "parquet" (columns `path` and
      `feature`), or "faiss" (an inner product index; the paths go to PATH.paths.json).

  Raises:
    UserError: the format needs a package that is missing, or the file cannot be written.
  """
  path = user_files.expanded(path, "--out")
  try:
    with files.replacing(path) as partial:
      FORMATS[file_format](index, partial)
      if file_format != "parquet":
        with files.replacing(path.with_name(path.name + ".paths.json")) as partial_paths:
          _write_paths(index, partial_paths)
          # So that features of an earlier export are never beside paths of this one.
          path.unlink(missing_ok=True)
  except OSError as error:
    raise UserError(f"--out={path}: cannot be written ({error})") from error


def _write_paths(index: SearchIndex, path: pathlib.Path) -> None:
  """Writes a list in JSON, one path after the other: there may be millions."""
  with path.open("w", encoding="utf-8") as file:
    start = "["
    for name in _absolute_paths(index):
      file.write(start + json.dumps(name))
      start = ", "
    file.write("]\n")


def _absolute_paths(index: SearchIndex) -> Iterator[str]:
  """The paths of the rows that can be results."""
  rows = iter(index.rows)
  wanted = next(rows, None)
  for row, path in enumerate(index.paths):
    if row == wanted:
      yield os.path.join(index.images, path)
      wanted = next(rows, None)


def _blocks(index: SearchIndex) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Row numbers and their features, block by block."""
  for start in range(0, len(index), BLOCK_ROWS):
    rows = index.rows[start : start + BLOCK_ROWS]
    yield rows, index.features(rows)


def _write_npy(index: SearchIndex, path: pathlib.Path) -> None:
  shape = (len(index), index.about["feature_width"])
  with path.open("wb") as file:
    description = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
    for _, features in _blocks(index):
      file.write(np.ascontiguousarray(features, "<f4"))


def _write_parquet(index: SearchIndex, path: pathlib.Path) -> None:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UserError("--format=parquet needs pyarrow: pip install 'dgia_jax[parquet]'") from error
  width = index.about["feature_width"]
  feature = pyarrow.list_(pyarrow.float32(), width)
  schema = pyarrow.schema([("path", pyarrow.string()), ("feature", feature)])
  # Parquet holds UTF-8 only; undecodable bytes of a file name become question marks.
  paths = map(text_of, _absolute_paths(index))
  with pyarrow.parquet.ParquetWriter(path, schema) as writer:
    for rows, features in _blocks(index):
      names = list(itertools.islice(paths, len(rows)))
      values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), width)
      writer.write_table(pyarrow.table([pyarrow.array(names), values], schema=schema))


def _write_faiss(index: SearchIndex, path: pathlib.Path) -> None:
  try:
    import faiss
  except ImportError as error:
    raise UserError("--format=faiss needs faiss-cpu: pip install 'dgia_jax[faiss]'") from error
  flat: Any = faiss.IndexFlatIP(index.about["feature_width"])
  for _, features in _blocks(index):
    flat.add(np.ascontiguousarray(features))
  # Through a file of Python's: FAISS takes no undecodable name, and misses that a disk is full.
  with path.open("wb") as file:
    faiss.write_index(flat, faiss.PyCallbackIOWriter(file.write))


FORMATS: dict[str, Callable[[SearchIndex, pathlib.Path], None]] = {
  "npy": _write_npy,
  "parquet": _write_parquet,
  "faiss": _write_faiss,
}
