"""Supplement Table 2: how retrieval suffers when words of the queries are masked.

Every word of a test caption becomes the mask token with the given probability, independently (the
paper does not say how it masks), and the gallery is ranked again. A ratio's scores are the mean of
several maskings, each drawn from its own key.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dgia_jax import sharding
from dgia_jax.method import augment
from dgia_jax.training import evaluate, retrieval_metrics
from experiments.paper import paper_numbers
from experiments.paper.measures import finished

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
MASKINGS = 5


def measure(config, folder, splits, choice, ratios=RATIOS, maskings=MASKINGS):
  """Scores of a run on test captions with masked words.

  Args:
    config, folder, splits, choice: as `finished.open_run`.
    ratios: probabilities of a word to be masked.
    maskings: draws per ratio.

  Returns:
    {"step", "maskings", "scores": {ratio as text: {"R1", .., "mINP"}}}, percent.
  """
  parts, params, step = finished.open_run(config, folder, splits, choice)
  pairs = splits["test"]
  evaluator = evaluate.Evaluator(parts)
  images_MxD = evaluator.embed_images(params, pairs)
  tokens_NxL = parts.tokenizer.encode(pairs.captions)
  ranked = functools.partial(
    retrieval_metrics.retrieval_metrics_from_features,
    layouts=(sharding.batch(parts.mesh), sharding.replicated(parts.mesh)),
  )

  def scores_of(ratio, masking):
    key = jax.random.fold_in(jax.random.key(masking), round(1000 * ratio))
    masked_NxL = mask(key, tokens_NxL, parts.tokenizer.mask_id, ratio)
    texts_NxD = evaluator.embed_tokens(params, masked_NxL)
    return ranked(texts_NxD, images_MxD, pairs.person_of_pair_N, pairs.person_of_image_M)

  scores = {}
  for ratio in ratios:
    draws = [scores_of(ratio, masking) for masking in range(maskings)]
    scores[str(ratio)] = {
      name: float(np.mean([draw[name] for draw in draws])) for name in paper_numbers.METRICS
    }
  return {"step": step, "maskings": maskings, "scores": scores}


def mask(key, tokens_NxL, mask_id, ratio):
  """int32 (N, L): each word of encoded captions masked with probability `ratio`."""
  masked = augment.mask_tokens(
    key, jnp.asarray(tokens_NxL), mask_id=mask_id, ratio=ratio, mask_first=False
  )
  return np.asarray(masked)
