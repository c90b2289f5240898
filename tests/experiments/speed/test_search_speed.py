"""The index that is timed is one that the search can open, and differing results are counted."""

import numpy as np
import pytest

from dgia_jax.search import coded_gallery, codes
from experiments.speed import search_speed


@pytest.mark.parametrize("kind", ["random", "persons"])
def test_a_small_index(kind, tmp_path, monkeypatch):
  monkeypatch.setattr(codes, "MIN_ROWS", 128)
  search_speed.write_index(tmp_path / "index", 5000, 16, kind)  # two parts
  report = search_speed.measure(tmp_path / "index", kind, 16, repeats=2, num_queries=70)
  assert report["differing"] == 0 and report["queries"] == 70
  assert report["open_seconds"].keys() == report["check_seconds"].keys() == {"float32", "codes"}
  assert (tmp_path / "index" / "paths" / "paths.json").exists()
  assert 20 <= report["rescored"] < 5000 and report["ratio"] > 0
  assert min(*report["query_ms"].values(), *report["queries_ms"].values()) > 0


def test_differing_results_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(codes, "MIN_ROWS", 128)
  search_speed.write_index(tmp_path / "index", 500, 16)
  search = coded_gallery.CodedGallery.search

  def swapped(gallery, queries, top):
    scores, rows = search(gallery, queries, top)
    if len(queries) > 1:
      rows[1, :2] = rows[1, 1::-1]
    return scores, rows

  times = lambda indices, batches: dict.fromkeys(indices, 1.0)
  monkeypatch.setattr(search_speed, "_times", times)
  monkeypatch.setattr(coded_gallery.CodedGallery, "search", swapped)
  report = search_speed.measure(tmp_path / "index", "random", 16, repeats=1, num_queries=70)
  assert report["differing"] == 2  # one of each batch


@pytest.mark.parametrize("num_images", [30, 900])
def test_results_equal_those_of_a_pass_over_all_features(num_images, tmp_path, monkeypatch):
  monkeypatch.setattr(codes, "MIN_ROWS", 128)
  monkeypatch.setattr(search_speed, "BLOCK_ROWS", 100)
  search_speed.write_index(tmp_path / "index", num_images, 16, "persons")
  measure = lambda: search_speed.measure(
    tmp_path / "index", "persons", 16, repeats=1, num_queries=70, contenders=("codes",)
  )
  assert measure()["differing"] == 0
  nearest = search_speed.nearest_of_all

  def swapped(*arguments):
    scores, rows = nearest(*arguments)
    rows[3, :2] = rows[3, 1::-1]
    return scores, rows

  monkeypatch.setattr(search_speed, "nearest_of_all", swapped)
  assert measure()["differing"] == 1


def test_uncertain_results_are_refused():
  features = np.full((60, 4), 0.5, np.float32)
  with pytest.raises(RuntimeError, match="nearly as similar"):
    search_speed.nearest_of_all(features, features[:1], 20)
