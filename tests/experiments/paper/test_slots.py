"""Parallel trainings share no GPU, and no core where there are enough."""

import os

import pytest

from dgia_jax.errors import UserError
from experiments.paper import slots


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """Function that sets the number of NVIDIA GPUs and the environment of this machine."""

  def build(gpus, **environment):
    for number in range(gpus):
      (tmp_path / f"nvidia{number}").touch()
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
      monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
      monkeypatch.setenv(name, value)

  for name in ("nvidiactl", "nvidia-uvm", "null"):
    (tmp_path / name).touch()
  monkeypatch.setattr(slots, "DEVICE_FILES", tmp_path)
  return build


def gpus_of(jobs, num_runs=10):
  return [slot.gpu for slot in slots.of_jobs(jobs, num_runs)]


def test_every_job_has_its_own_gpu(machine):
  machine(gpus=3)
  assert gpus_of(2) == ["0", "1"] and gpus_of(3) == ["0", "1", "2"]
  environment = slots.of_jobs(2, 2)[1].environment
  assert environment == {**os.environ, "CUDA_VISIBLE_DEVICES": "1"}
  assert gpus_of(1) == [None] and slots.of_jobs(1, 2)[0].environment is None


def test_fewer_runs_than_jobs_need_fewer_gpus(machine):
  machine(gpus=2)
  assert gpus_of(4, num_runs=2) == ["0", "1"] and gpus_of(4, num_runs=1) == ["0"]


def test_chosen_gpus_are_respected(machine):
  machine(gpus=8, CUDA_VISIBLE_DEVICES="5, 2,GPU-abc")
  assert gpus_of(3) == ["5", "2", "GPU-abc"]
  with pytest.raises(UserError, match="--jobs 4: .*there are 3: give --jobs 3"):
    gpus_of(4)
  machine(gpus=8, CUDA_VISIBLE_DEVICES="5,-1,2")
  with pytest.raises(
    UserError, match="--jobs 2: .*there is 1: give --jobs 1, or set JAX_PLATFORMS"
  ):
    gpus_of(2)


@pytest.mark.parametrize(
  "gpus, environment",
  [
    (0, {}),
    (0, {"CUDA_VISIBLE_DEVICES": "0"}),
    (2, {"JAX_PLATFORMS": "cpu"}),
    (2, {"CUDA_VISIBLE_DEVICES": ""}),
    (2, {"CUDA_VISIBLE_DEVICES": "-1"}),
  ],
)
def test_without_gpus_nothing_changes(machine, gpus, environment):
  machine(gpus, **environment)
  assert gpus_of(5) == [None] * 5


def test_jax_on_cuda_uses_gpus(machine):
  machine(gpus=2, JAX_PLATFORMS="cuda,cpu")
  assert gpus_of(2) == ["0", "1"]


def test_as_many_jobs_as_cores_are_pinned(machine, monkeypatch):
  if not hasattr(os, "sched_setaffinity"):
    pytest.skip("this system cannot pin processes")
  machine(gpus=0)
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 7})
  assert [slot.core for slot in slots.of_jobs(2, 9)] == [3, 7]
  assert [slot.core for slot in slots.of_jobs(3, 9)] == [None] * 3
