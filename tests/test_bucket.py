"""Access to buckets: which addresses are taken, and errors of the storage in one line."""

import importlib.util

import pytest

from dgia_jax import bucket
from dgia_jax.errors import UserError
from tests.helpers.fake_gcs import gcs  # noqa: F401


@pytest.mark.parametrize(
  "path, message",
  [
    ("s3://bucket/run", "only gs:// is supported"),
    ("https://host/run", "only gs:// is supported"),
    ("gs://", "names no bucket"),
    ("gs:///run", "names no bucket"),
    ("gs://bucket/run*", r"\* would be read as a pattern"),
  ],
)
def test_addresses_that_cannot_work_are_refused(path, message):
  with pytest.raises(UserError, match=f"^--workdir={path[:4]}.*{message}"):
    bucket.check(path, "--workdir")


def test_local_paths_need_no_package(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  bucket.check("runs/demo", "--workdir")


@pytest.mark.parametrize("package", ["gcsfs", "google.cloud.storage"])
def test_a_missing_package_is_named_by_its_extra(monkeypatch, package):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else 1)
  with pytest.raises(UserError, match=r'gs://b/run: .*pip install "dgia_jax\[gcs\]"$'):
    bucket.check("gs://b/run", "--workdir")


def test_objects_below_an_address_are_listed(gcs):  # noqa: F811
  for name in ("run/a", "run/b/c", "run2/d"):
    gcs.put(f"{gcs.url}/{name}", b"12")
  assert {name: size for name, (size, _) in bucket.objects(f"{gcs.url}/run").items()} == {
    "a": 2,
    "b/c": 2,
  }
  assert list(bucket.objects(f"{gcs.url}/run/a")) == [""]
  assert bucket.objects(f"{gcs.url}/ru") == {}


def test_listings_are_not_remembered(gcs):  # noqa: F811
  """TensorStore and other processes write, which gcsfs does not notice."""
  bucket.file_system()
  folder = bucket.epath.Path(f"{gcs.url}/run")
  for names in (["a"], ["a", "b"]):
    gcs.put(f"{gcs.url}/run/{names[-1]}", b"")
    assert sorted(path.name for path in folder.iterdir()) == names
    assert sorted(bucket.objects(str(folder))) == names


def test_a_folder_is_moved(gcs):  # noqa: F811
  for name in ("5/a", "5/b/c"):
    gcs.put(f"{gcs.url}/checkpoints/{name}", name.encode())
  source = bucket.epath.Path(f"{gcs.url}/checkpoints/5")
  bucket.move(source, bucket.epath.Path(f"{gcs.url}/damaged/5"))
  assert gcs.names(gcs.url) == ["damaged/5/a", "damaged/5/b/c"]
  assert gcs.content(f"{gcs.url}/damaged/5/a") == b"5/a"


@pytest.mark.parametrize("status, reason", [(403, "Forbidden"), (401, "401|nvalid")])
def test_errors_of_the_storage_take_one_line(gcs, status, reason):  # noqa: F811
  gcs.fault = lambda method, path: status
  with pytest.raises(UserError, match=f"--run={gcs.url}: .*{reason}") as raised:
    bucket.holds_files(gcs.url, "--run")
  assert "\n" not in str(raised.value)


def test_other_errors_pass():
  with pytest.raises(KeyError), bucket.explained("gs://bucket/run"):
    raise KeyError("a bug")
  with pytest.raises(OSError, match="local"), bucket.explained("runs/demo"):
    raise OSError("local")


def test_a_full_disk_names_the_cache(gcs, tmp_path):  # noqa: F811
  del gcs
  with pytest.raises(UserError, match=f"No space left.*{tmp_path}"), bucket.explained("gs://b/run"):
    raise OSError(28, "No space left on device")


def test_a_lost_connection_is_no_damage():
  for error in (ValueError("UNAVAILABLE: connection"), ConnectionResetError(104, "reset")):
    with pytest.raises(UserError, match="gs://bucket/5"):
      bucket.raise_if_unreachable(bucket.epath.Path("gs://bucket/5"), error)
  for error in (ValueError("DATA_LOSS: CRC differs"), FileNotFoundError("gone")):
    bucket.raise_if_unreachable(bucket.epath.Path("gs://bucket/5"), error)


def test_tensorstore_is_told_where_a_folder_is(tmp_path):
  assert bucket.tensorstore_base(bucket.epath.Path("gs://b/run#1/5")) == {
    "driver": "gcs",
    "bucket": "b",
    "path": "run#1/5/",
  }
  assert bucket.tensorstore_base(tmp_path) == {"driver": "file", "path": f"{tmp_path}/"}
