"""Saves checkpoints and evaluates at the end of epochs: the training loop's hook for both."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from dgia_jax import remote
from dgia_jax.method import scored_weights
from dgia_jax.method.train_state import TrainState
from dgia_jax.reporting.console import Console
from dgia_jax.reporting.metrics_writer import MetricsWriter
from dgia_jax.training import evaluate
from dgia_jax.training.checkpoint import Checkpoints
from dgia_jax.training.setup import TrainingSetup
from dgia_jax.training.step_log import StepLog

_PENDING = "evaluation_pending"


def is_pending(record: Mapping[str, Any]) -> bool:
  """Whether the evaluation that follows the step of a checkpoint is missing in its record."""
  return bool(record.get(_PENDING))


class EvaluateAndSave:
  """Called after every step.

  Saves at the end of every epoch, when training stops, and every `checkpoint.every_steps` steps.
  At the end of every epoch that `eval_every_epochs` selects, and of the last one, it also evaluates
  the saved state. The scores are added to the checkpoint. So whatever ends the process during an
  evaluation, which may take long, costs no step: `catch_up` evaluates when the run resumes.
  """

  def __init__(
    self,
    setup: TrainingSetup,
    evaluator: evaluate.Evaluator,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    console: Console,
    record: dict,
  ) -> None:
    """`record`: the record of the checkpoint that training starts from."""
    self._setup, self._evaluator = setup, evaluator
    self._checkpoints = checkpoints
    self._writer, self._console = writer, console
    self._record = record

  def catch_up(self, step: int, state: TrainState) -> None:
    """Evaluates the restored checkpoint if the run ended before that.

    Args:
      step: optimiser steps done.
      state: the training state after this step.
    """
    if not is_pending(self._record):
      return
    epoch = self._setup.epoch_of(step)
    self._console.print(f"epoch {epoch} is saved but was not evaluated: evaluating it now")
    before, start = self._record["wall_time_seconds"], time.time()
    self._evaluate(step, state, lambda: before + time.time() - start)

  def after_step(self, step: int, state: TrainState, log: StepLog, is_stopping: bool) -> bool:
    """Saves, and evaluates, if this step asks for it.

    Args:
      step: optimiser steps done.
      state: the training state after this step.
      log: measures the time since the last save.
      is_stopping: save in any case and evaluate when the run resumes.

    Returns:
      Whether the state was saved.

    Raises:
      UserError: the loss is not finite, so the state is not saved.
    """
    config, epoch = self._setup.config, self._setup.epoch_of(step)
    ends_epoch = step % self._setup.steps_per_epoch == 0
    extra = config.checkpoint.every_steps
    if not (ends_epoch or is_stopping or (extra and step % extra == 0)):
      return False
    log.flush()
    before = self._record["wall_time_seconds"]
    wall_time = lambda: before + log.seconds()
    is_selected = epoch % config.eval_every_epochs == 0 or epoch == config.num_epochs
    self._record = self._record | {
      "data_position": step,
      "epoch": epoch,
      "wall_time_seconds": round(wall_time(), 3),
      "last": {},  # the scores of this state, once it is evaluated
      _PENDING: ends_epoch and is_selected,
    }
    remote.publish(self._setup.workdir)  # the log first: resuming drops lines, but cannot add any
    self._checkpoints.save(state, self._record)
    if is_pending(self._record) and not is_stopping:
      self._evaluate(step, state, wall_time)
    log.restart_clock(step)
    return True

  def _evaluate(self, step: int, state: TrainState, wall_time: Callable[[], float]) -> None:
    """Scores val and test, records the best epoch of each, adds both to the checkpoint."""
    setup, epoch = self._setup, self._setup.epoch_of(step)
    weights, scores = score_splits(setup, self._evaluator, self._writer, self._console, step, state)
    best = dict(self._record["best"])
    for split in scores:
      value = scores[split]["t2i"]["R1"]
      # The later of equal scores wins here, as it does when the best checkpoint is chosen.
      if split not in best or value >= best[split]["R1"]:
        best[split] = {"epoch": epoch, "step": step, "R1": value, "scores": scores}
        best[split][scored_weights.RECORDED] = weights
    self._record = self._record | {
      "best": best,
      "last": scores,
      scored_weights.RECORDED: weights,
      "wall_time_seconds": round(wall_time(), 3),
      _PENDING: False,
    }
    remote.publish(setup.workdir)
    score = scores[setup.config.eval.select_on]["t2i"]["R1"]
    self._checkpoints.add_score(step, self._record, score)


def score_splits(
  setup: TrainingSetup,
  evaluator: evaluate.Evaluator,
  writer: MetricsWriter,
  console: Console,
  step: int,
  state: TrainState,
) -> tuple[str, dict[str, evaluate.Scores]]:
  """Scores val and test, writes the scores and shows those of `eval.select_on`.

  An average that is scored beside the weights as trained stands in lines of its own.

  Args:
    setup, evaluator, writer, console: as in `EvaluateAndSave`.
    step: optimiser steps done; 0 before training, which is epoch 0.
    state: the training state after this step.

  Returns:
    The weights, "raw" or "ema", that `eval.weights` chooses, and their scores by split.
  """
  config, epoch = setup.config, setup.epoch_of(step)
  selected_on = config.eval.select_on
  chance = evaluate.chance_levels(setup.splits[selected_on])
  by_weights = {}
  for weights in scored_weights.candidates(config.eval.weights, state.ema is not None):
    is_beside = bool(by_weights)
    params, scores = evaluator.params(state, weights), {}
    for split in (name for name in ("val", "test") if name in setup.splits):
      scores[split], _ = evaluator.score(params, split)
      writer.write(step, epoch, f"{split}_{weights}" if is_beside else split, scores[split])
    title = f"{selected_on}, epoch {epoch}" + ("" if step else " (before training)")
    title += ", average of the weights" if is_beside else ""
    console.evaluation(title, scores[selected_on], chance)
    by_weights[weights] = scores
  chosen = next(iter(by_weights))
  if config.eval.weights == scored_weights.BETTER:
    chosen = max(by_weights, key=lambda weights: by_weights[weights][selected_on]["t2i"]["R1"])
  return chosen, by_weights[chosen]
