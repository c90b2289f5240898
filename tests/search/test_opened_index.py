"""Searches of an opened index: re-ranking, patterns, several queries, annotations."""

import shutil

import numpy as np
import pytest

from dgia_jax.errors import UserError
from dgia_jax.search import index as index_lib
from dgia_jax.search import matches, opened_index
from dgia_jax.search.retriever import Retriever
from dgia_jax.training import test_time


@pytest.fixture
def retriever(known_run):
  return Retriever.from_run(known_run, batch_size=8)


def test_the_best_results_are_reranked(retriever, image_folder, tmp_path, monkeypatch):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  query_D = retriever.embed_texts("a red coat")[0]
  plain = index.matches(query_D, 10)
  features = index.features([match.row for match in plain])
  assert index.matches(query_D, 10, rerank=False) == plain
  for candidates in (100, 10, 6, 1):
    monkeypatch.setattr(matches, "CANDIDATES", candidates)
    scores = test_time.rerank((features @ query_D)[None], features, candidates)[0]
    expected = [plain[place] for place in np.argsort(-scores, kind="stable")]
    assert [m.row for m in expected][candidates:] == [m.row for m in plain][candidates:]
    for top in (10, 3, 1):  # the order does not depend on how many are shown
      assert index.matches(query_D, top, rerank=True) == expected[:top]
    if candidates >= 10:
      assert expected != plain and sorted(expected, key=plain.index) == plain
  some = index.matches(query_D, 5, only="a/*", without=[plain[0].path], rerank=True)
  assert some and all("/a/" in str(match.path) for match in some)
  assert index.matches(query_D, 5, only="nothing/*", rerank=True) == []


def test_patterns_are_of_paths_from_the_folder_on(retriever, image_folder, tmp_path):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  query_D = retriever.embed_texts("a red coat")[0]
  for pattern in ("a/*", "*/a/*", "/a/*"):
    paths = [index.paths[match.row] for match in index.matches(query_D, 20, only=pattern)]
    assert len(paths) == 5 and all(path.startswith("a/") for path in paths)


def test_several_queries_are_one_search(retriever, image_folder, tmp_path, monkeypatch):
  for number in range(3):  # copies, so that a search for few images has to go on
    shutil.copy(image_folder / "a" / "1.png", image_folder / f"copy{number}.png")
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  copied = index.features([list(index.paths).index("a/1.png")])
  queries = np.concatenate([retriever.embed_texts(["a red coat", "blue shoes"]), copied])
  without = [[], [image_folder / "b/c/2.png"], [image_folder / "copy0.png"]]
  searched = []
  search = index._gallery.search
  monkeypatch.setattr(
    index._gallery, "search", lambda q, *args: searched.append(len(q)) or search(q, *args)
  )
  for options in (dict(), dict(fold=True), dict(only="a/*", rerank=True), dict(only="nothing")):
    for top in (1, 2, 20):
      single = [
        index.matches(query_D, top, paths, **options)
        for query_D, paths in zip(queries, without, strict=True)
      ]
      searched.clear()
      assert index.matches_of_all(queries, top, without, **options) == single
      assert searched[0] == 3 and searched == sorted(searched, reverse=True)
  monkeypatch.setattr(opened_index, "QUERIES", 2)
  searched.clear()
  assert [len(found) for found in index.matches_of_all(queries, 4, without)] == [4, 4, 4]
  assert searched == [2, 1]
  assert index.matches_of_all(queries[:0], 4, []) == []


def test_annotations_are_read_when_they_are_asked_for(retriever, image_folder, tmp_path):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  (tmp_path / "i" / "annotated.json").write_text("{")
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  assert len(index.matches(index.features([0])[0], 3)) == 3
  with pytest.raises(UserError, match=r"annotated\.json"):
    _ = index.identities
