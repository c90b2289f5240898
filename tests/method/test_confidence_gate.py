import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgia_jax.method import confidence_gate, memory_bank
from dgia_jax.method.confidence_gate import confidence
from dgia_jax.method.global_association import Neighbours
from dgia_jax.method.mining import FeaturePair
from tests.helpers.compiled_bank import update
from tests.helpers.meshes import mesh_of

FEATURES = FeaturePair(
  jnp.array([[1.0, 0], [1, 0], [1, 0], [2, 0]]), jnp.array([[3.0, 0], [1, 1], [-1, 0], [3, 4]])
)
COSINES = np.array([1.0, 0.5**0.5, 0.0, 0.6])
INDEX = np.array([0, 1, 2, 5], np.int32)


def _bank(mesh):
  """Rows 0 to 2 are written, with confidences 0.2, 0.4 and 0.6."""
  texts = jnp.array([[1.0, 0], [1, 0], [1, 2]])
  bank = memory_bank.create(8, 2, with_confidence=True)
  return update(
    bank, INDEX[:3], INDEX[:3], FEATURES.image[:3], texts, jnp.ones(3), mesh=mesh,
    confidence=jnp.array([0.2, 0.4, 0.6]),
  )  # fmt: skip


def _confidence(gate):
  mesh = mesh_of(1, 1, 1)
  valid = np.array([[True, True], [True, False], [True, True], [False, False]])
  neighbours = Neighbours(np.zeros((4, 2), int), np.ones((4, 2), np.float32), valid)
  mined = np.array([[[0.0, 5], [0, 1]], [[2, 2], [9, 9]], [[1, 0], [1, 0]], [[1, 0], [1, 0]]])
  mined_features = (mined.astype(np.float32), mined[:, :, ::-1].astype(np.float32))
  batch = {"index": INDEX, "image_index": INDEX}
  compute = jax.jit(functools.partial(confidence, gate, mesh=mesh, block_rows=0))
  return compute(_bank(mesh), batch, FEATURES, neighbours, mined_features)


def test_without_a_gate_every_pair_is_trusted():
  np.testing.assert_array_equal(_confidence("off"), np.ones(4))


def test_pair_is_the_clipped_cosine_of_the_pairs_own_features():
  np.testing.assert_allclose(_confidence("pair"), COSINES, atol=1e-6)


def test_rank_counts_the_captions_of_other_images_that_are_better():
  # Row 1's own caption has a cosine of 0.71: that of row 0 is better, that of row 2 worse. The
  # third pair's own row does not count. The fourth is in the bank for the first time.
  expected = 1 / np.log2(2 + np.array([0, 1, 2, 2]))
  np.testing.assert_allclose(_confidence("rank"), expected, rtol=1e-6)


def test_neighbours_average_both_directions_over_the_pair_and_its_neighbours():
  # Neighbours' images are the mined rows, and their captions have the coordinates exchanged.
  diagonal = 0.5**0.5
  first = (1.0 + (1 + 0) / 2 + (1 + 0) / 2) / 3
  second = (diagonal + (diagonal + 1) / 2) / 2
  third = 0.0  # (-1 + 2 * (0 - 1) / 2) / 3, clipped
  np.testing.assert_allclose(_confidence("neighbours"), [first, second, third, 0.6], atol=1e-6)


def test_running_blends_with_the_stored_confidence_of_a_written_row():
  expected = [0.6, (0.5**0.5 + 0.4) / 2, 0.3, 0.6]
  np.testing.assert_allclose(_confidence("running"), expected, atol=1e-6)


def test_an_unknown_gate():
  with pytest.raises(ValueError, match="smell"):
    _confidence("smell")


def test_only_the_running_gate_is_stored():
  assert memory_bank.create(8, 2).confidence is None
  np.testing.assert_allclose(_bank(mesh_of(1, 1, 1)).confidence[:4], [0.2, 0.4, 0.6, 0.0])
  assert confidence_gate.GATES[0] == "off"
