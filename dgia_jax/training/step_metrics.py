"""Averages of the step's metrics, accumulated on the device and read once per logging interval."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from clu import metrics

from dgia_jax import sharding

# These are means over the pairs of a batch, so a partial batch must count for less.
PER_PAIR = ("local_relations", "global_relations", "anchor_confidence")


class IntervalMetrics:
  """The metrics of the steps since the last `take`.

  Every metric is averaged over steps, those of `PER_PAIR` over the real pairs of all steps.
  """

  def __init__(self, mesh: jax.sharding.Mesh, names: Iterable[str]) -> None:
    """`names`: the metrics that every step returns."""
    layout = sharding.replicated(mesh)
    empty = jax.device_get(_collection({name: metrics.Average.empty() for name in names}))
    self._empty = sharding.place(empty, jax.tree.map(lambda _: layout, empty))
    self._merge = jax.jit(_merge, out_shardings=layout)
    self._interval = self._empty

  def add(self, step_metrics: Mapping[str, jax.Array], num_pairs: jax.Array) -> None:
    """Adds one step's metrics, which come from a batch of `num_pairs`, without waiting for them."""
    self._interval = self._merge(self._interval, dict(step_metrics), num_pairs)

  def take(self) -> metrics.Collection:
    """Returns the interval's metrics, still on the device, and starts a new interval."""
    interval, self._interval = self._interval, self._empty
    return interval


def read(interval: metrics.Collection) -> dict[str, float]:
  """Fetches an interval's averages to the host, waiting until they are computed."""
  return {name: float(value) for name, value in jax.device_get(interval).compute().items()}


def _merge(
  interval: metrics.Collection, step_metrics: dict[str, jax.Array], num_pairs: jax.Array
) -> metrics.Collection:
  averages = {}
  for name, value in step_metrics.items():
    weight = num_pairs if name in PER_PAIR else jnp.int32(1)
    averages[name] = metrics.Average(total=value * weight, count=weight)
  return interval.merge(_collection(averages))


def _collection(averages: dict[str, metrics.Average]) -> metrics.Collection:
  return metrics.Collection.create_collection(**averages)
