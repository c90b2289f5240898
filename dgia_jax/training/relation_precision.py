"""Precision of mined relations, counted on the host and used only for logging.

This is the only part of training that reads identity labels, and nothing flows back from it.
"""

import numpy as np

from dgia_jax.method import train_step
from dgia_jax.training import retrieval_metrics


class RelationPrecision:
  """Counts mined and correct relations over several steps (paper Figure 4)."""

  def __init__(self, person_of_pair_N: np.ndarray | None) -> None:
    """`person_of_pair_N`: the identity of every training pair; None to count nothing."""
    self._person_N = person_of_pair_N
    self._counts = {"local": [0, 0], "global": [0, 0]}

  @property
  def is_counting(self) -> bool:
    """Whether `add` needs the output of steps."""
    return self._person_N is not None

  def add(self, output: train_step.StepOutput) -> None:
    """Counts the relations that one step mined; `output` must be on the host."""
    if self._person_N is None:
      return
    is_real_B = output.index >= 0
    person_B = np.where(is_real_B, self._person_N[output.index], -1)
    size = len(person_B)
    related_BxB = np.unpackbits(output.local_relations, axis=1, count=size).astype(bool)
    row, column = np.nonzero(related_BxB)
    self._count("local", person_B[row] == person_B[column])
    row, slot = np.nonzero(output.neighbours.valid)
    mined = self._person_N[output.neighbours.rows[row, slot]]
    self._count("global", person_B[row] == mined)

  def _count(self, kind: str, is_correct: np.ndarray) -> None:
    self._counts[kind][0] += int(is_correct.sum())
    self._counts[kind][1] += is_correct.size

  def take(self) -> dict[str, float | None]:
    """Returns `local_precision` and `global_precision` in percent and starts counting again.

    A precision is None if no relation of its kind was mined, or none are counted.
    """
    values = {
      f"{kind}_precision": retrieval_metrics.relation_accuracy(*counts)
      for kind, counts in self._counts.items()
    }
    self._counts = {kind: [0, 0] for kind in self._counts}
    return values
