"""The benchmark's workload: a config's training step on made-up arrays, equal for all.

Random data suffice, because speed does not depend on image content. Two things matter: the number
of mined relations, so the banks hold neighbours of every pair of the batch, and the length of
captions, which is distributed as in the benchmarks of the paper.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from dgia_jax.data import batches as batches_lib
from dgia_jax.errors import UserError

# The PyTorch implementation supports the released settings only.
_RELEASED = {
  "gradient_accumulation": 1,
  "loss.itc_reduction": "mean",
  "local_association.modality": "both",
  "global_association.anchor": "image",
  "global_association.loss_over": "all",
  "global_association.exclude": "top1",
  "global_association.exclude_same_image": False,
  "bank.gate": "off",
  "optimizer.second_moment": "float32",
}
# Tokens of a caption, start and end included: log-normal, and at least _FEWEST_TOKENS.
MEAN_TOKENS, STD_TOKENS = 28, 9
_FEWEST_TOKENS = 6
TOLERANCE = 1e-3  # largest relative difference between implementations
PRODUCT_SIDE = 2048  # of the square matrices whose product shows the speed of the machine


class Task(NamedTuple):
  """What the process of an implementation prepares and measures."""

  part: str  # "step", "tower/image", ..
  way: str = ""  # how it is computed, where an implementation has several ways
  batch_size: int = 0  # pairs of a step; 0 means that of the config


@dataclasses.dataclass(frozen=True)
class Workload:
  """A training step to be timed; can be pickled and sent to another process.

  Attributes:
    fields: a resolved config as a plain dict.
    num_pairs: N, rows of the banks.
    association_batch: batch size of the association that is timed alone.
  """

  fields: dict
  num_pairs: int
  association_batch: int

  @property
  def config(self) -> ml_collections.ConfigDict:
    """A new copy of the config."""
    return ml_collections.ConfigDict(self.fields)

  def replace(self, **fields: Any) -> "Workload":
    """A copy with other fields of the config: `batch_size=64`, `model__remat=True`."""
    config = self.config
    config.update_from_flattened_dict(
      {name.replace("__", "."): value for name, value in fields.items()}
    )
    return dataclasses.replace(self, fields=config.to_dict())

  @property
  def epoch(self) -> int:
    """The first epoch, from 1, in which all losses run."""
    config = self.config
    return max(config.local_association.start_epoch, config.global_association.start_epoch)

  @property
  def mask_id(self) -> int:
    """Token id of the mask: the third from the end, as in our tokenizer."""
    return self.config.tokenizer.vocab_size - 3

  @property
  def steps_per_epoch(self) -> int:
    """Batches per epoch."""
    return -(-self.num_pairs // self.config.batch_size)


def check(workload: Workload) -> None:
  """Raises UserError for a config that not every implementation can compute."""
  flat = ml_collections.ConfigDict(workload.fields)
  for field, released in _RELEASED.items():
    value = flat
    for name in field.split("."):
      value = value[name]
    if value != released:
      raise UserError(f"config.{field}={value!r}: the benchmark compares {released!r} only; set it")
  sizes = {"config.batch_size": flat.batch_size, "association_batch": workload.association_batch}
  for name, size in sizes.items():
    if size > workload.num_pairs:
      raise UserError(f"{name}={size} is more than --num_pairs={workload.num_pairs}; lower it")


def batch(workload: Workload, size: int) -> dict[str, np.ndarray]:
  """The first `size` pairs of the run's first epoch, as the input pipeline would yield them.

  Returns:
    {"image": (B, H, W, 3) uint8, "tokens": (B, L) int32, "index": (B,) int32, "image_index": (B,)
    int32, "mask": (B,) bool}
  """
  config = workload.config
  index = batches_lib.epoch_order(workload.num_pairs, config.seed, epoch=0)[:size]
  shape = (size, *config.dataset.image_size, 3)
  return {
    "image": np.random.default_rng(0).integers(0, 256, shape, np.uint8),
    "tokens": captions(workload)[index],
    "index": index,
    "image_index": index // 2,
    "mask": np.ones(size, bool),
  }


def captions(workload: Workload) -> Int[np.ndarray, "N L"]:
  """Encoded captions of all pairs: random words between start and end token, padded with 0."""
  settings = workload.config.tokenizer
  return made_up_captions(workload.num_pairs, settings.context_length, settings.vocab_size)


@functools.cache
def made_up_captions(
  num_captions: int, context_length: int, vocab_size: int
) -> Int[np.ndarray, "N L"]:
  """As `captions`, of a given number and size."""
  random = np.random.default_rng(0)
  variance = math.log1p((STD_TOKENS / MEAN_TOKENS) ** 2)  # of the logarithm
  length_N = random.lognormal(math.log(MEAN_TOKENS) - variance / 2, variance**0.5, num_captions)
  length_N = np.clip(np.rint(length_N).astype(int), _FEWEST_TOKENS, context_length)
  words_NxL = random.integers(1, vocab_size - 3, (num_captions, context_length), np.int32)
  place_L = np.arange(context_length)
  tokens_NxL = np.where(place_L < length_N[:, None] - 1, words_NxL, 0)
  tokens_NxL[:, 0] = vocab_size - 2
  tokens_NxL[np.arange(num_captions), length_N - 1] = vocab_size - 1
  return tokens_NxL


def features(size: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Unnormalised image and text features (B, D); some pairs of the batch are similar."""
  random = np.random.default_rng(seed)
  person = random.integers(0, max(size // 2, 1), size)
  noisy = lambda: _around(random.normal(size=(size, dim))[person], random, 0.3)
  return noisy(), noisy()


def bank(
  features_BxD: Float[Any, "B D"], num_pairs: int, seed: int = 0
) -> Float[np.ndarray, "N D"]:
  """Bank rows around the batch's features, at cosines from about 0.5 to 0.95: (N, D) float32.

  The features may also be a tensor of PyTorch in main memory.
  """
  random = np.random.default_rng(seed)
  chosen = np.arange(num_pairs) % len(features_BxD)
  spread = random.uniform(0.3, 1.7, (num_pairs, 1)).astype(np.float32)
  return _around(np.asarray(features_BxD, np.float32)[chosen], random, spread)


def _around(rows, random, spread):
  """Rows with noise of `spread` times their length."""
  rows = np.asarray(rows, np.float32)
  noise = random.standard_normal(rows.shape, np.float32) / np.float32(rows.shape[1] ** 0.5)
  return rows + spread * np.linalg.norm(rows, axis=1, keepdims=True) * noise
