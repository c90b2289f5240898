"""Files are replaced as a whole: readers see the old or the new content, never a part."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax import files
from tests.helpers.paths import ROOT


def test_text_and_bytes_are_written(tmp_path):
  files.write_text(tmp_path / "a.txt", "naïve\n")
  files.write_bytes(str(tmp_path / "b"), b"\x00\xff")
  assert (tmp_path / "a.txt").read_bytes() == "naïve\n".encode()
  assert (tmp_path / "b").read_bytes() == b"\x00\xff"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b"]


def test_the_old_file_stays_until_the_block_ends(tmp_path):
  path = tmp_path / "file"
  files.write_text(path, "old")
  with files.replacing(path) as partial:
    partial.write_text("new")
    assert path.read_text() == "old"
    assert partial.parent == tmp_path
  assert path.read_text() == "new"
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
  path = tmp_path / "file"
  files.write_text(path, "old")
  with pytest.raises(error), files.replacing(path) as partial:
    partial.write_text("half")
    raise error("stop")
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "file"):
    pass
  assert not list(tmp_path.iterdir())


def test_errors_of_the_system_reach_the_caller(tmp_path):
  with pytest.raises(FileNotFoundError):
    files.write_text(tmp_path / "absent" / "file", "text")
  (tmp_path / "folder").mkdir()
  with pytest.raises(IsADirectoryError):
    files.write_text(tmp_path / "folder", "text")
  for name in ("", ".", "/"):  # they have no name that a temporary file could be called after
    with pytest.raises(IsADirectoryError):
      files.write_text(name, "text")
  assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_killed_writer_leaves_the_old_file(tmp_path):
  path = tmp_path / "file"
  files.write_text(path, "old")
  program = (
    "import os, signal; from dgia_jax import files\n"
    f"with files.replacing({str(path)!r}) as partial:\n"
    "  partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
  assert run.returncode == -9
  assert path.read_text() == "old"
  files.write_text(path, "new")  # overwrites and renames the leftover of the killed writer
  assert path.read_text() == "new"
  assert list(tmp_path.iterdir()) == [path]


def test_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
  calls = []
  fsync, replace = os.fsync, os.replace
  monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
  monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
  files.write_text(tmp_path / "file", "text")
  assert calls == ["fsync", "replace"]


def test_json_is_sorted_indented_and_ends_with_a_newline(tmp_path):
  files.write_json(tmp_path / "file", {"b": 1, "a": [True, None]})
  text = '{\n  "a": [\n    true,\n    null\n  ],\n  "b": 1\n}\n'
  assert (tmp_path / "file").read_text() == text


@pytest.mark.parametrize(
  "value, expected",
  [
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    (np.array([1.0, np.nan, np.inf]), [1.0, None, None]),
    (jnp.float32(2.5), 2.5),
    (jnp.bfloat16(1.5), 1.5),
    (jnp.zeros(2, jnp.int32), [0, 0]),
    ((float("-inf"), float("nan")), [None, None]),
    ({3: pathlib.Path("a/b")}, {"3": "a/b"}),
    ({"x": {"y": [np.float32(np.nan)]}}, {"x": {"y": [None]}}),
    ("text", "text"),
  ],
)
def test_values_become_json(tmp_path, value, expected):
  files.write_json(tmp_path / "file", value)
  read = json.loads((tmp_path / "file").read_text())
  assert read == expected and type(read) is type(expected)


def test_a_value_that_json_cannot_hold_leaves_no_file(tmp_path):
  with pytest.raises(TypeError):
    files.write_json(tmp_path / "file", {"function": print})
  assert not list(tmp_path.iterdir())


def test_checksums_name_the_files_that_changed(tmp_path):
  for name in ("a", "b"):
    (tmp_path / name).write_text(name)
  files.write_checksums(tmp_path, ["a"])
  assert (tmp_path / files.CHECKSUMS).read_text() == f"{hashlib.sha256(b'a').hexdigest()}  a\n"
  assert not files.differs_from_checksum(tmp_path / "a")
  for name, differs in (("a", True), ("b", False)):
    (tmp_path / name).write_text("changed")
    assert files.differs_from_checksum(tmp_path / name) == differs
  (tmp_path / files.CHECKSUMS).write_bytes(b"\xff")
  assert files.differs_from_checksum(tmp_path / "a")


def test_sealed_content_is_read_or_refused():
  content = {"rows": [1, "\udcff"], "parts": 2}
  sealed = files.sealed(content)
  assert files.unsealed(json.loads(json.dumps(sealed))) == content
  for damaged in (content, sealed | {"parts": 3}, sealed | {"digest": None}, {}):
    with pytest.raises(ValueError, match="digest differs"):
      files.unsealed(damaged)
