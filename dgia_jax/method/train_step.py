"""One training step: two views, features, the paper's four losses, new parameters, new bank rows.

A pure function (state, batch) -> (state, output). A batch holds images, tokens, the pairs' bank
rows, their image numbers and a mask of real rows. It holds no identity: pairs are related only as
`mine_local` and `mine_global` relate them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, UInt8

from dgia_jax.method import (
  augment,
  caption_exchange,
  confidence_gate,
  ema,
  gradient_cache,
  memory_bank,
  trainable,
)
from dgia_jax.method.global_association import Neighbours, global_association_loss, no_neighbours
from dgia_jax.method.learnable_temperature import temperature_of
from dgia_jax.method.local_association import relation_targets
from dgia_jax.method.losses import itc, masked_mean, similarity_distribution_matching
from dgia_jax.method.mining import Batch, MineGlobal, MineLocal
from dgia_jax.method.train_state import TrainState
from dgia_jax.method.views import Encode, encode_views, two_views
from dgia_jax.models.pixels import PixelStatistics

_PATCHES = 4  # of a step's random key: the draws of the patches that are left out


class StepOutput(NamedTuple):
  """Results of a step for the log."""

  metrics: dict[str, Float[Array, ""]]
  num_pairs: Int[Array, ""]  # real rows of the batch, which the metrics average over
  index: Int[Array, " B"]  # bank rows of the batch, -1 in padded rows
  local_relations: UInt8[Array, "B _"]  # rows of the relation matrix as packed bits
  neighbours: Neighbours


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
    batch: "image" (B, H, W, 3) uint8, "tokens" (B, L), "index" (B,) bank rows, "image_index" (B,),
      "mask" (B,); rows whose mask is False change nothing.
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
  mask, weights = batch["mask"], config.loss.weights
  exchange_prob = config.caption_exchange.prob
  targets_of = functools.partial(
    relation_targets, relation_label=config.local_association.relation_label
  )

  def objective(views, trained):
    """L = L_itc + L_local + L_global + L_consistency (weighted; a weight of 0 costs nothing)."""
    clean, distorted = views[0], views[-1]
    tau = temperature_of(trained, config.loss.temperature)
    scaled = dict(temperature=tau, epsilon=config.loss.epsilon, row_mask=mask)
    matching = functools.partial(similarity_distribution_matching, **scaled)
    relations = mine_local(clean, batch)
    neighbours = no_neighbours(mask.shape[0], config.global_association.k)
    if weights["global"] or exchange_prob:
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

    values = {
      "itc": l_itc,
      "local": jnp.where(local_started, l_local, 0.0),
      "global": jnp.where(global_started, l_global, 0.0),
      "consistency": jnp.where(local_started, l_consistency, 0.0),
    }
    # What no weight asks for is not used, so the compiler drops it.
    values = {name: value if weights[name] else jnp.zeros(()) for name, value in values.items()}
    total = sum(weights[name] * value for name, value in values.items())
    return total, (values, total, tau, clean, relations, neighbours, neighbour_features)

  key, tokens = jax.random.fold_in(jax.random.key(config.seed), state.step), batch["tokens"]
  if exchange_prob:
    exchange_key = jax.random.fold_in(key, caption_exchange.DRAW)
    tokens = caption_exchange.exchanged_tokens(
      state.pairs, batch, exchange_key, exchange_prob, mesh=mesh
    )
  views = two_views(
    key, batch["image"], tokens, settings=config.augment, masking=masking,
    pixel_statistics=pixel_statistics, distorted=bool(weights["consistency"]),
  )  # fmt: skip
  kept = augment.kept_patches(
    jax.random.fold_in(key, _PATCHES), mask.shape[0], num_patches, config.augment.patch_drop_ratio
  )
  needed = local_started if config.local_association.start_epoch > 1 else None
  trained = select_trained(state.params)
  gradient, auxiliary = gradient_cache.gradient_of(
    objective,
    lambda part, views: encode_views(encode, trainable.merge(state.params, part), *views, needed),
    trained, (*views, kept), parts=config.gradient_accumulation, mesh=mesh,
  )  # fmt: skip
  values, total, tau, clean, relations, neighbours, neighbour_features = auxiliary
  updates, opt_state = optimizer.update(gradient, state.opt_state, trained)
  confidence = confidence_gate.confidence(
    config.bank.gate, state.bank, batch, clean, neighbours, neighbour_features, mesh=mesh,
    block_rows=config.bank.block_rows,
  )  # fmt: skip
  rate = config.bank.update_rate * confidence
  # Features without a finite loss are kept out. That the update waits for the loss also tells the
  # compiler that all reads are over, so it writes in place; otherwise it copies the whole bank.
  row_mask = mask & jnp.isfinite(total)
  bank = memory_bank.update(
    state.bank, batch["index"], batch["image_index"], *clean, jnp.where(epoch == 1, 1.0, rate),
    mesh=mesh, confidence=confidence, row_mask=row_mask,
  )  # fmt: skip
  relations &= ~jnp.eye(mask.shape[0], dtype=bool) & local_started
  neighbours = neighbours._replace(valid=neighbours.valid & mask[:, None] & global_started)
  pairs = state.pairs
  if exchange_prob:
    pairs = caption_exchange.remember(pairs, batch, neighbours, mesh=mesh, row_mask=row_mask)
  num_pairs = jnp.sum(mask)
  metrics = {f"loss_{name}": value for name, value in values.items()} | {
    "loss": total,
    "gradient_norm": optax.global_norm(gradient),
    "local_relations": jnp.sum(relations) / jnp.maximum(num_pairs, 1),
    "global_relations": jnp.sum(neighbours.valid) / jnp.maximum(num_pairs, 1),
  }
  metrics |= {"temperature": tau} if config.loss.learnable_temperature else {}
  if config.bank.gate != "off":
    metrics["anchor_confidence"] = masked_mean(confidence, mask)
  trained = optax.apply_updates(trained, updates)
  next_state = TrainState(
    step=state.step + 1,
    params=trainable.merge(state.params, trained),
    opt_state=opt_state,
    bank=bank,
    ema=ema.update(state.ema, trained, config.ema.decay, state.step),
    pairs=pairs,
  )
  packed = jnp.packbits(relations, axis=1)
  return next_state, StepOutput(metrics, num_pairs, batch["index"], packed, neighbours)
