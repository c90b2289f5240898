"""Supplement Table 2: scores when words of the queries are masked.

Each word of a test caption is replaced with the mask token independently with the given probability
(the paper does not say how it masks). The scores of a ratio are means over several maskings with
different random keys.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from dgia_jax.method import augment
from dgia_jax.training import evaluate
from dgia_jax.training import setup as setup_lib
from experiments.paper import paper_numbers
from experiments.paper.measures import finished

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
MASKINGS = 5


def measure(
  config: ConfigDict,
  folder: pathlib.Path,
  splits: finished.Splits,
  choice: str,
  ratios: Sequence[float] = RATIOS,
  maskings: int = MASKINGS,
) -> dict[str, Any]:
  """Scores of a run on test captions with masked words, in percent.

  Args:
    config, folder, splits, choice: as `finished.open_run`.
    ratios: probabilities of masking a word.
    maskings: number of maskings per ratio.

  Returns:
    {"step", "maskings", "scores": {ratio as text: {"R1", .., "mINP"}}}.
  """
  setup, params, step = finished.open_run(config, folder, splits, choice)
  pairs = splits["test"]
  evaluator = evaluate.Evaluator(setup)
  images_MxD = evaluator.embed_images(params, pairs)
  tokens_NxL = setup.tokenizer.encode(pairs.captions)

  def scores_of(ratio: float, masking: int) -> dict[str, float]:
    key = jax.random.fold_in(jax.random.key(masking), round(1000 * ratio))
    masked_NxL = mask(key, tokens_NxL, setup_lib.masking(setup.tokenizer), ratio)
    texts_NxD = evaluator.embed_tokens(params, masked_NxL)
    return evaluator.rank(texts_NxD, images_MxD, pairs.person_of_pair_N, pairs.person_of_image_M)

  scores = {}
  for ratio in ratios:
    draws = [scores_of(ratio, masking) for masking in range(maskings)]
    scores[str(ratio)] = {
      name: float(np.mean([draw[name] for draw in draws])) for name in paper_numbers.METRICS
    }
  return {"step": step, "maskings": maskings, "scores": scores}


def mask(
  key: jax.Array, tokens_NxL: Int[np.ndarray, "N L"], masking: augment.Masking, ratio: float
) -> Int[np.ndarray, "N L"]:
  """Masks each word of encoded captions with probability `ratio`."""
  masked = augment.mask_tokens(
    key, jnp.asarray(tokens_NxL), masking=masking, ratio=ratio, mask_first=False
  )
  return np.asarray(masked)
