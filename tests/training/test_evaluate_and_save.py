"""Which weights an evaluation during the training scores, and which it chooses."""

import io

import ml_collections
import numpy as np
import pytest

from dgia_jax.data.pairs import PairTable
from dgia_jax.method import scored_weights
from dgia_jax.method.train_state import TrainState
from dgia_jax.reporting.console import Console
from dgia_jax.reporting.metrics_writer import MetricsWriter
from dgia_jax.training import evaluate, evaluate_and_save
from dgia_jax.training.setup import TrainingSetup
from tests.helpers.stand_in import stand_in

PAIRS = PairTable(
  images=np.zeros((2, 4, 2, 3), np.uint8),
  captions=["red coat", "black hat"],
  image_of_pair_N=np.arange(2),
  person_of_image_M=np.arange(2),
)


def score_splits(setting, scores, has_average=True, select_on="val"):
  """Results of an evaluation whose R@1 is scores[weights][split], and the lines that it logs."""
  metrics = lambda value: dict.fromkeys(("R1", "R5", "R10", "mAP", "mINP"), value)
  by_direction = lambda value: {"t2i": metrics(value), "i2t": metrics(1.0)}
  evaluator = stand_in(
    evaluate.Evaluator,
    params=lambda state, weights: weights,
    score=lambda weights, split: (by_direction(scores[weights][split]), None),
  )
  config = ml_collections.ConfigDict({"eval": {"weights": setting, "select_on": select_on}})
  setup = stand_in(
    TrainingSetup,
    config=config,
    splits={"val": PAIRS, "test": PAIRS},
    epoch_of=lambda step: step,
  )
  lines, output = {}, io.StringIO()
  writer = stand_in(
    MetricsWriter,
    write=lambda step, epoch, split, scores: lines.update({split: scores["t2i"]["R1"]}),
  )
  state = stand_in(TrainState, ema={} if has_average else None)
  weights, chosen = evaluate_and_save.score_splits(
    setup, evaluator, writer, Console(file=output), 3, state
  )
  return weights, {split: chosen[split]["t2i"]["R1"] for split in chosen}, lines, output.getvalue()


RAW_IS_BETTER_ON_VAL = {"raw": {"val": 50.0, "test": 20.0}, "ema": {"val": 40.0, "test": 30.0}}


@pytest.mark.parametrize(
  "setting, select_on, weights",
  [
    ("raw", "val", "raw"),
    ("ema", "val", "ema"),
    ("better", "val", "raw"),
    ("better", "test", "ema"),
  ],
)
def test_the_setting_chooses_the_weights(setting, select_on, weights):
  scores = RAW_IS_BETTER_ON_VAL
  chosen, found, lines, output = score_splits(setting, scores, select_on=select_on)
  assert (chosen, found) == (weights, scores[weights])
  if setting == "ema":  # scored alone, in the place of the weights as trained
    assert lines == scores["ema"] and "average" not in output
  else:
    assert lines == scores["raw"] | {f"{split}_ema": scores["ema"][split] for split in found}
    assert f"{select_on}, epoch 3, average of the weights" in output


def test_of_equal_scores_the_weights_as_trained_win():
  equal = {"val": 50.0, "test": 20.0}
  assert score_splits("better", {"raw": equal, "ema": equal})[0] == "raw"


def test_without_an_average_the_weights_as_trained_are_scored_alone():
  chosen, found, lines, _ = score_splits("raw", RAW_IS_BETTER_ON_VAL, has_average=False)
  assert chosen == "raw" and lines == found == RAW_IS_BETTER_ON_VAL["raw"]


def test_the_record_of_a_checkpoint_settles_what_better_means():
  assert scored_weights.chosen("better", {"weights": "ema"}) == "ema"
  assert scored_weights.chosen("better", {}) == "raw", "no evaluation so far"
  for setting in scored_weights.KINDS:  # as configured, whatever an evaluation found
    assert scored_weights.chosen(setting, {"weights": "ema"}) == setting
