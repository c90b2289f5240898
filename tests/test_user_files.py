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
