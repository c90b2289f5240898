"""Features and paths for other programs."""

import json
import os
import sys

import numpy as np
import pytest

from dgia_jax.errors import UserError
from dgia_jax.search import export
from dgia_jax.search import index as index_lib
from dgia_jax.search.retriever import Retriever


@pytest.fixture
def retriever(known_run):
  return Retriever.from_run(known_run, batch_size=8)


@pytest.mark.parametrize("file_format", ["npy", "parquet", "faiss"])
def test_export(file_format, retriever, image_folder, tmp_path):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  (image_folder / "a" / "1.png").unlink()
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  expected = index.features(index.rows)
  out = tmp_path / "out"
  if file_format == "npy":
    export.export(index, out, "npy")
    features = np.load(out)
  elif file_format == "parquet":
    parquet = pytest.importorskip("pyarrow.parquet")
    export.export(index, out, "parquet")
    table = parquet.read_table(out)
    features = np.stack(table["feature"].to_numpy())
    paths = table["path"].to_pylist()
  else:
    faiss = pytest.importorskip("faiss")
    export.export(index, out, "faiss")
    flat = faiss.read_index(str(out))
    features = flat.reconstruct_n(0, flat.ntotal)
  if file_format != "parquet":
    paths = json.loads((tmp_path / "out.paths.json").read_text())
  np.testing.assert_array_equal(features, expected)
  assert paths == [str(image_folder / index.paths[row]) for row in index.rows] and len(paths) == 9


def test_a_crash_of_an_export_leaves_no_mismatched_pair(
  retriever, image_folder, tmp_path, monkeypatch
):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  out, paths = tmp_path / "out", tmp_path / "out.paths.json"
  export.export(index_lib.SearchIndex(tmp_path / "i", retriever.mesh), out, "npy")
  (image_folder / "a" / "1.png").unlink()
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  replace, seen = os.replace, []

  def watched(source, target):
    for _ in range(2):  # before and after
      lengths = [len(np.load(out))] if out.exists() else []
      seen.append((lengths, len(json.loads(paths.read_text()))))
      if len(seen) % 2:
        replace(source, target)

  monkeypatch.setattr(os, "replace", watched)
  export.export(index, out, "npy")
  assert len(seen) == 4 and seen[-1] == ([9], 9)
  assert all(not lengths or lengths == [count] for lengths, count in seen)


def test_export_names_the_missing_package(retriever, image_folder, tmp_path, monkeypatch):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  for file_format, package in (("faiss", "faiss"), ("parquet", "pyarrow")):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"\[{file_format}\]"):
      export.export(index, tmp_path / "out", file_format)
    assert not (tmp_path / "out").exists()
