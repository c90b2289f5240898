"""Every test sees eight CPU devices, and silent rank promotion is an error.

Compiled programs are shared through a persistent cache: by all tests and the processes they start,
in a temporary folder, or in $JAX_COMPILATION_CACHE_DIR where that is set.

jaxtyping's import hook checks the annotations of the package and of the experiments, array shapes
included, while the tests run.

With DGIA_JAX_ACCELERATOR=1 the tests marked `accelerator` run on the GPU or TPU that is there.
"""

import os
import sys
import tempfile

ON_ACCELERATOR = os.environ.get("DGIA_JAX_ACCELERATOR") == "1"
if ON_ACCELERATOR:
  # In full float32 Triton's products take a GPU's compiler minutes each to try out.
  _FLAG = "--xla_gpu_enable_triton_gemm=false"
else:
  # The second flag: see `dgia_jax.training.compilation_cache`.
  _FLAG = (
    "--xla_force_host_platform_device_count=8"
    " --xla_cpu_enable_concurrency_optimized_scheduler=false"
  )
  os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()
_COMPILED = tempfile.TemporaryDirectory(prefix="dgia_jax_compiled_")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _COMPILED.name)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
_TESTS = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(_TESTS))

import jaxtyping  # noqa: E402

import tests.helpers.typecheck  # noqa: E402, F401  (the hook looks it up by name)

CHECKED = [
  "dgia_jax",
  "experiments.paper",
  "experiments.oracle",
  "experiments.speed",
  "experiments.run",
]
jaxtyping.install_import_hook(CHECKED, "tests.helpers.typecheck.check")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
if ON_ACCELERATOR:
  # What is expected was computed in float32, and accelerators multiply with fewer bits by default.
  jax.config.update("jax_default_matmul_precision", "highest")


def pytest_sessionstart(session):
  """Fails at once, rather than skipping, when the devices that tests need are missing."""
  del session
  if ON_ACCELERATOR and jax.default_backend() == "cpu":
    pytest.exit("DGIA_JAX_ACCELERATOR=1, and JAX finds no accelerator here", 2)
  if not ON_ACCELERATOR and len(jax.devices()) != 8:
    pytest.exit(f"the tests need 8 CPU devices, found {len(jax.devices())}: check XLA_FLAGS", 2)


def pytest_unconfigure(config):
  """Removes what was compiled."""
  del config
  _COMPILED.cleanup()


@pytest.fixture
def rng():
  """A generator that starts the same in every test."""
  return np.random.default_rng(0)


@pytest.fixture(scope="session")
def known_run(tmp_path_factory):
  """Folder of a run with two checkpoints of known weights, see `known_run.write_run`."""
  from tests.helpers import known_run as known_run_lib

  return known_run_lib.write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def shipped_mini(known_run, tmp_path, monkeypatch):
  """Folder of the only shipped model, `mini`: that of `known_run`, in half precision."""
  from dgia_jax import convert
  from dgia_jax.models.pretrained import shipped

  monkeypatch.setattr(shipped, "FOLDER", tmp_path / "shipped")
  convert.convert(known_run, shipped.FOLDER / "mini", dtype="float16")
  return shipped.FOLDER / "mini"


@pytest.fixture
def image_folder(tmp_path, rng):
  """Folder of images, see `known_run.write_images`."""
  from tests.helpers import known_run as known_run_lib

  return known_run_lib.write_images(tmp_path / "images", rng)
