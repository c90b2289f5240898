"""Averages of the step's metrics, accumulated on the device and read once per logging interval."""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
from clu import metrics

from dgia_jax import sharding

# These are means over the pairs of a batch, so a partial batch must count for less.
PER_PAIR = ("local_relations", "global_relations")


class IntervalMetrics:
  """The metrics of the steps since the last `take`.

  Every metric is averaged over steps, those of `PER_PAIR` over the real pairs of all steps.
  """

  def __init__(self, mesh: jax.sharding.Mesh, names: Iterable[str]) -> None:
    """`names`: the metrics that every step returns."""
    collection = metrics.Collection.create(**{name: _average(name) for name in names})
    layout = sharding.replicated(mesh)
    empty = jax.device_get(collection.empty())
    self._empty = sharding.place(empty, jax.tree.map(lambda _: layout, empty))

    def merge(interval, step_metrics, index_B):
      step = collection.single_from_model_output(**step_metrics, is_real_pair=index_B >= 0)
      return interval.merge(step)

    self._merge = jax.jit(merge, out_shardings=layout)
    self._interval = self._empty

  def add(self, step_metrics: Mapping[str, jax.Array], index_B: jax.Array) -> None:
    """Adds one step's metrics without waiting for them.

    Args:
      step_metrics: scalars by name.
      index_B: bank rows of the batch; padded rows have -1.
    """
    self._interval = self._merge(self._interval, dict(step_metrics), index_B)

  def take(self) -> metrics.Collection:
    """Returns the interval's metrics, still on the device, and starts a new interval."""
    interval, self._interval = self._interval, self._empty
    return interval


def read(interval: metrics.Collection) -> dict[str, float]:
  """Fetches an interval's averages to the host, waiting until they are computed."""
  return {name: float(value) for name, value in jax.device_get(interval).compute().items()}


def _average(name: str) -> type[metrics.Metric]:
  if name not in PER_PAIR:
    return metrics.Average.from_output(name)

  def over_pairs(is_real_pair, **values):
    return {
      "values": jnp.broadcast_to(values[name], is_real_pair.shape),
      "mask": is_real_pair,
    }

  return metrics.Average.from_fun(over_pairs)
