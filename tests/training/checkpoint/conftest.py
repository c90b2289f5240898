"""A working directory with two checkpoints."""

import shutil

import pytest

from tests.helpers.checkpoints import save


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
  """A working directory with the checkpoints 3 and 4, and their states."""
  workdir = tmp_path_factory.mktemp("two_steps")
  return workdir, save(workdir, 3, 4)


@pytest.fixture
def workdir(two_steps, tmp_path):
  """A copy that a test may damage."""
  shutil.copytree(two_steps[0], tmp_path / "run")
  return tmp_path / "run"
