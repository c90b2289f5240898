"""Writes the features and paths of an index for other programs."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dgia_jax import files
from dgia_jax.errors import UserError
from dgia_jax.search.index import SearchIndex

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
  path = pathlib.Path(path)
  try:
    with files.replacing(path) as partial:
      FORMATS[file_format](index, partial)
    if file_format != "parquet":
      paths = [str(index.images / index.paths[row]) for row in index.rows]
      files.write_text(path.with_name(path.name + ".paths.json"), json.dumps(paths) + "\n")
  except OSError as error:
    raise UserError(f"--out={path}: cannot be written ({error})") from error


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
  with pyarrow.parquet.ParquetWriter(path, schema) as writer:
    for rows, features in _blocks(index):
      # Parquet holds UTF-8 only; undecodable bytes of a file name become question marks.
      names = [
        os.fsencode(index.images / index.paths[row]).decode("utf-8", "replace") for row in rows
      ]
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
  path.write_bytes(faiss.serialize_index(flat))


FORMATS: dict[str, Callable[[SearchIndex, pathlib.Path], None]] = {
  "npy": _write_npy,
  "parquet": _write_parquet,
  "faiss": _write_faiss,
}
