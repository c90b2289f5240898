import numpy as np

from dgia_jax.method.global_association import Neighbours
from dgia_jax.method.train_step import StepOutput
from dgia_jax.training.relation_precision import RelationPrecision

PERSONS = np.array([7, 7, 8, 8, 9])


def output(index, related, rows, valid):
  bits = np.packbits(np.array(related, bool), axis=1)
  neighbours = Neighbours(np.array(rows), np.zeros((len(index), 2)), np.array(valid, bool))
  num_pairs = np.sum(np.array(index) >= 0)
  return StepOutput({}, num_pairs, np.array(index), bits, neighbours)


def test_mined_and_correct_relations_are_counted():
  precision = RelationPrecision(PERSONS)
  related = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]  # pairs (0, 1), (2, 1): persons 7-7 and 8-7
  rows, valid = [[1, 4], [0, 0], [3, 0]], [[1, 1], [1, 0], [1, 0]]  # right, wrong, right, right
  precision.add(output([0, 1, 2], related, rows, valid))
  assert precision.take() == {"local_precision": 50.0, "global_precision": 75.0}
  assert precision.take() == {"local_precision": None, "global_precision": None}


def test_padded_rows_are_not_counted():
  precision = RelationPrecision(PERSONS)
  nothing = [[0, 0], [0, 0]]
  precision.add(output([4, -1], nothing, [[4, 0], [4, 4]], [[1, 0], [0, 0]]))
  assert precision.take() == {"local_precision": None, "global_precision": 100.0}


def test_without_identities_nothing_is_reported():
  precision = RelationPrecision(None)
  precision.add(output([0, 1], [[0, 1], [1, 0]], [[1, 0], [0, 0]], [[1, 0], [1, 0]]))
  assert precision.take() == {"local_precision": None, "global_precision": None}
