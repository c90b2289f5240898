"""Hashes follow the content of files; unchanged files are not read twice."""

import hashlib
import json
import os
import pathlib

import pytest

from dgia_jax import files
from dgia_jax.data import image_hashes

DAY_NS = 24 * 3600 * 10**9


@pytest.fixture
def paths(tmp_path, monkeypatch):
  """Three files, and one that is missing; files count as settled immediately."""
  monkeypatch.setattr(image_hashes, "_SETTLED_NS", -DAY_NS)
  for number in range(3):
    (tmp_path / f"{number}").write_bytes(bytes([number] * 10))
  return [*(str(tmp_path / f"{number}") for number in range(3)), None]


@pytest.fixture
def reads(monkeypatch):
  """Names of the files that are read, in parts: a file may be larger than the memory."""
  names, sha256 = [], files.sha256

  def counted(path):
    names.append(path.name)
    return sha256(path)

  monkeypatch.setattr(files, "sha256", counted)
  return names


def _hash(paths, tmp_path):
  memory = tmp_path / "memory" / "hashes.json"
  hashes, entries = image_hashes.hash_files(paths, memory, workers=1)
  image_hashes.remember(entries, memory)
  return hashes


def test_hashes_are_sha256_of_the_content(paths, tmp_path):
  expected = [hashlib.sha256(bytes([number] * 10)).hexdigest() for number in range(3)]
  assert _hash(paths, tmp_path) == [*expected, ""]
  assert _hash([str(tmp_path / "absent")], tmp_path) == [""]


def test_unchanged_files_are_read_once(paths, tmp_path, reads):
  first = _hash(paths, tmp_path)
  assert sorted(reads) == ["0", "1", "2"]
  assert _hash(paths, tmp_path) == first
  assert len(reads) == 3
  assert sorted(path.name for path in (tmp_path / "memory").iterdir()) == ["hashes.json"]


def _overwrite(path):
  """Same size and modification time, in the same file."""
  times = os.stat(path)
  pathlib.Path(path).write_bytes(b"x" * 10)
  os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _replace(path):
  """Same size and modification time, in another file."""
  times = os.stat(path)
  pathlib.Path(path + ".new").write_bytes(b"y" * 10)
  os.utime(path + ".new", ns=(times.st_atime_ns, times.st_mtime_ns))
  os.replace(path + ".new", path)


@pytest.mark.parametrize("change", [_overwrite, _replace])
def test_a_file_of_the_same_size_and_time_is_noticed(paths, tmp_path, reads, change):
  first = _hash(paths, tmp_path)
  reads.clear()
  change(paths[1])
  second = _hash(paths, tmp_path)
  assert reads == ["1"]
  assert [a == b for a, b in zip(first, second, strict=True)] == [True, False, True, True]


def test_a_file_that_was_only_touched_keeps_its_hash(paths, tmp_path, reads):
  first = _hash(paths, tmp_path)
  reads.clear()
  os.utime(paths[0], ns=(0, 0))
  assert _hash(paths, tmp_path) == first
  assert reads == ["0"]


def test_files_of_another_folder_stay_remembered(paths, tmp_path, reads):
  _hash(paths[:2], tmp_path)
  _hash(paths[2:], tmp_path)
  assert sorted(reads) == ["0", "1", "2"]
  _hash(paths, tmp_path)
  assert len(reads) == 3


def test_files_that_have_just_changed_are_not_remembered(paths, tmp_path, reads, monkeypatch):
  """They could change again within the resolution of the file system's clock."""
  monkeypatch.setattr(image_hashes, "_SETTLED_NS", 2 * 10**9)
  _hash(paths, tmp_path)
  _hash(paths, tmp_path)
  assert len(reads) == 6


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}'])
def test_a_damaged_memory_is_ignored(paths, tmp_path, content):
  first = _hash(paths, tmp_path)
  memory = tmp_path / "memory" / "hashes.json"
  memory.write_text(content)
  assert _hash(paths, tmp_path) == first
  assert len(json.loads(memory.read_text())) == 3


def test_a_folder_that_cannot_be_written_gives_a_warning(paths, tmp_path, caplog):
  (tmp_path / "file").write_text("")
  memory = tmp_path / "file" / "hashes.json"
  hashes, entries = image_hashes.hash_files(paths, memory)
  image_hashes.remember(entries, memory)
  assert len(hashes) == 4
  assert "every start reads all image files again" in caplog.text
