"""A compaction removes what is left of images that are gone, and a crash does not matter."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from dgia_jax import files
from dgia_jax.errors import UserError
from dgia_jax.search import codes, compaction, index_files, index_paths
from dgia_jax.search.opened_index import SearchIndex
from tests.helpers.meshes import mesh_of
from tests.search.small_index import DIM, write_index

PATHS = [f"a/{n:04d}.jpg" for n in range(70)]
GONE = {0, 5, 40, 69}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An index of two parts with codes, four of whose images are gone."""
  monkeypatch.setattr(codes, "MIN_ROWS", 50)
  folder = write_index(tmp_path / "index", PATHS, part_rows=40)
  parts = index_files.read_parts(folder)
  index_paths.update(folder, parts)
  codes.update(folder, parts, DIM)
  index_files.write_gone(folder, GONE, 2)
  return folder


def content(folder):
  """Paths, features and hashes of the rows that can be results."""
  data = index_files.data_folder(folder, index_files.read_about(folder))
  parts, gone = index_files.read_rows(data)
  rows = np.flatnonzero(index_files.usable_rows(parts, gone))
  entries = [entry for part in parts for entry in index_files.read_files(data, part)]
  paths = list(index_paths.Paths(data, parts))
  assert paths == [file.path for file, _ in entries]
  made = codes.open_codes(data, parts, DIM)
  assert made is not None
  made.check()
  features = np.array(index_files.open_features(data, parts, DIM))
  return [paths[row] for row in rows], features[rows].tolist(), [entries[row] for row in rows]


def names(folder):
  return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_rows_that_are_gone_leave_the_disk(folder):
  expected = content(folder)
  assert len(expected[0]) == 66
  assert compaction.compact(folder, 50) == 4
  assert content(folder) == expected
  assert names(folder) == ["data1", "index.json"]
  assert [part.num_rows for part in index_files.read_parts(folder / "data1")] == [50, 16]
  everything = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
  assert b"a/0006.jpg" in everything and b"a/0005.jpg" not in everything
  assert compaction.compact(folder, 50) == 0 and names(folder) == ["data1", "index.json"]
  index_files.write_gone(folder / "data1", {1}, 2)
  assert compaction.compact(folder, 50) == 1 and names(folder) == ["data2", "index.json"]
  assert content(folder) == tuple([column[0], *column[2:]] for column in expected)


def test_annotations_of_images_that_are_gone_leave_the_disk(folder):
  images = folder.parent / "images"
  (images / "other").mkdir(parents=True)
  (images / "other" / "link.jpg").write_text("")  # an image by a name that is not indexed
  rows = [(path, 1, ["someone"]) for path in ("a/0000.jpg", "a/0001.jpg", "other/link.jpg")]
  rows.append(("x" * 300, 1, ["someone"]))  # no file has this name, but no system can say so
  annotated = [index_files.AnnotatedImage(*row) for row in rows]
  index_files.write_annotated(folder, annotated)
  compaction.compact(folder, 50)
  assert index_files.read_annotated(folder / "data1") == annotated[1:]


def test_an_index_may_become_empty(folder):
  index_files.write_gone(folder, set(range(70)), 2)
  assert compaction.compact(folder, 50) == 70
  assert index_files.read_rows(folder / "data1") == ([], set())
  assert not (folder / "data1" / "features.npy").exists()


@pytest.mark.parametrize("function", ["write_part", "write_annotated", "replace_about"])
def test_a_full_disk_keeps_no_half_of_a_compaction(folder, monkeypatch, function):
  def fail(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")

  index_files.write_annotated(folder, [index_files.AnnotatedImage("a/0001.jpg", 1, ["someone"])])
  expected, before = content(folder), files_of(folder)
  with monkeypatch.context() as patch:
    patch.setattr(index_files, function, fail)
    with pytest.raises(OSError, match="No space left"):
      compaction.compact(folder, 50)
  assert content(folder) == expected and files_of(folder) == before
  assert not (folder / "data1").exists()


def test_releases_that_know_no_compaction_refuse_a_compacted_index(folder):
  assert index_files.read_about(folder)["format"] == 3
  compaction.compact(folder, 50)
  assert index_files.read_about(folder)["format"] == 4


def test_a_crash_at_any_moment_leaves_the_index_readable(folder, monkeypatch):
  """The process is killed before each write and each removal in turn."""
  expected, whole = content(folder), folder.parent / "whole"
  shutil.copytree(folder, whole)
  steps_left = [0]

  def mortal(function):
    def step(*arguments, **options):
      if not steps_left[0]:
        raise KeyboardInterrupt
      steps_left[0] -= 1
      return function(*arguments, **options)

    return step

  for number in range(100):
    with monkeypatch.context() as patch:
      patch.setattr(os, "replace", mortal(os.replace))
      patch.setattr(index_files, "append_rows", mortal(index_files.append_rows))
      patch.setattr(compaction, "_remove", mortal(compaction._remove))
      steps_left[0] = number
      try:
        compaction.compact(folder, 50)
        break
      except KeyboardInterrupt:
        pass
    assert content(folder) == expected, number
    compaction.remove_former_data(folder)  # as the next indexing does
    filled = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
    assert content(folder) == expected and len(filled) in (2, 7), number
    shutil.rmtree(folder)
    shutil.copytree(whole, folder)
  assert 20 < number < 99 and content(folder) == expected


@pytest.mark.parametrize("moment", ["read_parts", "open_features"])
def test_an_index_that_is_compacted_while_it_is_opened_is_opened_again(folder, monkeypatch, moment):
  """Also if all its files could be opened, and some were of the former data."""
  function, compactions = getattr(index_files, moment), []

  def compact_then(*arguments, **options):
    result = function(*arguments, **options)
    if not compactions:
      compactions.append(0)
      compactions.append(compaction.compact(folder, 50))
    return result

  monkeypatch.setattr(index_files, moment, compact_then)
  index = SearchIndex(folder, mesh_of(1, 1, 1))
  assert compactions == [0, 4] and len(index.rows) == len(index.paths) == 66
  index_files.write_gone(folder / "data1", {1}, 2)
  compaction.compact(folder, 50)
  assert index.features([65]).shape == (1, DIM) and len(set(index.paths)) == 66
  with pytest.raises(UserError, match="data1 was removed by a compaction; open the index again"):
    _ = index.identities


@pytest.mark.parametrize("leftover", ["features", "file", "partial"])
def test_what_an_interrupted_indexing_left_is_removed(folder, leftover):
  index_files.write_gone(folder, set(), 2)
  assert compaction.compact(folder, 50) == 0 and not (folder / "data1").exists()
  if leftover == "features":
    index_files.append_features(folder, 70, np.full((1, DIM), 0.25, np.float32))
  elif leftover == "file":
    index_files.write_files(folder, 2, [])
  else:
    (folder / "files" / ".00002.json.partial").write_text("{")
  expected = content(folder)
  assert compaction.compact(folder, 50) == 0
  assert content(folder) == expected and names(folder) == ["data1", "index.json"]
  assert compaction.compact(folder, 50) == 0 and names(folder) == ["data1", "index.json"]


def files_of(folder):
  return {
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if path.is_symlink() or not path.is_dir()
  }


def test_files_of_the_user_stay(folder):
  """Images may be in the folder of their index."""
  users = ["data1/a.jpg", "data2/features.npy", "data3/parts/00000.json", "files/x.jpg"]
  users += ["parts/1.json", "paths/notes.txt", "codes/codes.npy.bak", "data05/a/b.jpg", "a/1.jpg"]
  for name in users:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
  (folder / "data6").mkdir()
  (folder / "data7").symlink_to(folder.parent / "elsewhere")
  (folder / "data8").symlink_to(folder / "a")
  write_index(folder / "data9", PATHS[:2])  # an index of its own
  before, expected = files_of(folder / "data9"), content(folder)
  compaction.remove_former_data(folder)
  assert content(folder) == expected
  assert compaction.compact(folder, 50) == 4
  assert content(folder) == expected
  about = index_files.read_about(folder)
  assert about["data"] == "data4"  # the first name that is free
  for _ in range(2):
    compaction.remove_former_data(folder)
    others = {name for name in files_of(folder) if not name.startswith(("data4/", "data9/"))}
    assert others == {*users, "index.json", "data7", "data8"}
    assert all((folder / name).read_text() == "mine" for name in users)
    assert files_of(folder / "data9") == before and (folder / "data6").is_dir()
  assert content(folder) == expected
  (folder / "features.npy").write_text("mine")  # an export, say
  compaction.remove_former_data(folder)
  assert (folder / "features.npy").exists()


def test_an_index_names_no_other_place(folder):
  about = index_files.read_about(folder)
  for name in ("..", "/etc", "data1/..", "data", "parts", 7, ["data1"]):
    (folder / "index.json").write_text(json.dumps(files.sealed(about | {"data": name})))
    with pytest.raises(UserError, match=r"index\.json is damaged"):
      index_files.data_folder(folder, index_files.read_about(folder))
