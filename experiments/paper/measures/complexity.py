"""Supplement Table 3: parameters, FLOPs, and the time that each part of a test takes.

FLOPs are those of the towers for one image and one text, in multiply-adds (paper: 20.25 G);
`dgia_jax.dry_run.flops` counts a multiply-add as two operations. Times are wall times on the
current machine, without compilation: reading and decoding all test images, embedding images and
captions from memory, and ranking the gallery for every caption, including all scores.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from dgia_jax.data import batches as batches_lib
from dgia_jax.data.pairs import PairTable
from dgia_jax.dry_run import flops
from dgia_jax.models import dual_encoder
from dgia_jax.training import evaluate
from experiments.paper.measures import finished

Result = TypeVar("Result")


def measure(
  config: ConfigDict, folder: pathlib.Path, splits: finished.Splits, choice: str
) -> dict[str, Any]:
  """Sizes and times of a run.

  Returns:
    {"step", "device", "queries", "gallery", "params_M", "flops_G" (multiply-adds), "load_s",
    "embed_s", "rank_s"}.
  """
  # Images are embedded from memory: worker processes would start inside the timed call, and every
  # image would be sent to them.
  in_process = config.copy_and_resolve_references()
  in_process.dataset.workers = 0
  setup, params, step = finished.open_run(in_process, folder, splits, choice)
  pairs = splits["test"]
  evaluator = evaluate.Evaluator(setup)

  images, load_s = _timed(lambda: _load(pairs, config))
  in_memory = dataclasses.replace(pairs, images=images)
  embed = lambda: evaluator.embed(params, in_memory)
  embed()  # compiles
  (images_MxD, texts_NxD), embed_s = _timed(embed)
  rank = lambda: evaluator.rank(
    texts_NxD, images_MxD, pairs.person_of_pair_N, pairs.person_of_image_M
  )
  rank()
  _, rank_s = _timed(rank)
  size = dual_encoder.SIZES[config.model.name]
  forward = flops.forward_flops(
    size, tuple(config.dataset.image_size), config.tokenizer.context_length
  )
  return {
    "step": step,
    "device": evaluate.device_description(),
    "queries": pairs.num_pairs,
    "gallery": pairs.num_images,
    "params_M": sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6,
    "flops_G": sum(forward.values()) / 2 / 1e9,
    "load_s": load_s,
    "embed_s": embed_s,
    "rank_s": rank_s,
  }


def _load(pairs: PairTable, config: ConfigDict) -> np.ndarray:
  """All images of a split as one uint8 (M, H, W, 3) array."""
  batches = batches_lib.image_batches(
    pairs, batch_size=config.eval.batch_size, workers=config.dataset.workers
  )
  return np.concatenate([batch["image"] for batch in batches])[: pairs.num_images]


def _timed(function: Callable[[], Result]) -> tuple[Result, float]:
  """The result of a function and its run time in seconds."""
  start = time.perf_counter()
  result = function()
  return result, time.perf_counter() - start
