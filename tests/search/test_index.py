"""An index gives the results of a plain ranking, resumes, and follows changes of its folder."""

import errno
import fcntl
import json
import os
import shutil
import sys

import numpy as np
import pytest

from dgia_jax import files, sharding
from dgia_jax.errors import UserError
from dgia_jax.search import codes, export, image_files, index_files, matches
from dgia_jax.search import index as index_lib
from dgia_jax.search.retriever import Retriever
from dgia_jax.training import test_time
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


def test_a_stopped_indexing_continues(retriever, image_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(index_lib, "PART_IMAGES", 4)
  images = []

  def stop():
    images.append(1)
    if len(images) == 7:
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


def test_work_is_saved_before_a_part_is_full(retriever, image_folder, tmp_path, monkeypatch):
  monkeypatch.setattr(index_lib, "PART_SECONDS", 0.0)
  images = []

  def stop():
    images.append(1)
    if len(images) == 10:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    index_lib.build(retriever, "run", image_folder, tmp_path / "i", stop)
  assert [part.num_rows for part in index_files.read_parts(tmp_path / "i")] == [8]  # a batch
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  assert (report.kept, report.added, len(report.unreadable)) == (8, 2, 1)
  assert [part.num_rows for part in index_files.read_parts(tmp_path / "i")] == [8, 2]
  monkeypatch.undo()
  index_lib.build(retriever, "run", image_folder, tmp_path / "whole")
  saved, whole = (index_lib.SearchIndex(tmp_path / name, retriever.mesh) for name in ("i", "whole"))
  assert list(saved.paths) == list(whole.paths)
  np.testing.assert_array_equal(saved.features(saved.rows), whole.features(whole.rows))


def test_an_index_follows_its_folder(retriever, image_folder, tmp_path, rng):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  (image_folder / "a" / "1.png").unlink()
  draw_image(image_folder / "a" / "3.png", rng)  # changed
  draw_image(image_folder / "new.png", rng)
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  assert (report.added, report.kept, report.removed) == (2, 8, 2)
  index_lib.build(retriever, "run", image_folder, tmp_path / "fresh")
  changed = retriever.embed_images([image_folder / "a" / "3.png"])
  ranked, scores, index = search(tmp_path / "i", retriever, changed, 20)
  assert set(ranked[0]) == set(search(tmp_path / "fresh", retriever, changed, 20)[0][0])
  assert ranked[0][0] == "a/3.png" and scores[0, 0] > 0.9999 and len(index) == 10
  draw_image(image_folder / "a" / "1.png", rng)  # a deleted file returns
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  assert (report.added, report.kept, report.removed) == (1, 10, 0)
  assert len(search(tmp_path / "i", retriever, changed, 20)[0][0]) == 11


def test_the_content_of_a_file_decides(retriever, image_folder, tmp_path, rng):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  touched, restored = image_folder / "a" / "1.png", image_folder / "a" / "3.png"
  os.utime(touched)
  update = lambda **options: index_lib.build(
    retriever, "run", image_folder, tmp_path / "i", **options
  )
  report = update()
  assert (report.added, report.kept) == (0, 10)
  before = restored.stat()
  content = restored.read_bytes()
  draw_image(restored, rng)
  restored.write_bytes(restored.read_bytes()[: len(content)].ljust(len(content), b"\0"))
  os.utime(restored, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert restored.stat().st_mtime_ns == before.st_mtime_ns
  assert restored.stat().st_size == before.st_size
  report = update()
  assert (report.added, report.kept, report.removed) == (1, 9, 1)


def test_verify_hashes_files_that_look_unchanged(retriever, image_folder, tmp_path, monkeypatch):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  hashed = []
  sha256 = index_lib._sha256
  monkeypatch.setattr(index_lib, "_sha256", lambda path: hashed.append(path) or sha256(path))
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  assert not hashed
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i", verify=True)
  assert len(hashed) == 10 and report.kept == 10


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
  for name in ("index.json", "gone.json", "parts/00000.json", "files/00000.json"):
    for content in (b"", b"{", b"[[1]]", b'{"format": 3, "model_digest": 1}'):
      damaged(name, content)
    assert "its digest differs" in damaged(name, (whole / name).read_bytes().replace(b"0", b"1", 1))
  assert "another version" in damaged("index.json", b'{"model_digest": "x"}')


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


def test_export_names_the_missing_package(retriever, image_folder, tmp_path, monkeypatch):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  for file_format, package in (("faiss", "faiss"), ("parquet", "pyarrow")):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"\[{file_format}\]"):
      export.export(index, tmp_path / "out", file_format)
    assert not (tmp_path / "out").exists()


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


def test_indexing_makes_codes_and_keeps_them_up_to_date(
  retriever, image_folder, tmp_path, rng, monkeypatch
):
  monkeypatch.setattr(codes, "MIN_ROWS", 10)
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  parts = index_files.read_parts(tmp_path / "i")
  assert len(codes.open_codes(tmp_path / "i", parts, retriever.feature_width).codes) == 10
  draw_image(image_folder / "new.png", rng)
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  parts = index_files.read_parts(tmp_path / "i")
  assert len(codes.open_codes(tmp_path / "i", parts, retriever.feature_width).codes) == 11
