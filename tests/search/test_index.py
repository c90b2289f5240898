"""An index finds what a plain ranking finds, is resumed, and follows the folder's changes."""

import json

import numpy as np
import pytest

from dgia_jax import sharding
from dgia_jax.errors import UserError
from dgia_jax.search import index as index_lib
from dgia_jax.search.retriever import Retriever
from tests.helpers.known_run import draw_image


@pytest.fixture
def retriever(known_run):
  return Retriever.from_run(known_run, batch_size=8)


def search(index_folder, retriever, query, top=3):
  index = index_lib.SearchIndex(index_folder, retriever.mesh)
  scores, rows = index.search(query, top)
  return [[index.paths[row] for row in found] for found in rows], scores, index


def test_an_index_finds_what_a_ranking_finds(retriever, image_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(index_lib, "PART_IMAGES", 4)
  seen, expected = [], []
  report = index_lib.build(
    retriever, "run", image_folder, tmp_path / "i", lambda: seen.append(1), expected.append
  )
  assert (report.added, report.kept, report.forgotten) == (10, 0, 0)
  assert len(seen) == 11 and expected == [11]
  assert [path for path, _ in report.unreadable] == ["a/broken.jpg"]
  paths = sorted(str(path.relative_to(image_folder)) for path in image_folder.rglob("*.png"))
  features = retriever.embed_images([image_folder / path for path in paths])
  query = retriever.embed_texts(["a red coat", "blue shoes"])
  found, scores, index = search(tmp_path / "i", retriever, query)
  expected_scores, expected = retriever.rank(query, features, top=3)
  assert found == [[paths[row] for row in rows] for rows in expected]
  np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
  assert len(index) == 10 and index.images == image_folder
  like = search(tmp_path / "i", retriever, index.features([4]))[0]
  assert like[0][0] == index.paths[4]


def test_a_stopped_indexing_goes_on(retriever, image_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(index_lib, "PART_IMAGES", 4)
  seen = []

  def stop():
    seen.append(1)
    if len(seen) == 7:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    index_lib.build(retriever, "run", image_folder, tmp_path / "i", stop)
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  assert report.kept == 4 and report.added == 6
  index_lib.build(retriever, "run", image_folder, tmp_path / "whole")
  query = retriever.embed_texts(["a red coat"])
  assert (
    search(tmp_path / "i", retriever, query, 10)[0]
    == search(tmp_path / "whole", retriever, query, 10)[0]
  )


def test_an_index_follows_its_folder(retriever, image_folder, tmp_path, rng):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  (image_folder / "a" / "1.png").unlink()
  draw_image(image_folder / "a" / "3.png", rng)  # changed
  draw_image(image_folder / "new.png", rng)
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  assert (report.added, report.kept, report.forgotten) == (2, 8, 2)
  index_lib.build(retriever, "run", image_folder, tmp_path / "fresh")
  changed = retriever.embed_images([image_folder / "a" / "3.png"])
  found, scores, index = search(tmp_path / "i", retriever, changed, 20)
  assert set(found[0]) == set(search(tmp_path / "fresh", retriever, changed, 20)[0][0])
  assert found[0][0] == "a/3.png" and scores[0, 0] > 0.9999 and len(index) == 10


def test_mistakes(retriever, image_folder, tmp_path):
  with pytest.raises(UserError, match="no such folder"):
    index_lib.build(retriever, "run", tmp_path / "nowhere", tmp_path / "i")
  mesh = sharding.create_mesh()
  with pytest.raises(UserError, match="make an index first"):
    index_lib.SearchIndex(tmp_path, mesh)
  (tmp_path / "empty").mkdir()
  index_lib.build(retriever, "run", tmp_path / "empty", tmp_path / "e")
  with pytest.raises(UserError, match="holds no image"):
    index_lib.SearchIndex(tmp_path / "e", mesh)
  with pytest.raises(UserError, match="another folder of images"):
    index_lib.build(retriever, "run", image_folder, tmp_path / "e")
  about = json.loads((tmp_path / "e" / index_lib.ABOUT).read_text())
  (tmp_path / "e" / index_lib.ABOUT).write_text(json.dumps(about | {"model_digest": "0"}))
  with pytest.raises(UserError, match="another model"):
    index_lib.build(retriever, "run", tmp_path / "empty", tmp_path / "e")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    index_lib.build(retriever, "run", image_folder, tmp_path / "file")
