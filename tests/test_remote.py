"""Folders in a bucket: copied whole or not at all, written back, owned by one process."""

import json
import pathlib
import shutil

import pytest

from dgia_jax import remote
from dgia_jax.errors import UserError
from tests.helpers.fake_gcs import gcs  # noqa: F401

# ruff: noqa: F811


def mirrored(gcs, **options):
  return remote.mirrored(f"{gcs.url}/run", "--workdir", **options)


def test_local_paths_stay_as_they_are(tmp_path):
  assert remote.local_copy("a/b", "--run") == pathlib.Path("a/b")
  with remote.mirrored(tmp_path, "--workdir") as folder:
    assert folder == tmp_path
    remote.publish(folder)
    remote.refresh(folder)
  assert remote.origin(tmp_path) == tmp_path
  with pytest.raises(UserError, match="--workdir=~nobody-here/run: no home folder"):
    with remote.mirrored("~nobody-here/run", "--workdir"):
      raise AssertionError


def test_a_tilde_is_a_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert remote.local_copy("~/run", "--run") == tmp_path / "run"
  with pytest.raises(UserError, match="^--run=~nobody-here/run: no home folder"):
    remote.local_copy("~nobody-here/run", "--run")


def test_a_folder_is_copied_once_per_content(gcs):
  gcs.put(f"{gcs.url}/clip/config.json", b"1")
  gcs.put(f"{gcs.url}/clip/a/weights", b"22")
  copy = remote.local_copy(f"{gcs.url}/clip/", "pretrained")
  assert copy.name == "clip"
  assert (copy / "a" / "weights").read_bytes() == b"22"
  assert str(remote.origin(copy)) == f"{gcs.url}/clip"
  gcs.fault = lambda method, path: 403 if "config.json" in path else None
  assert remote.local_copy(f"{gcs.url}/clip", "pretrained") == copy
  gcs.fault = lambda method, path: None
  gcs.put(f"{gcs.url}/clip/config.json", b"2")  # as long as the old content
  assert (remote.local_copy(f"{gcs.url}/clip", "") / "config.json").read_bytes() == b"2"


def test_a_single_file_is_copied(gcs):
  gcs.put(f"{gcs.url}/best.pth", b"weights")
  copy = remote.local_copy(f"{gcs.url}/best.pth", "pretrained")
  assert copy.name == "best.pth"
  assert copy.read_bytes() == b"weights"


def test_of_a_run_only_small_files_are_copied(gcs):
  for name in ("config.json", "tokenizer/t", "checkpoints/1/s", "events.out.tfevents.1", "hf/w"):
    gcs.put(f"{gcs.url}/run/{name}", b"")
  copy = remote.local_copy(f"{gcs.url}/run", "--run")
  assert sorted(str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file()) == [
    "config.json",
    "tokenizer/t",
  ]


def test_half_a_copy_is_never_seen(gcs, tmp_path):
  for name in "abc":
    gcs.put(f"{gcs.url}/index/{name}", b"")
  gcs.fault = lambda method, path: 403 if path.endswith("/c") else None
  with pytest.raises(UserError, match=f"^--index={gcs.url}/index: .*permission"):
    remote.local_copy(f"{gcs.url}/index", "--index")
  assert not list((tmp_path / "remote_cache").iterdir())


def test_a_folder_that_changes_is_copied_again(gcs):
  gcs.put(f"{gcs.url}/index/a", b"0")
  changes = iter(range(1))

  def change(method, path):
    if method == "GET" and path.endswith("/a") and next(changes, None) is not None:
      gcs.put(f"{gcs.url}/index/a", b"1")

  gcs.fault = change
  assert (remote.local_copy(f"{gcs.url}/index", "--index") / "a").read_bytes() == b"1"
  changes = iter(range(100))
  gcs.put(f"{gcs.url}/index/a", b"2")
  with pytest.raises(UserError, match="--index=.* changes while it is copied"):
    remote.local_copy(f"{gcs.url}/index", "--index")


def test_what_is_missing_is_named(gcs):
  with pytest.raises(UserError, match=f"--run={gcs.url}/no: there is no such file or folder"):
    remote.local_copy(f"{gcs.url}/no", "--run")
  with pytest.raises(UserError, match="--run=gs://no-bucket/run: .*bucket"):
    remote.local_copy("gs://no-bucket/run", "--run")
  with (
    pytest.raises(UserError, match="--workdir=gs://no-bucket/run: .*bucket"),
    remote.mirrored("gs://no-bucket/run", "--workdir"),
  ):
    pass


def test_names_that_lead_out_of_the_folder_are_refused(gcs, tmp_path):
  gcs.put(f"{gcs.url}/run/../../escaped", b"")
  with pytest.raises(UserError, match="leads out of its folder"), mirrored(gcs):
    pass
  assert not list(tmp_path.rglob("escaped"))


def test_a_mirror_reads_and_writes_the_bucket(gcs, tmp_path):
  gcs.put(f"{gcs.url}/run/config.json", b"{}")
  gcs.put(f"{gcs.url}/run/checkpoints/1/state", b"")
  with mirrored(gcs) as folder:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json"]
    (folder / "metrics.jsonl").write_text("1\n")
    remote.publish(folder)
    assert gcs.content(f"{gcs.url}/run/metrics.jsonl") == b"1\n"
    (folder / "metrics.jsonl").write_text("1\n2\n")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / ".lock").write_text("local")
  assert gcs.content(f"{gcs.url}/run/metrics.jsonl") == b"1\n2\n"
  assert gcs.names(f"{gcs.url}/run") == [
    "checkpoints/1/state",
    "config.json",
    "metrics.jsonl",
    "tokenizer/tokenizer.json",
  ]
  assert not list((tmp_path / "remote_cache").iterdir())


def test_only_changed_files_are_uploaded_and_json_is_last(gcs):
  gcs.put(f"{gcs.url}/run/old.json", b"{}")
  uploads = []

  def note(method, path):
    if path.startswith("upload"):
      uploads.append(pathlib.PurePath(path).name)

  with mirrored(gcs, claims=False) as folder:
    gcs.fault = note
    for name in ("b.json", "a.json", "z.npy"):
      (folder / name).write_text("1")
    remote.publish(folder)
  assert uploads == ["z.npy", "b.json", "a.json"]


def test_files_that_are_deleted_here_are_deleted_in_the_bucket(gcs):
  for name in ("config.json", "tokenizer.json", "model", "checkpoints/1/state"):
    gcs.put(f"{gcs.url}/run/{name}", b"{}")
  with mirrored(gcs, writes=False, deletes=True) as follower:
    (follower / "config.json").unlink()
    remote.publish(follower)
  with mirrored(gcs, claims=False, deletes=True) as folder:
    (folder / "new").write_text("")
    remote.publish(folder)
    for name in ("tokenizer.json", "model", "new"):
      (folder / name).unlink()
    del gcs.objects[gcs.url.removeprefix("gs://"), "run/model"]  # another process was first
    remote.publish(folder)
    assert gcs.names(f"{gcs.url}/run") == ["checkpoints/1/state", "config.json"]


def test_a_cleaner_of_temporary_files_takes_nothing_from_a_long_run(gcs):
  gcs.put(f"{gcs.url}/run/config.json", b"{}")
  with mirrored(gcs) as folder:
    (folder / "metrics.jsonl").write_text("1")
    remote.publish(folder)
    for path in folder.iterdir():
      path.unlink()
    remote.publish(folder)
  assert gcs.names(f"{gcs.url}/run") == ["config.json", "metrics.jsonl"]


def test_a_folder_that_vanishes_takes_nothing_with_it(gcs):
  gcs.put(f"{gcs.url}/run/config.json", b"{}")
  with mirrored(gcs, claims=False, deletes=True) as folder:
    shutil.rmtree(folder)
  assert gcs.names(f"{gcs.url}/run") == ["config.json"]


def test_files_are_uploaded_if_the_block_fails(gcs):
  with (
    pytest.raises(UserError, match=f"^{gcs.url}/run/metrics.jsonl is damaged"),
    mirrored(gcs) as folder,
  ):
    (folder / "metrics.jsonl").write_text("1\n")
    raise UserError(f"{folder / 'metrics.jsonl'} is damaged")
  assert gcs.names(f"{gcs.url}/run") == ["metrics.jsonl"]


def test_files_that_cannot_be_uploaded_are_kept(gcs):
  with pytest.raises(UserError, match=r"--workdir=.*Forbidden.* kept in /\S+$") as raised:
    with mirrored(gcs) as folder:
      (folder / "metrics.jsonl").write_text("1\n")
      gcs.fault = lambda method, path: 403
  kept = pathlib.Path(str(raised.value).split()[-1])
  assert kept == folder
  assert (kept / "metrics.jsonl").read_text() == "1\n"


def test_a_bucket_that_may_only_be_read_is_refused_first(gcs):
  gcs.fault = lambda method, path: 403 if method == "POST" else None
  with pytest.raises(UserError, match="--workdir=gs://.*Forbidden"), mirrored(gcs):
    pytest.fail("the block must not start")
  assert gcs.names(gcs.url) == []


def test_the_owner_is_named_until_it_ends(gcs):
  lines = []
  with mirrored(gcs, notify=lines.append):
    owner = json.loads(gcs.content(f"{gcs.url}/run/{remote.OWNER}"))
    with mirrored(gcs, notify=lines.append):
      pass
  assert f"{gcs.url}/run cannot be locked" in lines[0]
  assert "process" in lines[0].split(";")[0]
  assert ";" not in lines[0]
  assert f"process {owner['pid']} on {owner['host']}" in lines[1]
  assert gcs.names(gcs.url) == []


def test_other_processes_follow_the_first(gcs):
  with mirrored(gcs) as first, mirrored(gcs, writes=False) as other:
    (first / "config.json").write_text("{}")
    remote.publish(first)
    remote.refresh(other)
    assert (other / "config.json").read_text() == "{}"
    (other / "stray").write_text("")
    remote.publish(other)
  assert gcs.names(gcs.url) == ["run/config.json"]
