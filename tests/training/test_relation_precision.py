import numpy as np

from dgia_jax.method.global_association import Neighbours
from dgia_jax.method.train_step import Report
from dgia_jax.training.relation_precision import RelationPrecision

PERSONS = np.array([7, 7, 8, 8, 9])


def report(index, related, rows, valid):
  bits = np.packbits(np.array(related, bool), axis=1)
  neighbours = Neighbours(np.array(rows), np.zeros((len(index), 2)), np.array(valid, bool))
  return Report({}, np.array(index), bits, neighbours)


def test_relations_are_counted_by_hand():
  precision = RelationPrecision(PERSONS)
  related = [[0, 1, 0], [1, 0, 1], [0, 1, 0]]  # pairs (0, 1), (2, 1): persons 7-7 and 8-7
  rows, valid = [[1, 4], [0, 0], [3, 0]], [[1, 1], [1, 0], [1, 0]]  # right, wrong, right, right
  precision.add(report([0, 1, 2], related, rows, valid))
  assert precision.read() == {"local_precision": 50.0, "global_precision": 75.0}
  assert precision.read() == {"local_precision": None, "global_precision": None}


def test_padded_rows_count_nowhere():
  precision = RelationPrecision(PERSONS)
  nothing = [[0, 0], [0, 0]]
  precision.add(report([4, -1], nothing, [[4, 0], [4, 4]], [[1, 0], [0, 0]]))
  assert precision.read() == {"local_precision": None, "global_precision": 100.0}
