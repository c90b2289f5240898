import jax
import jax.numpy as jnp
import pytest

from dgia_jax import sharding
from dgia_jax.training import step_metrics
from tests.helpers.meshes import mesh_of


def step(loss, relations, num_pairs):
  """The metrics of one step, and the number of pairs in its batch."""
  values = {"loss": jnp.float32(loss), "local_relations": jnp.float32(relations)}
  return values, jnp.int32(num_pairs)


@pytest.fixture(params=[(1, 1, 1), (2, 2, 2)], ids=str)
def mesh(request):
  return mesh_of(*request.param)


def test_losses_count_per_step_and_relations_per_pair(mesh):
  interval = step_metrics.IntervalMetrics(mesh, ["loss", "local_relations"])
  interval.add(*step(1.0, 3.0, num_pairs=4))
  interval.add(*step(2.0, 1.0, num_pairs=1))
  averages = step_metrics.read(interval.take())
  assert averages == pytest.approx({"loss": 1.5, "local_relations": (4 * 3.0 + 1.0) / 5})


def test_taking_starts_a_new_interval(mesh):
  interval = step_metrics.IntervalMetrics(mesh, ["loss", "local_relations"])
  interval.add(*step(1.0, 3.0, num_pairs=4))
  first = interval.take()
  interval.add(*step(5.0, 2.0, num_pairs=2))
  assert step_metrics.read(interval.take()) == {"loss": 5.0, "local_relations": 2.0}
  assert step_metrics.read(first) == {"loss": 1.0, "local_relations": 3.0}


def test_adding_neither_transfers_nor_compiles_again(mesh):
  layout = sharding.replicated(mesh)
  interval = step_metrics.IntervalMetrics(mesh, ["loss", "local_relations"])
  steps = jax.device_put([step(loss, 1.0, 4) for loss in (1.0, 2.0, 3.0)], layout)
  interval.add(*steps[0])
  programs = interval._merge._cache_size()
  interval.take()
  with jax.transfer_guard("disallow"):
    for metrics, num_pairs in steps:
      interval.add(metrics, num_pairs)
    taken = interval.take()
    interval.add(*steps[0])
  assert interval._merge._cache_size() == programs
  assert step_metrics.read(taken)["loss"] == 2.0
