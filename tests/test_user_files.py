"""Files that users bring: whatever is wrong with one is a single line that names it."""

import json
import os

import pytest

from dgia_jax import user_files
from dgia_jax.errors import UserError


def test_an_object_is_read(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"a": [1, "ü"]}), encoding="utf-8")
  (tmp_path / "link.json").symlink_to("config.json")
  assert user_files.read_json(tmp_path / "link.json", "pretrained") == {"a": [1, "ü"]}


@pytest.mark.parametrize(
  "content, message",
  [
    (b"{", "is damaged: not JSON"),
    (b"\xff\xfe\xfa", "is damaged: not JSON"),
    (b"[" * 100_000, "is damaged: not JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "is damaged: not JSON"),
    (b"[1]", "does not hold a JSON object"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
  ],
)
def test_damaged_json_is_named(tmp_path, content, message):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(UserError, match=f"pretrained: .*config.json.*{message}"):
    user_files.read_json(tmp_path / "config.json", "pretrained")


def test_a_huge_file_is_not_read(tmp_path):
  with (tmp_path / "config.json").open("wb") as file:
    file.truncate(2**40)
  with pytest.raises(UserError, match="config.json is too large"):
    user_files.read_json(tmp_path / "config.json", "pretrained")


def test_the_limit_is_that_of_the_caller(tmp_path):
  (tmp_path / "rows.json").write_text(json.dumps({"rows": ["x" * 2**21]}))
  assert user_files.read_json(tmp_path / "rows.json", "--index")
  with pytest.raises(UserError, match=r"--index: .*rows.json is too large .*\(over 1 MiB\)"):
    user_files.read_json(tmp_path / "rows.json", "--index", max_bytes=2**20)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_read_without_a_byte_order_mark(tmp_path, encoding):
  (tmp_path / "queries.txt").write_text("größe\n", encoding=encoding)
  assert user_files.read_text(tmp_path / "queries.txt", "--file") == "größe\n"


def test_a_tilde_is_a_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "text").write_text("red")
  assert user_files.expanded("~/text", "--out") == tmp_path / "text"
  assert user_files.local_path("~", "--images") == tmp_path
  assert user_files.read_text("~/text", "--file") == "red"
  for function in (user_files.expanded, user_files.local_path, user_files.read_text):
    with pytest.raises(UserError, match="^--x=~nobody-here/a: no home .* ~nobody-here; give the"):
      function("~nobody-here/a", "--x")


def test_what_exists_is_told_or_the_reason_why_not(tmp_path):
  assert user_files.exists(tmp_path, "--run") and not user_files.exists(tmp_path / "a", "--run")
  with pytest.raises(UserError, match="^--run=a{300}: cannot be read .File name too long.$"):
    user_files.exists("a" * 300, "--run")


@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path):
  os.mkfifo(tmp_path / "fifo")
  (tmp_path / "loop").symlink_to("loop")
  with pytest.raises(UserError, match="--run: .*absent is missing"):
    user_files.check_regular(tmp_path / "absent", "--run")
  with pytest.raises(UserError, match="loop cannot be read"):
    user_files.check_regular(tmp_path / "loop", "--run")
  for path in (tmp_path, tmp_path / "fifo", type(tmp_path)("/dev/zero")):
    with pytest.raises(UserError, match="not a regular file"):
      user_files.check_regular(path, "--run")
