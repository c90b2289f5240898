"""Evaluates at the end of epochs and saves checkpoints: the training loop's hook for both."""

from dgia_jax import remote
from dgia_jax.method.train_state import TrainState
from dgia_jax.reporting.console import Console
from dgia_jax.reporting.metrics_writer import MetricsWriter
from dgia_jax.training import evaluate
from dgia_jax.training.checkpoint import Checkpoints
from dgia_jax.training.setup import TrainingSetup
from dgia_jax.training.step_log import StepLog


class EvaluateAndSave:
  """Called after every step.

  Saves at the end of every epoch, after the last step, and every `checkpoint.every_steps` steps.
  Evaluates before saving where an epoch ends that `eval_every_epochs` selects, and the last.
  """

  def __init__(
    self,
    setup: TrainingSetup,
    evaluator: evaluate.Evaluator,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    console: Console,
    log: StepLog,
    record: dict,
  ) -> None:
    """`record`: the record of the checkpoint that training starts from."""
    self._setup, self._evaluator = setup, evaluator
    self._checkpoints, self._log = checkpoints, log
    self._writer, self._console = writer, console
    self._record = record

  def after_step(self, step: int, state: TrainState, is_last: bool) -> None:
    """Evaluates and saves if this step asks for it.

    Args:
      step: optimiser steps done.
      state: the training state after this step.
      is_last: whether the loop ends after this step.

    Raises:
      UserError: the loss is not finite, so the state is not saved.
    """
    config, epoch = self._setup.config, self._setup.epoch_of(step)
    ends_epoch = step % self._setup.steps_per_epoch == 0
    extra = config.checkpoint.every_steps
    if not (ends_epoch or is_last or (extra and step % extra == 0)):
      return
    self._log.flush()
    score = None
    if ends_epoch and (epoch % config.eval_every_epochs == 0 or epoch == config.num_epochs):
      score = self._evaluate(step, state)
    self._record = self._record | {
      "data_position": step,
      "epoch": epoch,
      "wall_time_seconds": round(self._record["wall_time_seconds"] + self._log.seconds(), 3),
    }
    remote.publish(self._setup.workdir)  # the log first: resuming drops lines, but cannot add any
    self._checkpoints.save(state, self._record, score)
    self._log.restart_clock(step)

  def _evaluate(self, step: int, state: TrainState) -> float:
    """Scores val and test, records the best epoch of each, returns the score of `select_on`."""
    setup, epoch = self._setup, self._setup.epoch_of(step)
    scores = score_splits(setup, self._evaluator, self._writer, self._console, step, state)
    best = dict(self._record["best"])
    for split in scores:
      value = scores[split]["t2i"]["R1"]
      # The later of equal scores wins here, as it does when the best checkpoint is chosen.
      if split not in best or value >= best[split]["R1"]:
        best[split] = {"epoch": epoch, "step": step, "R1": value, "scores": scores}
    self._record = self._record | {"best": best, "last": scores}
    return scores[setup.config.eval.select_on]["t2i"]["R1"]


def score_splits(
  setup: TrainingSetup,
  evaluator: evaluate.Evaluator,
  writer: MetricsWriter,
  console: Console,
  step: int,
  state: TrainState,
) -> dict[str, evaluate.Scores]:
  """Scores val and test, writes the scores and shows those of `eval.select_on`.

  Args:
    setup, evaluator, writer, console: as in `EvaluateAndSave`.
    step: optimiser steps done; 0 before training, which is epoch 0.
    state: the training state after this step.

  Returns:
    Scores of the raw weights by split.
  """
  epoch = setup.epoch_of(step)
  scores, averages = {}, {}
  for split in (name for name in ("val", "test") if name in setup.splits):
    scores[split], _ = evaluator.score(state.params, split)
    writer.write(step, epoch, split, scores[split])
    if average := evaluator.score_average(state, split):
      averages[split] = average
      writer.write(step, epoch, f"{split}_ema", average)
  selected_on = setup.config.eval.select_on
  chance = evaluate.chance_levels(setup.splits[selected_on])
  title = f"{selected_on}, epoch {epoch}" + ("" if step else " (before training)")
  console.evaluation(title, scores[selected_on], chance)
  if averages:
    console.evaluation(f"{title}, average of the weights", averages[selected_on], chance)
  return scores
