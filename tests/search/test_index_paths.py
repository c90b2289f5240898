"""Paths of an index: few bytes are read to show some, and none leads elsewhere."""

import os
import shutil

import numpy as np
import pytest

from dgia_jax import files
from dgia_jax.errors import UserError
from dgia_jax.search import index_files, index_paths
from tests.search.small_index import write_index

PATHS = [f"{'ab'[n % 2]}/{n:04d}.jpg" for n in range(697)]
PATHS += [os.fsdecode(b"caf\xe9.png"), "zu\u0308rich/1.png", "b/zürich.png"]


@pytest.fixture
def older(tmp_path):
  """An index of three parts whose paths are in files/*.json only."""
  return write_index(tmp_path / "index", PATHS)


@pytest.fixture
def folder(older):
  index_paths.update(older, index_files.read_parts(older))
  return older


def open_paths(folder):
  return index_paths.Paths(folder, index_files.read_parts(folder))


def test_paths_are_those_of_the_files(older):
  for number in (0, 1, 2, 3):  # parts that have paths in the fast form
    if number:
      index_paths.update(older, index_files.read_parts(older)[:number])
    paths = open_paths(older)
    assert list(paths) == PATHS and len(paths) == 700
    paths = open_paths(older)
    assert [paths[row] for row in range(700)] == PATHS
    assert paths[-1] == PATHS[-1]
    with pytest.raises(IndexError):
      paths[700]


def test_a_search_reads_no_list_of_files(folder, monkeypatch):
  def refuse(*arguments):
    raise AssertionError("a list of files was read")

  parts = index_files.read_parts(folder)
  monkeypatch.setattr(index_files, "_read_sealed", refuse)
  paths = index_paths.Paths(folder, parts)
  assert paths[650] == PATHS[650] and paths._verified == {2}  # of one part
  assert list(paths) == PATHS


def test_an_older_index_reads_each_list_of_files_once(older, monkeypatch):
  read = []
  read_paths = index_files.read_paths
  monkeypatch.setattr(
    index_files, "read_paths", lambda *args: read.append(args[1].number) or read_paths(*args)
  )
  paths = open_paths(older)
  assert [paths[row] for row in (0, 299, 300, 0, 699)] == [
    PATHS[row] for row in (0, 299, 300, 0, 699)
  ]
  assert read == [0, 1, 2]


@pytest.mark.parametrize("made", [0, 2, 3])
def test_opened_paths_outlive_their_files(older, made):
  if made:
    index_paths.update(older, index_files.read_parts(older)[:made])
  paths = open_paths(older)
  for name in ("files", "paths"):
    shutil.rmtree(older / name, ignore_errors=True)
  assert list(paths) == PATHS and paths[650] == PATHS[650]


@pytest.mark.parametrize("made", [False, True])
def test_patterns(older, made):
  if made:
    index_paths.update(older, index_files.read_parts(older))
  matching = open_paths(older).matching
  rows_of = lambda pattern: [PATHS[row] for row in np.flatnonzero(matching(pattern))]
  assert rows_of("*") == PATHS and rows_of("nothing/*") == []
  inside = [path for path in PATHS if path.startswith("a/")]
  for pattern in ("a/*", "*/a/*", "**/a/*", "/a/*", "a?*", "[!bcz]*", "[!b-z]*"):
    assert rows_of(pattern) == inside
  assert rows_of("[!a]*") == [path for path in PATHS if not path.startswith("a")]
  assert rows_of("?a/*") == rows_of("[!x]a/*") == []
  assert rows_of("*/0007.jpg") == rows_of("[ab]/0007.jpg") == ["b/0007.jpg"]
  for pattern in ("*z\xfcrich*", "*zu\u0308rich*"):  # the same letters
    assert rows_of(pattern) == PATHS[-2:]
  assert rows_of("caf*") == [PATHS[697]]


@pytest.mark.parametrize("name", ["text.npy", "stops.npy", "paths.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing", "other"])
def test_damaged_paths_are_one_line_and_can_be_made_again(folder, name, damage):
  path = folder / "paths" / name
  content = path.read_bytes()
  flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
  other = files.sealed({"version": 1}) if name == "paths.json" else None
  if damage == "missing":
    path.unlink()
  elif other and damage == "other":
    files.write_json(path, other)
  else:
    damaged = {"flip": flipped, "cut": content[:200], "empty": b"", "other": content[::-1]}
    path.write_bytes(damaged[damage])
  if (name, damage) == ("paths.json", "missing"):
    assert list(open_paths(folder)) == PATHS
  else:
    with pytest.raises(UserError) as error:
      list(open_paths(folder))
    assert "\n" not in str(error.value) and str(error.value).endswith(
      f"; delete {path.parent} and index again: no image is embedded again"
    )
    assert (f"{path} is missing;" in str(error.value)) == (damage == "missing")
  shutil.rmtree(path.parent)
  index_paths.update(folder, index_files.read_parts(folder))
  assert list(open_paths(folder)) == PATHS


def test_nothing_is_added_to_damaged_paths(older):
  parts = index_files.read_parts(older)
  index_paths.update(older, parts[:2])
  stops = older / "paths" / "stops.npy"
  stops.write_bytes(stops.read_bytes()[:-8] + bytes(8))
  text = (older / "paths" / "text.npy").read_bytes()
  with pytest.raises(UserError, match="paths is damaged"):
    index_paths.update(older, parts)
  assert (older / "paths" / "text.npy").read_bytes() == text


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../secret.png", "a/..", ""])
@pytest.mark.parametrize("made", [False, True])
def test_no_path_leads_elsewhere(tmp_path, monkeypatch, path, made):
  with monkeypatch.context() as patch:  # as of someone who forges an index
    patch.setattr(index_files, "is_inside", lambda path: True)
    folder = write_index(tmp_path / "index", ["a.png", path])
    parts = index_files.read_parts(folder)
    if made:
      index_paths.update(folder, parts)
  with pytest.raises(UserError, match="is damaged"):
    list(index_paths.Paths(folder, parts))
  with pytest.raises(UserError, match="is damaged"):
    index_paths.Paths(folder, parts)[1]


def test_paths_inside_the_folder_may_hold_points():
  for path in ("a", "a/b", "..a/b", "a../b", "a/...", ".a", "a b"):
    assert index_files.is_inside(path)
  for path in (None, 3, "a\0", "..", "../a", "a/../b", "/"):
    assert not index_files.is_inside(path)
