import io

import jax
import jax.numpy as jnp
import pytest

from dgia_jax.reporting.console import Console
from dgia_jax.training import step_profiler
from tests.helpers import tiny_run


def profiled_steps(tmp_path, monkeypatch, steps_done, **fields):
  """The steps, out of 12, during which the profiler runs."""
  is_running, steps = [], []
  monkeypatch.setattr(step_profiler.profiler, "start", is_running.append)
  monkeypatch.setattr(step_profiler.profiler, "stop", is_running.clear)
  console = Console(file=io.StringIO())
  profiler = step_profiler.StepProfiler(tiny_run.config(**fields), tmp_path, steps_done, console)
  for step in range(steps_done + 1, 13):
    profiler.before_step(step)
    steps += [step] if is_running else []
    profiler.after_step(step, (jnp.zeros(1),))
  profiler.close()
  assert not is_running
  return steps


@pytest.mark.parametrize(
  "start_step, num_steps, steps_done, expected",
  [
    (3, 2, 0, [3, 4]),
    (1, 2, 0, [2, 3]),  # the first step of a process contains one-time work
    (3, 2, 8, [10, 11]),  # the run was resumed behind the chosen step
    (11, 9, 0, [11, 12]),  # the run ends first
    (3, 0, 0, []),
  ],
)
def test_which_steps_are_profiled(
  tmp_path, monkeypatch, start_step, num_steps, steps_done, expected
):
  fields = {"profile__start_step": start_step, "profile__steps": num_steps}
  assert profiled_steps(tmp_path, monkeypatch, steps_done, **fields) == expected


def test_other_processes_write_no_profile(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  assert profiled_steps(tmp_path, monkeypatch, 0, profile__steps=2) == []


def test_a_profile_is_a_file_below_the_working_directory(tmp_path):
  out = io.StringIO()
  config = tiny_run.config(profile__steps=1, profile__start_step=2)
  profiler = step_profiler.StepProfiler(config, tmp_path, 0, Console(file=out))
  profiler.before_step(2)
  profiler.after_step(2, jax.jit(lambda x: (x + 1,))(jnp.zeros(8)))
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
  assert f"profile written to {tmp_path / 'profile'}" in out.getvalue()
