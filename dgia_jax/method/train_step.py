"""One training step: two views, features, the paper's four losses, new parameters, new bank rows.

A pure function (state, batch) -> (state, output). A batch holds no identity: pairs are related only
as `mine_local` and `mine_global` relate them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from dgia_jax.method import (
  augment,
  caption_exchange,
  confidence_gate,
  ema,
  gradient_cache,
  memory_bank,
  mining,
  random_streams,
  trainable,
)
from dgia_jax.method.global_association import Neighbours, global_association_loss, no_neighbours
from dgia_jax.method.learnable_temperature import temperature_of
from dgia_jax.method.local_association import relation_targets
from dgia_jax.method.losses import itc, masked_mean, similarity_distribution_matching
from dgia_jax.method.mining import Batch, FeaturePair, MineGlobal, MineLocal
from dgia_jax.method.train_state import TrainState
from dgia_jax.method.views import Encode, encode_views, two_views
from dgia_jax.models.pixels import PixelStatistics


class StepOutput(NamedTuple):
  """Results of a step for the log."""

  metrics: dict[str, Float[Array, ""]]
  num_pairs: Int[Array, ""]  # real rows of the batch, which the metrics average over
  index: Int[Array, " B"]  # bank rows of the batch, -1 in padded rows
  local_relations: UInt8[Array, "B _"]  # rows of the relation matrix as packed bits
  neighbours: Neighbours


class Mined(NamedTuple):
  """What the objective hands on to the rest of the step, besides the losses."""

  features: FeaturePair  # of the clean view
  relations: Bool[Array, "B B"]
  neighbours: Neighbours
  neighbour_features: tuple[Float[Array, "B K D"], Float[Array, "B K D"]]  # images, texts


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  encode: Encode,
  mine_local: MineLocal,
  mine_global: MineGlobal,
  optimizer: optax.GradientTransformation,
  select_trained: Callable[[dict], dict],
  config: Any,
  mesh: jax.sharding.Mesh,
  masking: augment.Masking,
  pixel_statistics: PixelStatistics,
  num_patches: int,
  steps_per_epoch: int,
) -> tuple[TrainState, StepOutput]:
  """Takes one step (section 3).

  Args:
    state: of the run before the step. Donate it to `jax.jit`: the bank and the parameters are then
      replaced in place instead of copied.
    batch: see `mining.Batch`.
    encode: (params, pixels, tokens) -> image and text features.
    mine_local, mine_global: how relations are found, see `mining`.
    optimizer: optax transformation.
    select_trained: the parameters -> those that are trained, see `trainable`.
    config: the run's config.
    mesh: the devices that batch, bank and parameters are split over, see `sharding`.
    masking: which ids of a caption are words, and the mask.
    pixel_statistics: normalise the images.
    num_patches: that the image tower cuts an image into, of which `augment.patch_drop_ratio`
      leaves out a share in the distorted view.
    steps_per_epoch: turns the step number into the epoch, counted from 1.

  Returns:
    The state after the step, and what the log needs of it. The loss and the features are those of
    the parameters before the step.
  """
  epoch = state.step // steps_per_epoch + 1
  # Relations need features worth comparing: their losses start at an epoch of their own.
  local_started = epoch >= config.local_association.start_epoch
  global_started = epoch >= config.global_association.start_epoch
  mask = batch["mask"]
  weights = config.loss.weights
  exchange_prob = config.caption_exchange.prob
  targets_of = functools.partial(
    relation_targets, relation_label=config.local_association.relation_label
  )

  def objective(features, trained):
    """L = L_itc + L_local + L_global + L_consistency, each with its weight."""
    clean, distorted = features[0], features[-1]
    tau = temperature_of(trained, config.loss.temperature)
    scaled = dict(temperature=tau, epsilon=config.loss.epsilon, row_mask=mask)
    matching = functools.partial(similarity_distribution_matching, **scaled)
    relations = mine_local(clean, batch)
    neighbours = no_neighbours(mask.shape[0], config.global_association.k)
    if mining.searches_bank(weights["global"], exchange_prob):
      neighbours = mine_global(state.bank, clean, batch)
    neighbour_features = memory_bank.gather(
      (state.bank.image, state.bank.text), neighbours.rows, mesh=mesh
    )

    l_itc = itc(*clean, tau, config.loss.itc_reduction, mask, config.loss.label_smoothing)
    l_local = matching(*clean, targets_of(relations))
    l_global = global_association_loss(
      *clean, neighbours, *neighbour_features,
      loss_over=config.global_association.loss_over, **scaled,
    )  # fmt: skip
    l_consistency = matching(*distorted, targets_of(mine_local(distorted, batch)))

    losses = {
      "itc": l_itc,
      "local": jnp.where(local_started, l_local, 0.0),
      "global": jnp.where(global_started, l_global, 0.0),
      "consistency": jnp.where(local_started, l_consistency, 0.0),
    }
    # A weight of 0 costs nothing: what is not used, the compiler drops.
    losses = {name: loss if weights[name] else jnp.zeros(()) for name, loss in losses.items()}
    total = sum(weights[name] * loss for name, loss in losses.items())
    return total, (losses, total, tau, Mined(clean, relations, neighbours, neighbour_features))

  key = random_streams.of_step(config.seed, state.step)
  tokens = batch["tokens"]
  if exchange_prob:
    exchange_key = random_streams.stream(key, random_streams.CAPTION_EXCHANGE)
    tokens = caption_exchange.exchanged_tokens(
      state.pairs, batch, exchange_key, exchange_prob, mesh=mesh
    )
  views = two_views(
    key, batch["image"], tokens, settings=config.augment, masking=masking,
    pixel_statistics=pixel_statistics, with_distorted=bool(weights["consistency"]),
  )  # fmt: skip
  kept_patches = augment.kept_patches(
    random_streams.stream(key, random_streams.KEPT_PATCHES),
    mask.shape[0], num_patches, config.augment.patch_drop_ratio,
  )  # fmt: skip
  distorted_needed = local_started if config.local_association.start_epoch > 1 else None

  def encode_inputs(trained, inputs):
    params = trainable.merge(state.params, trained)
    return encode_views(encode, params, *inputs, distorted_needed)

  trained = select_trained(state.params)
  gradient, (losses, total, tau, mined) = gradient_cache.gradient_of(
    objective, encode_inputs, trained, (*views, kept_patches),
    parts=config.gradient_accumulation, mesh=mesh,
  )  # fmt: skip
  updates, opt_state = optimizer.update(gradient, state.opt_state, trained)

  confidence = confidence_gate.confidence(
    config.bank.gate, state.bank, batch, mined.features, mined.neighbours,
    mined.neighbour_features, mesh=mesh, block_rows=config.bank.block_rows,
  )  # fmt: skip
  rate = jnp.where(epoch == 1, 1.0, config.bank.update_rate * confidence)
  # Features without a finite loss are kept out. That the update waits for the loss also tells the
  # compiler that all reads are over, so it writes in place; otherwise it copies the whole bank.
  row_mask = mask & jnp.isfinite(total)
  bank = memory_bank.update(
    state.bank, batch["index"], batch["image_index"], *mined.features, rate,
    mesh=mesh, confidence=confidence, row_mask=row_mask,
  )  # fmt: skip

  relations = mined.relations & ~jnp.eye(mask.shape[0], dtype=bool) & local_started
  valid = mined.neighbours.valid & mask[:, None] & global_started
  neighbours = mined.neighbours._replace(valid=valid)
  pairs = state.pairs
  if exchange_prob:
    pairs = caption_exchange.remember(pairs, batch, neighbours, mesh=mesh, row_mask=row_mask)
  metrics = {f"loss_{name}": loss for name, loss in losses.items()}
  metrics |= {"loss": total, "gradient_norm": optax.global_norm(gradient)}
  if config.loss.learnable_temperature:
    metrics["temperature"] = tau
  if config.bank.gate != "off":
    metrics["anchor_confidence"] = masked_mean(confidence, mask)
  updated = optax.apply_updates(trained, updates)
  if config.ema.initial_share:
    average = ema.update_with_initial(state.ema, trained, updated, config.ema.initial_share)
  else:
    average = ema.update(state.ema, updated, config.ema.decay, state.step)
  next_state = TrainState(
    step=state.step + 1,
    params=trainable.merge(state.params, updated),
    opt_state=opt_state,
    bank=bank,
    ema=average,
    pairs=pairs,
  )
  return next_state, _output(batch, metrics, relations, neighbours)


def _output(
  batch: Batch,
  metrics: dict[str, Float[Array, ""]],
  relations: Bool[Array, "B B"],
  neighbours: Neighbours,
) -> StepOutput:
  """What the log needs of a step; adds the numbers of relations per pair to its metrics."""
  num_pairs = jnp.sum(batch["mask"])
  per_pair = lambda related: jnp.sum(related) / jnp.maximum(num_pairs, 1)
  metrics = metrics | {
    "local_relations": per_pair(relations),
    "global_relations": per_pair(neighbours.valid),
  }
  packed = jnp.packbits(relations, axis=1)
  return StepOutput(metrics, num_pairs, batch["index"], packed, neighbours)
