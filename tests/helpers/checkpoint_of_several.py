"""One of several processes that save a state, restore it on another mesh and take its digest.

No whole array may be exchanged, as if it were larger than the memory of a host.
"""

import sys

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from dgia_jax import distributed, sharding
from dgia_jax.method import train_state
from dgia_jax.training import array_digests, checkpoint

NUM_PAIRS = 3000  # of a bank of 3,072 rows
LARGEST = 2**14  # bytes of an exchange


def initializer():
  params = lambda: {"mlp": {"up": {"kernel": jax.numpy.ones((64, 256))}}}
  return train_state.initializer(params, optax.adam(1e-3), num_pairs=NUM_PAIRS, feature_dim=8)


def host_state():
  """Arrays of random numbers; the same in every process."""
  rng = np.random.default_rng(0)
  values = lambda leaf: rng.integers(0, 9999, leaf.shape).astype(leaf.dtype)
  return jax.tree.map(values, jax.eval_shape(initializer()))


def main(coordinator, count, number, workdir):
  """Prints two digests: of the state as saved and as restored."""
  distributed.start(coordinator, int(count), int(number))
  for name in ("process_allgather", "broadcast_one_to_all"):
    setattr(multihost_utils, name, _only_small(getattr(multihost_utils, name)))
  array_digests.BLOCK_BYTES = LARGEST
  abstract = jax.eval_shape(initializer())
  meshes = sharding.create_mesh(2, 2, 1), sharding.create_mesh(1, 2, 2)
  state = sharding.place(host_state(), train_state.layout(meshes[0], abstract))
  digests = [checkpoint.digest(state, NUM_PAIRS)]
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(state, {"data_position": 0})
  step = int(state.step.addressable_data(0))
  checkpoints.add_score(step, {"data_position": step}, 1.0)
  restored, record = checkpoints.restore(step, meshes[1], abstract)
  assert record == {"data_position": step}
  digests.append(checkpoint.digest(restored, NUM_PAIRS))
  checkpoints.close()
  print(*digests)


def _only_small(exchange):
  def checked(tree, *arguments, **options):
    for array in jax.tree.leaves(tree):
      assert np.asarray(array).nbytes <= LARGEST, "a whole array is exchanged"
    return exchange(tree, *arguments, **options)

  return checked


if __name__ == "__main__":
  main(*sys.argv[1:])
