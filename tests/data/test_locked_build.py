"""External causes that stop or delay a build: full disks, missing locks, other processes."""

import errno
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest

from dgia_jax.data import datasets, locked_build
from dgia_jax.errors import UserError
from tests.helpers import fake_datasets
from tests.helpers.paths import ROOT

# A limit on the size of files imitates a full disk: writing fails in the same calls. Without the
# second line, modules imported under the limit would leave truncated bytecode in the checkout.
_FULL_DISK = """
import resource, signal, sys
sys.dont_write_bytecode = True
from dgia_jax.data import __main__ as command
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(command.main({line!r}))
"""


@pytest.mark.parametrize("limit", [10, 1000, 40_000])
def test_a_full_disk_ends_in_one_line(tmp_path, limit):
  fake_datasets.rstp_reid(tmp_path / "in")
  for number in range(5):  # more than one of the writer's chunks
    fake_datasets.write_image(tmp_path / "in" / "imgs" / f"000{number}_c0_0022.jpg", 1, (900, 900))
  line = ["prepare", "rstp_reid", "--source", str(tmp_path / "in"), "--data_dir"]
  program = _FULL_DISK.format(limit=limit, line=[*line, str(tmp_path / "out")])
  run = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert run.returncode == 2, run.stderr
  error = run.stderr.strip().splitlines()[-1]
  assert error.startswith("error: cannot write the dataset to")
  assert "File too large" in error and "choose another data_dir" in error
  assert "Traceback" not in run.stderr
  assert not list((tmp_path / "out").rglob("*info.json"))


def test_other_errors_of_a_build_are_not_explained_away():
  with pytest.raises(RuntimeError, match="a bug"), locked_build._write_errors_explained("/home"):
    raise RuntimeError("a bug")
  with (
    pytest.raises(UserError, match="No space left"),
    locked_build._write_errors_explained("/home"),
  ):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_system_without_locks_builds_with_a_warning(tmp_path, monkeypatch, caplog):
  def flock(file, kind):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

  monkeypatch.setattr(fcntl, "flock", flock)
  fake_datasets.custom(tmp_path / "in")
  options = dict(data_dir=str(tmp_path / "out"), source=str(tmp_path / "in"))
  builder = datasets.load_builder("custom", **options)
  assert len(builder.as_data_source("train")) == 2
  assert "has no locks" in caplog.text
  assert not list((tmp_path / "out").rglob("*.lock"))


def test_other_errors_of_locking_reach_the_caller(tmp_path, monkeypatch):
  def flock(file, kind):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  monkeypatch.setattr(fcntl, "flock", flock)
  with pytest.raises(OSError, match=os.strerror(errno.EIO)), locked_build.exclusive(tmp_path / "a"):
    pass


@pytest.mark.parametrize("lost", ["dataset_info.json", "*"])
@pytest.mark.parametrize("name", ["custom", "synth_pedes"])
def test_a_build_without_its_description_is_named(tmp_path, name, lost):
  options = dict(data_dir=str(tmp_path / "out"))
  if name == "custom":
    fake_datasets.custom(tmp_path / "in")
    options["source"] = str(tmp_path / "in")
  else:
    options |= dict(image_size=(32, 16), train_people=2, val_people=1, test_people=1)
  folder = pathlib.Path(datasets.load_builder(name, **options).data_dir)
  for path in folder.glob(lost):
    path.unlink()
  left = sorted(folder.iterdir())
  with pytest.raises(UserError, match=f"{folder} is incomplete .* delete this folder") as caught:
    datasets.load_builder(name, **options)
  assert "\n" not in str(caught.value)
  assert sorted(folder.iterdir()) == left
  shutil.rmtree(folder)
  assert len(datasets.load_builder(name, **options).as_data_source("train")) > 0


def test_one_holder_at_a_time(tmp_path):
  order, entered = [], threading.Event()

  def second():
    with locked_build.exclusive(tmp_path / "a"):
      entered.set()
      order.append("second")

  thread = threading.Thread(target=second)
  with locked_build.exclusive(tmp_path / "a"):
    thread.start()
    assert not entered.wait(0.2)
    order.append("first")
  thread.join(20)
  assert order == ["first", "second"]
  assert not list(tmp_path.iterdir())
