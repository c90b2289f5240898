"""Orbax's manager, as `checkpoint` uses it: which checkpoints it keeps and what it prints."""

import functools
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orbax.checkpoint as ocp

from dgia_jax import bucket

UNFINISHED = ".orbax-checkpoint-tmp"
# Orbax warns about a file that it does not write.
_EXPECTED_WARNING = "_CHECKPOINT_METADATA"


def create(
  folder: bucket.AnyPath, item_names: tuple[str, ...], keep: int, scores: dict[int, float]
) -> ocp.CheckpointManager:
  """A manager that writes in the background; it removes the leftovers of an interrupted save.

  Args:
    folder: of all checkpoints.
    item_names: the items of a checkpoint.
    keep: number of newest checkpoints to keep, besides the best.
    scores: by step; entries that are added later count, too.
  """
  _silence_orbax()
  return ocp.CheckpointManager(
    folder,
    item_names=item_names,
    options=ocp.CheckpointManagerOptions(
      preservation_policy=_KeepNewestAndBest(keep, scores),
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
    ),
  )


def kept(steps: Sequence[int], keep: int, scores: Mapping[int, float]) -> set[int | None]:
  """The steps of the checkpoints to keep: the `keep` newest and the best."""
  return {*sorted(steps)[-keep:], highest(scores, steps)}


def highest(scores: Mapping[int, float], steps: Sequence[int]) -> int | None:
  """Of these steps, the one with the highest score, or the later of two."""
  return max((s for s in steps if s in scores), key=lambda s: (scores[s], s), default=None)


class _KeepNewestAndBest:
  """Orbax's preservation policy: the `keep` newest checkpoints and the best one.

  The scores are read from the checkpoints' own records, which notice damage.
  """

  def __init__(self, keep: int, scores: dict[int, float]):
    self._keep, self._scores = keep, scores

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    """For each checkpoint, oldest first, whether to keep it."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    preserved = kept(steps, self._keep, self._scores)
    return [step in preserved for step in steps]


@functools.cache
def _silence_orbax() -> None:
  """Keeps away what Orbax prints besides the exceptions that its manager raises."""
  logging.getLogger("absl").addFilter(_is_news)
  hook = sys.unraisablehook

  def hook_with_filter(unraisable: Any) -> None:
    # When one array cannot be written, Orbax closes its event loop. The arrays that are written
    # afterwards report to the closed loop, and TensorStore prints a traceback for each one.
    error = unraisable.exc_value
    if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
      hook(unraisable)

  sys.unraisablehook = hook_with_filter


def _is_news(log_record: logging.LogRecord) -> bool:
  """False for an expected warning, and for write errors, which the manager raises again."""
  error = str(log_record.exc_info[1]) if log_record.exc_info else ""
  texts = (log_record.getMessage(), error)
  raised_again = (UNFINISHED, "gs://") if log_record.levelno >= logging.ERROR else (UNFINISHED,)
  return not any(part in text for part in (_EXPECTED_WARNING, *raised_again) for text in texts)
