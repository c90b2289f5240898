"""Codes are made by indexing, follow the index, and are verified."""

import errno
import json
import shutil
import threading
import zlib

import numpy as np
import pytest

from dgia_jax import files
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


def search_once(index):
  return index.search(np.ones((1, DIM), np.float32), 5)


def is_coded(index):
  return isinstance(index._gallery, CodedGallery)


def damage(path):
  """Changes one bit of a file."""
  content = path.read_bytes()
  path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


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
  monkeypatch.setattr(codes, "VERSION", 3)
  monkeypatch.setattr(codes, "_CHECKSUMS", {3: codes.block_checksum})
  assert not is_coded(open_index(folder))
  codes.update(folder, index_files.read_parts(folder), DIM)
  assert is_coded(open_index(folder))
  same_results(open_index(folder), open_index(folder, use_codes=False), rng)


def test_codes_of_the_first_version_stay_in_use(folder, rng, monkeypatch):
  """They have other checksums, also those of parts that are added to them."""
  shutil.rmtree(folder / "codes")
  parts = index_files.read_parts(folder)
  with monkeypatch.context() as patch:
    patch.setattr(codes, "VERSION", 1)
    codes.update(folder, parts[:2], DIM)
  codes.update(folder, parts, DIM)
  about = files.unsealed(json.loads((folder / "codes" / "codes.json").read_text()))
  assert about["version"] == 1
  content = np.load(folder / "codes" / "codes.npy")
  for part, (_, checksum, _) in zip(parts, about["parts"], strict=True):
    assert checksum == zlib.crc32(content[part.first_row : part.stop_row])
  assert codes.block_checksum(content[:300]) != zlib.crc32(content[:300])
  same_results(open_index(folder), open_index(folder, use_codes=False), rng)
  damage(folder / "codes" / "codes.npy")
  with pytest.raises(UserError, match="checksum differs"):
    search_once(open_index(folder))


def test_opening_does_not_wait_for_the_checksums_and_searches_do(folder, monkeypatch):
  may_end, verified = threading.Event(), []

  def checksum(array):
    assert may_end.wait(60)
    verified.append(1)
    return codes.block_checksum(array)

  monkeypatch.setattr(codes, "_CHECKSUMS", {codes.VERSION: checksum})
  index, other = open_index(folder), open_index(folder)
  assert is_coded(index) and not verified
  results = []
  reads = (
    lambda: index.search(np.ones((1, DIM), np.float32), 5),
    lambda: other.features([3]),
    lambda: other.histogram(np.ones(DIM, np.float32)),
  )
  threads = [threading.Thread(target=lambda read=read: results.append(read())) for read in reads]
  for thread in threads:
    thread.start()
  threads[0].join(0.2)
  assert not results and all(thread.is_alive() for thread in threads)
  may_end.set()
  for thread in threads:
    thread.join(60)
  assert len(results) == 3 and len(verified) == 2 * 2 * 3


def test_of_the_rows_only_the_scale_is_copied(folder):
  made = codes.open_codes(folder, index_files.read_parts(folder), DIM)
  for name in ("error", "norm", "crc32"):
    assert not getattr(made, name).flags.c_contiguous, name
  assert made.scale.flags.c_contiguous


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 3 * 4096 + 8])
def test_the_checksum_of_blocks_notices_changes(size, rng):
  content = rng.integers(0, 256, size, np.uint8)
  checksum = codes.block_checksum(content)
  assert checksum == codes.block_checksum(content.view(np.int8))
  assert checksum != codes.block_checksum(np.append(content, np.uint8(1)))
  for place in rng.integers(0, size, 20) if size else ():
    changed = content.copy()
    changed[place] ^= np.uint8(1 << rng.integers(8))
    assert codes.block_checksum(changed) != checksum
  if size > 8192:
    assert codes.block_checksum(np.roll(content, 4096)) != checksum


def test_codes_are_not_added_to_missing_ones(folder):
  """The rows before them would be zeros."""
  crc32 = index_files.append_features(folder, 700, np.eye(DIM, dtype=np.float32))
  index_files.write_part(folder, index_files.Part(3, 700, DIM, crc32, []))
  (folder / "codes" / "codes.npy").unlink()
  with pytest.raises(UserError, match=r"codes\.npy is missing; delete .*/codes and index again:"):
    codes.update(folder, index_files.read_parts(folder), DIM)
  assert not (folder / "codes" / "codes.npy").exists()


@pytest.mark.parametrize("name", ["codes.npy", "rows.npy", "codes.json"])
@pytest.mark.parametrize("kind", ["flip", "cut", "empty", "missing"])
def test_damaged_codes_are_one_line_and_can_be_made_again(folder, name, kind):
  path = folder / "codes" / name
  if kind == "missing":
    path.unlink()
  elif kind == "flip":
    damage(path)
  else:
    path.write_bytes({"cut": path.read_bytes()[:200], "empty": b""}[kind])
  if (name, kind) == ("codes.json", "missing"):
    assert not is_coded(open_index(folder))
  else:
    with pytest.raises(UserError) as error:
      search_once(open_index(folder))
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
    search_once(open_index(folder))


def test_a_feature_that_cannot_be_read_is_one_line(folder, monkeypatch):
  def fail(*arguments):
    raise OSError(errno.EIO, "Input/output error")

  index = open_index(folder)
  monkeypatch.setattr(codes.os, "preadv", fail)
  with pytest.raises(UserError, match=r"features\.npy cannot be read \(.*Input/output error"):
    index.features([0])


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
