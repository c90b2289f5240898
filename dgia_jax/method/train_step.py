"""One step of training: two views, features, relations, the paper's four losses, new parameters.

A pure function (state, batch) -> (state, report). The batch holds images, tokens, the pairs' bank
rows, the numbers of their images and a mask of real rows. It holds no identity, and nothing here
could read one: the only source of "same person" is what `association` mines.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dgia_jax import sharding
from dgia_jax.method import association, augment, gradient_cache, losses, memory_bank, train_state
from dgia_jax.models import pixels as pixels_lib


class Report(NamedTuple):
  """What a step tells the log."""

  metrics: dict  # name -> scalar float32
  index: jax.Array  # (B,) int32 bank rows of the batch, -1 in padded rows
  local_relations: jax.Array  # (B, ceil(B / 8)) uint8, rows of the relation matrix as packed bits
  neighbours: association.Neighbours  # (B, K) mined bank rows


def two_views(key, batch, config, mask_id):
  """The clean and the distorted view of every pair, side by side (section 3.4).

  Args:
    key: random key of the step.
    batch: {"image": (B, H, W, 3) uint8, "tokens": (B, L) int32, ...}.
    config: the run's config; reads `augment`.
    mask_id: id of the mask token.

  Returns:
    Pixels (B, V, H, W, 3) float32 and tokens (B, V, L) int32, with V = 1 when the consistency loss
    is off and 2 otherwise.
  """
  pixels, tokens = [pixels_lib.normalize_pixels(batch["image"])], [batch["tokens"]]
  if config.loss.weights["consistency"]:
    image_key, text_key = jax.random.split(key)
    settings = config.augment
    pixels.append(
      augment.distort_images(
        image_key,
        batch["image"],
        flip_prob=settings.flip_prob,
        padding=settings.padding,
        erase_prob=settings.erase_prob,
        erase_area=settings.erase_area,
        erase_aspect=settings.erase_aspect,
      )
    )
    tokens.append(
      augment.mask_tokens(
        text_key,
        batch["tokens"],
        mask_id=mask_id,
        ratio=settings.mask_ratio,
        mask_first=settings.mask_first,
      )
    )
  # Stacked beside each other, not one after the other: each device keeps its own pairs.
  return jnp.stack(pixels, axis=1), jnp.stack(tokens, axis=1)


def encode_views(encode, params, pixels_BxVxHxWx3, tokens_BxVxL, needed=None):
  """Features of all views: a list of V pairs ((B, D) image, (B, D) text).

  Args:
    encode: see `train_step`.
    params: parameters.
    pixels_BxVxHxWx3, tokens_BxVxL: from `two_views`.
    needed: None, or a traced bool: whether anyone will look at the distorted view. One pass of each
      tower over both views is cheapest; when the view is not needed yet, not encoding it is.
  """
  size, num_views = tokens_BxVxL.shape[:2]
  view = lambda v: encode(params, pixels_BxVxHxWx3[:, v], tokens_BxVxL[:, v])
  if num_views == 2 and needed is not None:
    clean = view(0)
    return [clean, jax.lax.cond(needed, lambda: view(1), lambda: clean)]
  flat = lambda x: x.reshape(size * num_views, *x.shape[2:])
  image, text = encode(params, flat(pixels_BxVxHxWx3), flat(tokens_BxVxL))
  apart = lambda x: x.reshape(size, num_views, -1)
  return [(apart(image)[:, v], apart(text)[:, v]) for v in range(num_views)]


def mine_local(image_features, text_features, batch, config):
  """Local relations of the batch as the method mines them (section 3.2): (B, B) bool."""
  settings = config.local_association
  return association.local_relations(
    image_features,
    text_features,
    settings.threshold,
    settings.modality,
    batch["mask"],
    settings.deviations,
  )


def mine_global(bank, image_features, text_features, batch, config, mesh, same_image_rows=0):
  """Bank rows the method mines for every pair (section 3.3): `association.Neighbours` (B, K)."""
  settings = config.global_association
  features = jax.lax.stop_gradient((image_features, text_features))
  twins = same_image_rows if settings.exclude_same_image else 0
  scores, rows = memory_bank.search(
    bank,
    features,
    association.num_candidates(settings.k, twins),
    mesh=mesh,
    anchor=settings.anchor,
    block_rows=config.bank.block_rows,
  )
  groups = None
  if settings.exclude_same_image:
    groups = (memory_bank.gather(bank.group, rows, mesh=mesh), batch["image_index"])
  neighbours = association.global_neighbours(
    scores,
    rows,
    batch["index"],
    k=settings.k,
    threshold=_anchor_threshold(features, batch, settings),
    exclude=settings.exclude,
    groups=groups,
  )
  return _confirmed(neighbours, bank, features, batch, config, mesh, twins)


def _anchor_threshold(features, batch, settings):
  """The threshold of what anchors are searched by; above the setting where it is to follow."""
  if not settings.deviations:
    return settings.threshold
  chosen = {"image": features[:1], "text": features[1:], "both": features}[settings.anchor]
  cosine_BxB = sum(losses.cosine(each, each) for each in chosen) / len(chosen)
  return association.raised_threshold(
    cosine_BxB, settings.threshold, settings.deviations, batch["mask"]
  )


def _confirmed(neighbours, bank, features, batch, config, mesh, twins):
  """The neighbours that the other modality, and they themselves, confirm, where that is asked."""
  settings = config.global_association
  if not (settings.agreement or settings.mutual):
    return neighbours
  mined = memory_bank.gather((bank.image, bank.text), neighbours.rows, mesh=mesh)
  if settings.agreement:
    text_cosine_BxB = losses.cosine(features[1], features[1])
    threshold = association.raised_threshold(
      text_cosine_BxB, settings.threshold, settings.deviations, batch["mask"]
    )
    neighbours = association.agreeing(neighbours, features[1], mined[1], threshold)
  if settings.mutual:
    flat = lambda mined_BxKxD: mined_BxKxD.reshape(-1, mined_BxKxD.shape[-1])
    _, rows_back = memory_bank.search(
      bank,
      jax.tree.map(flat, mined),
      association.num_candidates(settings.k, twins),
      mesh=mesh,
      anchor=settings.anchor,
      block_rows=config.bank.block_rows,
    )
    rows_back = rows_back.reshape(*neighbours.rows.shape, -1)
    if settings.exclude_same_image:  # then images look for each other, whatever their captions
      images_back = memory_bank.gather(bank.group, rows_back, mesh=mesh)
      neighbours = association.mutual(neighbours, batch["image_index"], images_back)
    else:
      neighbours = association.mutual(neighbours, batch["index"], rows_back)
  return neighbours


def train_step(
  state,
  batch,
  *,
  encode,
  optimizer,
  config,
  mesh,
  mask_id,
  steps_per_epoch,
  same_image_rows=0,
  mine_local=mine_local,
  mine_global=mine_global,
):
  """One step (paper section 3, all four losses).

  Args:
    state: TrainState; donate it.
    batch: {"image": (B, H, W, 3) uint8, "tokens": (B, L) int32, "index": (B,) int32 bank rows,
      "image_index": (B,) int32, "mask": (B,) bool}; masked rows change nothing.
    encode: (params, pixels, tokens) -> ((n, D) image, (n, D) text) float32 features.
    optimizer: optax transformation.
    config: the run's config.
    mesh: the mesh.
    mask_id: id of the mask token.
    steps_per_epoch: turns the step number into the epoch, counted from 1.
    same_image_rows: most captions an image has beside a given one.
    mine_local, mine_global: the two searches for relations; reference experiments replace them.

  Returns:
    The next TrainState and a Report.
  """
  epoch = state.step // steps_per_epoch + 1
  key = jax.random.fold_in(jax.random.key(config.seed), state.step)
  pixels, tokens = two_views(key, batch, config, mask_id)
  weights, mask = config.loss.weights, batch["mask"]
  temperature, epsilon = config.loss.temperature, config.loss.epsilon

  # Relations need features worth comparing: their losses wait for their epoch.
  local_started = epoch >= config.local_association.start_epoch
  global_started = epoch >= config.global_association.start_epoch

  def association_loss(features, relations):
    targets = association.targets_of_relations(relations, config.local_association.relation_label)
    loss = losses.similarity_distribution_matching(*features, targets, temperature, epsilon, mask)
    return jnp.where(local_started, loss, 0.0)

  def spared(relations):
    return relations & local_started if config.loss.itc_spares_relations else None

  def anchor_loss(features, neighbours, relations):
    mined = memory_bank.gather((state.bank.image, state.bank.text), neighbours.rows, mesh=mesh)
    loss = association.global_association_loss(
      *features,
      neighbours,
      *mined,
      soft_scale=config.global_association.soft_scale,
      loss_over=config.global_association.loss_over,
      temperature=temperature,
      epsilon=epsilon,
      row_mask=mask,
      batch_relations=relations if config.global_association.consult_batch else None,
    )
    return jnp.where(global_started, loss, 0.0)

  def features_of(params, views):
    waits = config.local_association.start_epoch > 1
    return encode_views(encode, params, *views, local_started if waits else None)

  def total_loss(features):
    clean, *distorted = features
    relations = mine_local(*clean, batch, config)
    neighbours = association.no_neighbours(mask.shape[0], config.global_association.k)
    if weights["global"]:
      neighbours = mine_global(state.bank, *clean, batch, config, mesh, same_image_rows)
    terms = {
      "itc": lambda: losses.itc(
        *clean, temperature, config.loss.itc_reduction, mask, spared=spared(relations)
      ),
      "local": lambda: association_loss(clean, relations),
      "global": lambda: anchor_loss(clean, neighbours, relations),
      "consistency": lambda: association_loss(
        distorted[0], mine_local(*distorted[0], batch, config)
      ),
    }
    values = {name: term() if weights[name] else jnp.zeros(()) for name, term in terms.items()}
    total = sum(weights[name] * value for name, value in values.items())
    return total, (values, total, clean, relations, neighbours)

  gradient, (values, total, clean, relations, neighbours) = gradient_cache.of_features_loss(
    total_loss,
    features_of,
    state.params,
    (pixels, tokens),
    parts=config.gradient_accumulation,
    mesh=mesh,
  )
  updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
  momentum = memory_bank.agreement_weight(*clean, config.bank.update_rate, config.bank.gated)
  bank = memory_bank.update(
    state.bank,
    batch["index"],
    batch["image_index"],
    *clean,
    jnp.where(epoch == 1, 1.0, momentum),
    mesh=mesh,
    # Features that gave no finite loss are kept out. That the update waits for the loss also tells
    # the compiler that all reading is over, so it writes in place: else it copies the whole bank.
    row_mask=mask & jnp.isfinite(total),
  )
  next_state = train_state.TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
    bank=bank,
  )
  relations &= ~jnp.eye(mask.shape[0], dtype=bool) & local_started
  neighbours = neighbours._replace(valid=neighbours.valid & mask[:, None] & global_started)
  metrics = {f"loss_{name}": value for name, value in values.items()}
  metrics["loss"] = total
  metrics["gradient_norm"] = optax.global_norm(gradient)
  metrics["local_relations"] = jnp.sum(relations) / jnp.maximum(jnp.sum(mask), 1)
  metrics["global_relations"] = jnp.sum(neighbours.valid) / jnp.maximum(jnp.sum(mask), 1)
  return next_state, Report(metrics, batch["index"], jnp.packbits(relations, axis=1), neighbours)


def compile_step(step, mesh, state, batch):
  """Compiles the step once, for these shapes and this layout; the state's memory is reused.

  Args:
    step: function (state, batch) -> (state, report), everything else bound.
    mesh: the mesh.
    state, batch: global arrays, or `jax.ShapeDtypeStruct`s.

  Returns:
    A compiled function. Arguments of any other shape or layout are an error, never a recompilation.
  """
  states = train_state.layout(mesh, state)
  batches = jax.tree.map(lambda _: sharding.batch(mesh), batch)
  jitted = jax.jit(
    step,
    in_shardings=(states, batches),
    out_shardings=(states, sharding.replicated(mesh)),
    donate_argnums=0,
  )
  return jitted.lower(state, batch).compile()
