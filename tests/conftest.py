"""Every test sees eight CPU devices, and silent rank promotion is an error."""

import os
import sys

_FLAG = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
_TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(_TESTS), _TESTS, os.path.join(_TESTS, "models")]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_sessionstart(session):
  """Fails at once, rather than skipping, when the devices that mesh tests need are missing."""
  del session
  if len(jax.devices()) != 8:
    pytest.exit(f"the tests need 8 CPU devices, found {len(jax.devices())}: check XLA_FLAGS", 2)


@pytest.fixture
def rng():
  """A generator that starts the same in every test."""
  return np.random.default_rng(0)


@pytest.fixture(scope="session")
def known_run(tmp_path_factory):
  """Folder of a run with two checkpoints of known weights, see `known_run.write_run`."""
  import known_run as known_run_lib

  return known_run_lib.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def image_folder(tmp_path, rng):
  """Folder of images, see `known_run.write_images`."""
  import known_run as known_run_lib

  return known_run_lib.write_images(tmp_path / "images", rng)
