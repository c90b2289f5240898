"""Which weights of a run are scored and used: as trained, their average, or the better of both."""

from collections.abc import Mapping
from typing import Any

KINDS = ("raw", "ema")  # as trained, and their average, see `ema`
BETTER = "better"  # whichever scores higher on `eval.select_on`, anew in every evaluation
CHOICES = (*KINDS, BETTER)  # of `config.eval.weights`
RECORDED = "weights"  # key of the choice in the record of a checkpoint and in results.json


def candidates(setting: str, has_average: bool) -> tuple[str, ...]:
  """The kinds of weights to score; the first of equal scores is used.

  Args:
    setting: one of `CHOICES`.
    has_average: whether the run keeps an average, which is scored in any case.
  """
  if setting == "ema" or not has_average:
    return (setting,)
  return KINDS


def chosen(setting: str, record: Mapping[str, Any]) -> str:
  """The weights, "raw" or "ema", that stand for a checkpoint.

  Args:
    setting: one of `CHOICES`.
    record: of the checkpoint, with the choice of its evaluation; of the one before if there was
      none, and the weights as trained if there was none at all.
  """
  return record.get(RECORDED, KINDS[0]) if setting == BETTER else setting
