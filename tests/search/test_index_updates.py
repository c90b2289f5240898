"""An index resumes, follows changes of its folder, and is refused where it is incomplete."""

import os

import numpy as np
import pytest

from dgia_jax.errors import UserError
from dgia_jax.search import changes, codes, image_files, index_files
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
  sha256 = changes._sha256
  monkeypatch.setattr(changes, "_sha256", lambda path: hashed.append(path) or sha256(path))
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  assert not hashed
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i", verify=True)
  assert len(hashed) == 10 and report.kept == 10


def test_without_its_model_an_index_is_not_continued(retriever, image_folder, tmp_path):
  """With index.json gone, nothing tells that the features are of another model."""
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  (tmp_path / "i" / "index.json").unlink()
  with pytest.raises(UserError, match=r"is damaged: index\.json is missing"):
    index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  assert not (tmp_path / "i" / "index.json").exists()
  (tmp_path / "new").mkdir()
  index_files.write_about(tmp_path / "new", {"format": 3})  # interrupted before the first part
  (tmp_path / "new" / "index.json").unlink()
  assert index_lib.build(retriever, "run", image_folder, tmp_path / "new").added == 10


def test_an_index_can_be_opened_during_an_update(
  retriever, image_folder, tmp_path, rng, monkeypatch
):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  read_sealed, updates = index_files._read_sealed, []

  def read_and_update(path):
    content = read_sealed(path)
    if not updates:
      updates.append(path)
      draw_image(image_folder / "new.png", rng)
      index_lib.build(retriever, "run", image_folder, tmp_path / "i")
    return content

  monkeypatch.setattr(index_files, "_read_sealed", read_and_update)
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  assert updates and len(index) in (10, 11)


def test_an_index_can_be_opened_during_a_compaction(retriever, image_folder, tmp_path, monkeypatch):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  (image_folder / "a" / "1.png").unlink()
  read_rows, compactions = index_files.read_rows, []

  def compact_and_read(folder):
    if not compactions:
      compactions.append(folder)
      index_lib.build(retriever, "run", image_folder, tmp_path / "i", compact=True)
    return read_rows(folder)

  monkeypatch.setattr(index_files, "read_rows", compact_and_read)
  index = index_lib.SearchIndex(tmp_path / "i", retriever.mesh)
  assert compactions and len(index) == len(index.paths) == 9


def test_an_emptied_folder_may_be_a_drive_that_is_not_mounted(retriever, image_folder, tmp_path):
  out = tmp_path / "i"
  build = lambda **options: index_lib.build(retriever, "run", image_folder, out, **options)
  build()
  image_folder.rename(tmp_path / "drive")
  image_folder.mkdir()
  for options in ({}, {"compact": True}):
    with pytest.raises(UserError, match="holds no image, but the index has 10: .*not mounted.*/i$"):
      build(**options)
  image_folder.rmdir()
  (tmp_path / "drive").rename(image_folder)
  assert build().kept == 10
  index_files.write_gone(out, set(range(10)), 1)  # an index that has no images left
  for path in image_folder.rglob("*.*"):
    path.unlink()
  assert build(compact=True).dropped == 10
  with pytest.raises(UserError, match="holds no image"):
    index_lib.SearchIndex(out, retriever.mesh)


def test_images_in_a_folder_that_cannot_be_listed_are_kept(
  retriever, image_folder, tmp_path, monkeypatch
):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  whole = image_files.list_images(image_folder)
  inside = {file.path for file in whole.files if file.path.startswith("b/")}
  unreadable = [("b", "Permission denied"), ("a/1.png", "Input/output error")]
  files = [file for file in whole.files if file.path not in inside | {"a/1.png", "a/3.png"}]
  monkeypatch.setattr(
    image_files, "list_images", lambda folder: image_files.Listing(files, {}, unreadable)
  )
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i", compact=True)
  assert (report.added, report.kept, report.removed, report.dropped) == (0, 9, 1, 1)
  paths = set(index_lib.SearchIndex(tmp_path / "i", retriever.mesh).paths)
  assert inside | {"a/1.png"} < paths and "a/3.png" not in paths


def test_a_folder_that_cannot_be_listed_is_not_empty(
  retriever, image_folder, tmp_path, monkeypatch
):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  listing = image_files.Listing([], {}, [(".", "Permission denied")])
  monkeypatch.setattr(image_files, "list_images", lambda folder: listing)
  with pytest.raises(UserError, match="holds no image that can be read.*Permission denied"):
    index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  monkeypatch.undo()
  assert len(index_lib.SearchIndex(tmp_path / "i", retriever.mesh)) == 10


def test_a_compacted_index_is_updated_and_searched(retriever, image_folder, tmp_path, rng):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  removed = index_lib.SearchIndex(tmp_path / "i", retriever.mesh).features([0])
  (image_folder / "a" / "1.png").unlink()
  draw_image(image_folder / "a" / "3.png", rng)
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i", compact=True)
  assert (report.added, report.removed, report.dropped) == (1, 2, 2)
  names = {path.name for path in (tmp_path / "i").iterdir()}
  assert names == {".lock", "index.json", "data1"}
  features = (tmp_path / "i" / "data1" / "features.npy").read_bytes()
  assert removed.tobytes() not in features
  draw_image(image_folder / "new.png", rng)
  report = index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  assert (report.added, report.kept, report.removed) == (1, 9, 0)
  assert {path.name for path in (tmp_path / "i").iterdir()} == names
  index_lib.build(retriever, "run", image_folder, tmp_path / "fresh")
  query = retriever.embed_texts(["a red coat"])
  ranked, scores, _ = search(tmp_path / "i", retriever, query, 20)
  expected, expected_scores, _ = search(tmp_path / "fresh", retriever, query, 20)
  assert ranked == expected and len(ranked[0]) == 10
  np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_an_update_of_incomplete_features_is_refused(
  retriever, image_folder, tmp_path, rng, damage
):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  path = tmp_path / "i" / "features.npy"
  content = path.read_bytes()
  path.unlink()
  if damage == "cut":
    path.write_bytes(content[: len(content) // 2])
  for _ in range(2):  # with nothing to add, then with a new image
    with pytest.raises(UserError, match=r"features\.npy"):
      index_lib.build(retriever, "run", image_folder, tmp_path / "i")
    draw_image(image_folder / "new.png", rng)
  with pytest.raises(UserError, match="fewer than 10 rows"):
    index_files.append_features(tmp_path / "i", 10, np.zeros((1, 64), np.float32))


def test_one_pass_finds_the_files_with_new_times(retriever, image_folder, tmp_path, monkeypatch):
  """Not one for each part."""

  class Counted(dict):
    passes = 0

    def __iter__(self):
      self.passes += 1
      return super().__iter__()

  monkeypatch.setattr(index_lib, "PART_IMAGES", 1)
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  parts = index_files.read_parts(tmp_path / "i")
  moved = Counted({row: image_files.ImageFile(f"{row}.png", 1, 2, 3) for row in (7, 0, 3)})
  changes.update_times(tmp_path / "i", parts, moved)
  assert moved.passes < len(parts) == 10  # the checks of types take some
  for part in parts:
    ((file, _),) = index_files.read_files(tmp_path / "i", part)
    assert (file == moved.get(part.number)) == (part.number in moved)


def test_a_folder_may_be_named_in_several_ways(retriever, image_folder, tmp_path):
  index_lib.build(retriever, "run", image_folder, tmp_path / "i")
  (tmp_path / "link").symlink_to(image_folder / "a")
  for name in ("images/../images", "images/.", "images/a/.."):
    report = index_lib.build(retriever, "run", tmp_path / name, tmp_path / "i")
    assert report.kept == 10
  up = tmp_path / "link" / ".."  # is where the link leads, not where it is
  assert index_lib.build(retriever, "run", up, tmp_path / "i").kept == 10
  index_lib.build(retriever, "run", tmp_path / "images" / ".." / "images", tmp_path / "new")
  assert index_files.read_about(tmp_path / "new")["images"] == str(image_folder)


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
