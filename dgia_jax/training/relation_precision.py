"""How many mined relations are right: counted on the host, outside the step, for the log alone.

This is where identity labels meet training, and the only direction is outwards: numbers to read.
"""

import numpy as np

from dgia_jax.training import retrieval_metrics


class RelationPrecision:
  """Counts mined and correct relations over steps (paper Figure 4).

  Args:
    person_of_pair_N: (N,) identity of every training pair.
  """

  def __init__(self, person_of_pair_N):
    self._person_N = person_of_pair_N
    self._counts = {"local": [0, 0], "global": [0, 0]}

  def add(self, report):
    """Counts one step's `train_step.Report`, fetched to the host."""
    real_B = report.index >= 0
    person_B = np.where(real_B, self._person_N[report.index], -1)
    size = len(person_B)
    related = np.unpackbits(report.local_relations, axis=1, count=size).astype(bool)
    row, column = np.nonzero(related)
    self._count("local", person_B[row] == person_B[column])
    row, slot = np.nonzero(report.neighbours.valid)
    self._count("global", person_B[row] == self._person_N[report.neighbours.rows[row, slot]])

  def _count(self, kind, correct):
    self._counts[kind][0] += int(correct.sum())
    self._counts[kind][1] += correct.size

  def read(self):
    """{"local_precision", "global_precision"} in percent since the last read; None: none mined."""
    values = {
      f"{kind}_precision": retrieval_metrics.relation_accuracy(*counts)
      for kind, counts in self._counts.items()
    }
    self._counts = {kind: [0, 0] for kind in self._counts}
    return values
