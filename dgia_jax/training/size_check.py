"""Refuses sizes that cannot fit into memory, before anything is allocated.

All estimates are lower bounds, so that no run that fits is refused.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import psutil

from dgia_jax import config as config_lib
from dgia_jax import sharding
from dgia_jax.errors import UserError
from dgia_jax.method import augment, memory_bank, mining, train_state, trainable
from dgia_jax.training import packing_plan
from dgia_jax.training.setup import TrainingSetup

# Values that one block stores per token and unit of width for the backward pass, at least: its
# input, queries, keys, values and half of what the MLP stores. The last block computes most of them
# for one token alone and stores its input, keys and values. With remat only the input is stored.
STORED_PER_BLOCK = 6
STORED_OF_LAST_BLOCK = 3


@dataclasses.dataclass(frozen=True)
class Need:
  """Memory that training needs on every device."""

  name: str
  num_bytes: float
  advice: str  # the settings that change it


def check(setup: TrainingSetup) -> None:
  """Compares what training needs at least with the memory that is available.

  Raises:
    UserError: the run cannot fit, or k exceeds the rows of the memory bank.
  """
  _check_candidates(setup)
  available = available_bytes(setup.mesh.devices.flat)
  if available is None:
    return
  needs = estimate(setup)
  total = sum(need.num_bytes for need in needs)
  if total > available:
    largest = max(needs, key=lambda need: need.num_bytes)
    raise UserError(
      f"training needs at least {_gib(total)} on each device, and {_gib(available)} are available;"
      f" the largest part, {_gib(largest.num_bytes)}, is {largest.name}: {largest.advice}"
    )


def estimate(setup: TrainingSetup) -> list[Need]:
  """The memory that a training step needs on every device, at least, by purpose."""
  config, mesh = setup.config, setup.mesh
  shards = sharding.batch_shards(mesh)
  state, trained = setup.abstract_state, _abstract_trained(setup)
  layouts = train_state.layout(mesh, state)
  num_views = 2 if config.loss.weights["consistency"] else 1
  height, width = config.dataset.image_size
  rows = config.batch_size * num_views
  itemsize = jnp.dtype(config.model.dtype).itemsize  # normalised images may take this dtype at once
  extended = config.batch_size
  if config.loss.weights["global"]:
    extended *= 1 + config.global_association.k
  loss_rows = extended if config.global_association.loss_over == "all" else config.batch_size
  return [
    Need(
      "parameters, gradients and optimiser state",
      sharding.device_bytes(state.params, layouts.params)
      + sharding.device_bytes(trained, sharding.parameters(mesh, trained))  # gradients
      + sharding.device_bytes((state.opt_state, state.ema), (layouts.opt_state, layouts.ema)),
      "choose a smaller config.model.name, or raise config.mesh.fsdp on several devices",
    ),
    Need(
      f"the memory bank of {setup.train_pairs.num_pairs:,} pairs",
      sharding.device_bytes((state.bank, state.pairs), (layouts.bank, layouts.pairs)),
      "use more devices, which share it",
    ),
    Need(
      f"the {rows:,} images of a batch",
      itemsize * 3 * rows * height * width / shards,
      "lower config.batch_size or config.dataset.image_size",
    ),
    Need(
      f"the {loss_rows:,} x {extended:,} similarities of the batch and its mined neighbours",
      4 * loss_rows * extended / shards,
      "lower config.batch_size or config.global_association.k",
    ),
    Need(
      "the activations of the encoders",
      _activation_bytes(setup, num_views)
      * config.batch_size
      / (shards * config.gradient_accumulation),
      "lower config.batch_size, raise config.gradient_accumulation or set config.model.remat=True",
    ),
  ]


def num_trained(setup: TrainingSetup) -> int:
  """The number of parameters that are trained."""
  return sum(leaf.size for leaf in jax.tree.leaves(_abstract_trained(setup)))


def _abstract_trained(setup: TrainingSetup) -> Any:
  """The trained parameters as `jax.ShapeDtypeStruct`s."""
  return jax.eval_shape(setup.select_trained, setup.abstract_state.params)


def available_bytes(devices: Iterable[Any]) -> float | None:
  """Memory that is available on each of this process's devices; None if it is unknown."""
  own = [device for device in devices if device.process_index == jax.process_index()]
  if not own:
    return None
  stats = own[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  if own[0].platform == "cpu":
    return psutil.virtual_memory().available / len(own)
  return None


def notices(setup: TrainingSetup) -> list[str]:
  """Sentences about settings that the dataset is too small for."""
  config, num_pairs = setup.config, setup.train_pairs.num_pairs
  sentences = []
  if config.batch_size > num_pairs:
    sentences.append(
      f"config.batch_size={config.batch_size} exceeds the {num_pairs:,} training pairs: every batch"
      f" contains all of them, and {config.batch_size - num_pairs:,} padded rows that do not count"
    )
  k = config.global_association.k
  if config.loss.weights["global"] and k > num_pairs - 1:
    sentences.append(
      f"config.global_association.k={k} exceeds the {num_pairs - 1:,} other training pairs: an"
      " anchor keeps fewer neighbours"
    )
  return sentences


def _check_candidates(setup: TrainingSetup) -> None:
  settings = setup.config.global_association
  k = settings.k
  bank_rows = memory_bank.padded_rows(setup.train_pairs.num_pairs)
  if mining.candidates_per_anchor(settings, setup.same_image_rows) > bank_rows:
    raise UserError(
      f"config.global_association.k={k}: the memory bank has only {bank_rows:,} rows; lower k"
    )


def _activation_bytes(setup: TrainingSetup, num_views: int) -> int:
  """Bytes that the views of one pair leave for the backward pass.

  The distorted image may be read in part. Captions that are packed count for nothing: how many
  tokens are then computed is known only after all are encoded.
  """
  config, size = setup.config, setup.size
  patches = size.num_patches(config.dataset.image_size)
  distorted = augment.num_kept_patches(patches, config.augment.patch_drop_ratio)
  image_tokens = patches + (num_views - 1) * distorted
  if not size.family.is_siglip:
    image_tokens += num_views  # the class token of each view
  text_tokens = (
    0 if packing_plan.is_packable(setup) else num_views * config.tokenizer.context_length
  )
  values, frozen = 0, config_lib.frozen_blocks(config)
  for name, tokens in (("image", image_tokens), ("text", text_tokens)):
    if frozen[name] != trainable.WHOLE_TOWER:
      tower = getattr(size, name)
      values += tokens * tower.width * _stored(tower.depth - frozen[name], config.model.remat)
  if not config.model.remat:
    values /= setup.mesh.shape["tensor"]
  return int(values * jnp.dtype(config.model.dtype).itemsize)


def _stored(num_blocks: int, remat: bool) -> int:
  """Values that a tower's trained blocks store per token and unit of width, at least."""
  if remat or not num_blocks:
    return num_blocks
  return (num_blocks - 1) * STORED_PER_BLOCK + STORED_OF_LAST_BLOCK


def _gib(num_bytes: float) -> str:
  return f"{num_bytes / 2**30:,.1f} GiB"
