"""A checkpoint is written whole or not at all."""

import errno
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dgia_jax.training import checkpoint
from tests.helpers.checkpoints import (
  RECORD,
  abstract_state,
  assert_equal,
  restore_newest,
  save,
  state_on,
)
from tests.helpers.meshes import mesh_of
from tests.helpers.paths import ROOT

# Without its second line, what is imported under the limit would leave truncated bytecode behind.
FULL_DISK = """
import resource, sys
sys.dont_write_bytecode = True
from dgia_jax import distributed
from dgia_jax.training import checkpoint
from tests.helpers import checkpoints as helpers
from tests.helpers.meshes import mesh_of

with distributed.failing_together():
  checkpoints = checkpoint.Checkpoints(sys.argv[1])
  for step in (3, 4):
    checkpoints.save(helpers.state_on(mesh_of(1, 1, 1), step), helpers.RECORD)
    checkpoints.wait()
    hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard_limit))
"""


def test_a_full_disk_ends_in_one_line_and_loses_nothing(tmp_path, two_steps):
  """A limit on the size of files stands for the full disk: its errors take the same way."""
  done = subprocess.run(
    [sys.executable, "-c", FULL_DISK, tmp_path], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
  assert f"error: {tmp_path}/checkpoints: the disk is full (a checkpoint needs" in done.stderr
  step, state, _, _ = restore_newest(tmp_path)
  assert step == 3
  assert_equal(state, two_steps[1][3])
  save(tmp_path, 4)
  names = {entry.name for entry in (tmp_path / checkpoint.FOLDER).iterdir()}
  assert names == {"3", "4"}  # the leftovers are gone


def test_other_write_errors_are_not_taken_for_a_full_disk(tmp_path, monkeypatch):
  def fail(*arguments, **options):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
  with pytest.raises(OSError, match="Input/output error"):
    checkpoint.Checkpoints(tmp_path).save(state_on(mesh_of(1, 1, 1)), RECORD)


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
  mesh = mesh_of(1, 1, 1)
  state = state_on(mesh)
  expected = jax.tree.map(np.array, jax.device_get(state))
  overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0 - 7, state), donate_argnums=0)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(state, RECORD)
  for _ in range(5):
    state = overwrite(state)
  checkpoints.wait()
  restored, _ = checkpoints.restore(3, mesh, abstract_state())
  checkpoints.close()
  assert_equal(jax.device_get(restored), expected)


def test_the_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path):
  save(tmp_path, 3)
  leftover = tmp_path / checkpoint.FOLDER / "9.orbax-checkpoint-tmp-1"
  leftover.mkdir()
  (leftover / "state").write_text("half")
  assert checkpoint.steps_saved(tmp_path) == [3]
  assert checkpoint.Checkpoints(tmp_path).latest() == 3
  save(tmp_path, 4)
  assert not leftover.exists()
