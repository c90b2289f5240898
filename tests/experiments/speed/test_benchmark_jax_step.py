"""Every part of our implementation runs, and is what it says."""

import jax
import numpy as np
import pytest

from experiments.speed.benchmark import jax_step, report
from experiments.speed.benchmark import workload as workload_lib
from experiments.speed.benchmark.workload import Task
from tests.helpers.benchmark_workload import workload


@pytest.fixture(scope="module")
def implementation():
  return jax_step.JaxImplementation(workload(), threads=0)


def test_the_step_mines_and_learns(implementation):
  task = Task("step")
  facts = implementation.prepare(task)
  assert facts["compile"] > 0 and facts["arguments"] > 0 and facts["peak_memory"] > 1e6
  assert facts["global_relations"] > 0.5
  assert implementation.measure(task, 2) > 0
  fed = implementation.input_wait(3)
  assert 0 <= fed["wait"] <= fed["seconds"]
  assert implementation.profile(task, 1) == {}  # a CPU


@pytest.mark.integration
def test_ways_and_sizes_of_the_step():
  longer = workload(tokenizer__context_length=77)
  implementation = jax_step.JaxImplementation(longer, threads=0)
  some = implementation.prepare(Task("step", batch_size=16))
  everything = implementation.prepare(Task("step", jax_step.ALL_TOKENS, 16))
  assert some["text_tokens"] < everything["text_tokens"] == 77
  assert some["global_relations"] > 0.5


@pytest.mark.parametrize("part", [*report.PARTS, "association", "product"])
def test_parts(implementation, part):
  facts = implementation.prepare(Task(part))
  assert implementation.measure(Task(part), 1) > 0
  implementation.drop(Task(part))
  if part in ("relations", "association"):
    assert facts["local_relations"] > 0 and facts["global_relations"] > 1


def test_the_bank_is_filled_with_the_rows_given(monkeypatch):
  monkeypatch.setattr(jax_step, "_FILL_ROWS", 24)
  small_workload = workload()
  setup = jax_step.make_setup(small_workload)
  state = jax_step.make_state(small_workload, setup)
  bank = jax.device_get(state.bank)
  assert (bank.group >= 0).sum() == small_workload.num_pairs
  norms = np.linalg.norm(bank.image[: small_workload.num_pairs], axis=1)
  np.testing.assert_allclose(
    bank.image_inverse_norm[: small_workload.num_pairs] * norms, 1, rtol=1e-5
  )
  assert int(state.step) == small_workload.steps_per_epoch
  assert workload_lib.check(small_workload) is None
