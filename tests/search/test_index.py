"""An index gives the results of a plain ranking, resumes, and follows changes of its folder."""

import errno
import fcntl
import json
import shutil

import numpy as np
import pytest

from dgia_jax import files, sharding
from dgia_jax.errors import UserError
from dgia_jax.search import image_files, index_files
from dgia_jax.search import index as index_lib
from dgia_jax.search.retriever import Retriever
from tests.helpers.known_run import draw_image


@pytest.fixture
def retriever(known_run):
  return Retriever.from_run(known_run, batch_size=8)


def search(index_folder, retriever, query, top=3):
  index = index_lib.SearchIndex(index_folder, retriever.mesh)
  scores, rows = index.search(query, top)
  return [[index.paths[row] for row in ranked] for ranked in rows], scores, index


def test_an_index_finds_what_a_ranking_finds(retriever, image_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(index_lib, "PART_IMAGES", 4)
  embedded, expected = [], []
  report = index_lib.build(
    retriever, "run", image_folder, tmp_path / "i", lambda: embedded.append(1), expected.append
  )
  assert (report.added, report.kept, report.removed) == (10, 0, 0)
  assert len(embedded) == 11 and expected == [11]
  assert [path for path, _ in report.unreadable] == ["a/broken.jpg"]
  paths = sorted(str(path.relative_to(image_folder)) for path in image_folder.rglob("*.png"))
  features = retriever.embed_images([image_folder / path for path in paths])
  query = retriever.embed_texts(["a red coat", "blue shoes"])
  ranked, scores, index = search(tmp_path / "i", retriever, query)
  expected_scores, expected = retriever.rank(query, features, top=3)
  assert ranked == [[paths[row] for row in rows] for rows in expected]
  np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
  assert len(index) == 10 and index.images == image_folder and list(index.paths) == paths
  np.testing.assert_array_equal(np.load(tmp_path / "i" / "features.npy"), features)
  matches = index.matches(query[0], 3)
  assert [str(match.path) for match in matches] == [str(image_folder / p) for p in ranked[0]]
  like = index.matches(index.features([4])[0], 3, without=[image_folder / index.paths[4]])
  assert len(like) == 3 and index.paths[4] not in [index.paths[match.row] for match in like]
  assert index.matches(index.features([4])[0], 1)[0].row == 4


def test_circles_of_links_end(image_folder):
  (image_folder / "a" / "up").symlink_to(image_folder)
  (image_folder / "again").symlink_to(image_folder / "b")
  (image_folder / "broken.png").symlink_to(image_folder / "nothing")
  listing = image_files.list_images(image_folder)
  assert len(listing.files) == 11  # each folder is visited once
  assert listing.unreadable == [("broken.png", "No such file or directory")]


def test_damage_is_one_line(retriever, image_folder, tmp_path):
  whole = tmp_path / "whole"
  index_lib.build(retriever, "run", image_folder, whole)

  def damaged(name, content):
    folder = tmp_path / f"damaged_{len(list(tmp_path.iterdir()))}"
    shutil.copytree(whole, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as error:
      index = index_lib.SearchIndex(folder, retriever.mesh)
      index.matches(index.features([0])[0], 3)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    return str(error.value)

  features = (whole / "features.npy").read_bytes()
  assert "checksum" in damaged("features.npy", features[:-1] + b"\xff")
  assert "cannot be read" in damaged("features.npy", features[:300])
  assert "cannot be read" in damaged("features.npy", b"")
  assert "is damaged" in damaged("paths/text.npy", (whole / "paths" / "text.npy").read_bytes()[:-1])
  for name in ("index.json", "gone.json", "parts/00000.json", "paths/paths.json"):
    for content in (b"", b"{", b"[[1]]", b'{"format": 3, "model_digest": 1}'):
      damaged(name, content)
    assert "its digest differs" in damaged(name, (whole / name).read_bytes().replace(b"0", b"1", 1))
  assert "another version" in damaged("index.json", b'{"model_digest": "x"}')
  (whole / "files" / "00000.json").write_bytes(b"{")  # which only updates read
  index_lib.SearchIndex(whole, retriever.mesh)
  with pytest.raises(UserError, match=r"00000\.json is damaged"):
    index_lib.build(retriever, "run", image_folder, whole)


def test_missing_parts_are_noticed(retriever, image_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(index_lib, "PART_IMAGES", 4)
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  last = sorted((tmp_path / "i" / "parts").iterdir())[-1]
  last.unlink()
  with pytest.raises(UserError, match=f"{last.name} is missing"):
    index_lib.SearchIndex(tmp_path / "i", retriever.mesh)


def test_many_captions_can_be_read_again(tmp_path):
  """More than a file of a user's may hold; those of a million images are."""
  images = [index_files.AnnotatedImage("a.png", None, ["x" * 2**26, "y"])]
  index_files.write_annotated(tmp_path, images)
  assert index_files.read_annotated(tmp_path) == images


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "", 3])
def test_an_index_leads_to_no_other_images(retriever, image_folder, tmp_path, path):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  listing = tmp_path / "i" / "files" / "00000.json"
  content = files.unsealed(json.loads(listing.read_text()))
  content["rows"][0][0] = path
  listing.write_text(json.dumps(files.sealed(content)))
  shutil.rmtree(tmp_path / "i" / "paths")
  with pytest.raises(UserError, match="is damaged"):
    list(index_lib.SearchIndex(tmp_path / "i", retriever.mesh).paths)


def test_two_processes_do_not_write_one_index(retriever, image_folder, tmp_path):
  (tmp_path / "i").mkdir()
  with index_files.locked(tmp_path / "i"), pytest.raises(UserError, match="another process"):
    index_lib.build(retriever, "run", image_folder, tmp_path / "i")


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, caplog):
  def refuse(*arguments):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)
  with index_files.locked(tmp_path):
    assert "has no locks" in caplog.text


def test_parts_are_in_the_order_of_their_numbers(tmp_path):
  """Also when their names differ in length, as those of 100,000 parts and more do."""
  (tmp_path / "parts").mkdir()
  for number in range(11):
    index_files.write_part(tmp_path, index_files.Part(number, number, 1, 7, []))
  (tmp_path / "parts" / "00010.json").rename(tmp_path / "parts" / "000010.json")
  assert [part.first_row for part in index_files.read_parts(tmp_path)] == list(range(11))


def test_mistakes(retriever, image_folder, tmp_path):
  with pytest.raises(UserError, match="no such folder"):
    index_lib.build(retriever, "run", tmp_path / "nowhere", tmp_path / "i")
  mesh = sharding.create_mesh()
  with pytest.raises(UserError, match="make an index first"):
    index_lib.SearchIndex(tmp_path, mesh)
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "1.heic").write_text("")
  with pytest.raises(UserError, match=r"holds no image that can be read.*\.heic 1"):
    index_lib.build(retriever, "run", tmp_path / "empty", tmp_path / "e")
  assert not (tmp_path / "e").exists()
  draw_image(tmp_path / "other" / "1.png", np.random.default_rng(0))
  index_lib.build(retriever, "run", tmp_path / "other", tmp_path / "e")
  with pytest.raises(UserError, match="another folder of images"):
    index_lib.build(retriever, "run", image_folder, tmp_path / "e")
  about = files.unsealed(json.loads((tmp_path / "e" / "index.json").read_text()))
  (tmp_path / "e" / "index.json").write_text(
    json.dumps(files.sealed(about | {"model_digest": "0"}))
  )
  with pytest.raises(UserError, match="another model"):
    index_lib.build(retriever, "run", tmp_path / "other", tmp_path / "e")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot be written"):
    index_lib.build(retriever, "run", image_folder, tmp_path / "file")
  (tmp_path / "annotated" / "annotated.json").mkdir(parents=True)
  someone = index_files.AnnotatedImage("a/1.png", None, ["someone"])
  with pytest.raises(UserError, match=r"--out=.*annotated: cannot be written .*annotated\.json"):
    index_lib.build(retriever, "run", image_folder, tmp_path / "annotated", annotated=[someone])
