"""Codes are made by indexing, follow the index, and are verified."""

import shutil

import numpy as np
import pytest

from dgia_jax.errors import UserError
from dgia_jax.search import codes, index_files
from dgia_jax.search.coded_gallery import CodedGallery
from dgia_jax.search.index import SearchIndex
from experiments.speed import search_speed
from tests.helpers.meshes import mesh_of

DIM = 16


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An index of 700 rows in parts of 300 with codes."""
  monkeypatch.setattr(codes, "MIN_ROWS", 500)
  monkeypatch.setattr(search_speed.index_lib, "PART_IMAGES", 300)
  search_speed.write_index(tmp_path / "index", 700, DIM)
  return tmp_path / "index"


def open_index(folder, **options):
  return SearchIndex(folder, mesh_of(1, 1, 1), **options)


def is_coded(index):
  return isinstance(index._gallery, CodedGallery)


def same_results(index, other, rng):
  queries = rng.normal(size=(5, DIM)).astype(np.float32)
  for array, expected in zip(index.search(queries, 30), other.search(queries, 30), strict=True):
    np.testing.assert_array_equal(array, expected)
  for fold in (False, True):
    for only in ("", "*5.jpg", "nothing"):
      options = dict(only=only, fold=fold, without=[index.images / "000000005.jpg"])
      assert index.matches(queries[0], 9, **options) == other.matches(queries[0], 9, **options)
  np.testing.assert_array_equal(index.features([3, 600]), other.features([3, 600]))


def test_an_index_with_codes_gives_the_same_results(folder, rng):
  index, plain = open_index(folder), open_index(folder, use_codes=False)
  assert is_coded(index) and not is_coded(plain)
  same_results(index, plain, rng)
  assert index.num_rescored > 0 and plain.num_rescored == 0


def test_an_older_or_small_index_has_no_codes(folder, rng, monkeypatch):
  plain = open_index(folder, use_codes=False)
  shutil.rmtree(folder / "codes")
  older = open_index(folder)
  assert not is_coded(older)
  same_results(older, plain, rng)
  parts = index_files.read_parts(folder)
  monkeypatch.setattr(codes, "MIN_ROWS", 701)
  codes.update(folder, parts, DIM)
  assert not (folder / "codes").exists()
  monkeypatch.setattr(codes, "MIN_ROWS", 700)
  codes.update(folder, parts, DIM)
  assert is_coded(open_index(folder))


def test_codes_are_added_for_new_parts(folder, rng):
  before = (folder / "codes" / "codes.npy").read_bytes()[128:]
  features = rng.normal(size=(90, DIM)).astype(np.float32)
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  crc32 = index_files.append_features(folder, 700, features)
  files = index_files.read_files(folder, index_files.read_parts(folder)[0])[:90]
  index_files.write_files(folder, 3, files)
  index_files.write_part(folder, index_files.Part(3, 700, 90, crc32, [1, 2]))
  interrupted = open_index(folder)
  assert not is_coded(interrupted)
  codes.update(folder, index_files.read_parts(folder), DIM)
  index = open_index(folder)
  assert is_coded(index) and (folder / "codes" / "codes.npy").read_bytes()[128:].startswith(before)
  same_results(index, interrupted, rng)
  assert index.search(features[:1], 1)[1] == 700 and 1 not in index.search(features[:1], 790)[1]


def test_codes_of_another_version_are_made_again(folder, monkeypatch, rng):
  monkeypatch.setattr(codes, "VERSION", 2)
  assert not is_coded(open_index(folder))
  codes.update(folder, index_files.read_parts(folder), DIM)
  assert is_coded(open_index(folder))
  same_results(open_index(folder), open_index(folder, use_codes=False), rng)


@pytest.mark.parametrize("name", ["codes.npy", "rows.npy", "codes.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_damaged_codes_are_one_line_and_can_be_made_again(folder, name, damage):
  path = folder / "codes" / name
  content = path.read_bytes()
  flipped = content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
  if damage == "missing":
    path.unlink()
  else:
    path.write_bytes({"flip": flipped, "cut": content[:200], "empty": b""}[damage])
  if (name, damage) == ("codes.json", "missing"):
    assert not is_coded(open_index(folder))
  else:
    with pytest.raises(UserError) as error:
      open_index(folder)
    assert "\n" not in str(error.value) and str(path) in str(error.value).replace(
      f"{path.parent} is", f"{path} is"
    )
  shutil.rmtree(path.parent)
  codes.update(folder, index_files.read_parts(folder), DIM)
  assert is_coded(open_index(folder))


def test_codes_of_other_features_are_refused(folder):
  shutil.copytree(folder / "codes", folder.parent / "codes")
  shutil.rmtree(folder)
  search_speed.write_index(folder, 700, DIM, "persons")
  shutil.rmtree(folder / "codes")
  shutil.move(folder.parent / "codes", folder / "codes")
  with pytest.raises(UserError, match="checksum differs"):
    open_index(folder)


def test_a_damaged_feature_is_noticed_when_it_is_read(folder):
  with (folder / "features.npy").open("r+b") as file:
    file.seek(128 + 4 * DIM * 650)
    file.write(b"\1")
  index = open_index(folder)
  assert index.features([649]).shape == (1, DIM)
  for read in (
    lambda: index.features([650]),
    lambda: index.search(np.ones((1, DIM), np.float32), 700),
    lambda: open_index(folder, use_codes=False),
  ):
    with pytest.raises(UserError, match=r"rows? 6[50]0.*features.npy are damaged"):
      read()
  shutil.rmtree(folder / "codes")
  with pytest.raises(UserError, match="rows 600 to 699 of"):
    codes.update(folder, index_files.read_parts(folder), DIM)
