"""From a config to the parts of training: mesh, data, tokenizer, model, optimiser, training step.

This module reads most of the config. One function creates each part, and `create` calls them in
the order in which the parts depend on each other.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax import sharding
from dgia_jax.data import batches as batches_lib
from dgia_jax.data import pairs as pairs_lib
from dgia_jax.data.token_ids import Vocabulary
from dgia_jax.method import augment, ema, mining, strict_mining, train_state, train_step, trainable
from dgia_jax.method import optimizer as optimizer_lib
from dgia_jax.models import backend, dual_encoder
from dgia_jax.models.caption_packing import Packing, encode_packed
from dgia_jax.training import initial_weights, inputs, setup_checks
from dgia_jax.training import workdir as workdir_lib


@dataclasses.dataclass(frozen=True)
class TrainingSetup:
  """The parts of one training run. Immutable; the training state is kept elsewhere."""

  config: ConfigDict
  workdir: pathlib.Path | None
  mesh: jax.sharding.Mesh
  splits: Mapping[str, Any]  # split name -> PairTable, or an object with the sizes of one
  tokenizer: Vocabulary  # a tokenizer, or only the ids of one
  graphdef: nnx.GraphDef
  optimizer: optax.GradientTransformation

  @property
  def train_pairs(self) -> Any:
    """The training pairs."""
    return self.splits["train"]

  @property
  def size(self) -> dual_encoder.Size:
    """The size of the model."""
    return dual_encoder.named(self.config.model.name)

  @property
  def steps_per_epoch(self) -> int:
    """Batches per epoch, including the last partial one."""
    return batches_lib.steps_per_epoch(self.train_pairs.num_pairs, self.config.batch_size)

  @property
  def total_steps(self) -> int:
    """Batches in the whole run."""
    return self.steps_per_epoch * self.config.num_epochs

  def epoch_of(self, step: int) -> int:
    """The epoch, counted from 1, that a step belongs to; steps are counted from 1."""
    return (step - 1) // self.steps_per_epoch + 1

  @functools.cached_property
  def same_image_rows(self) -> int:
    """The largest number of other captions that one image has."""
    return int(np.bincount(self.train_pairs.image_of_pair_N).max()) - 1

  @functools.cached_property
  def abstract_state(self) -> train_state.TrainState:
    """The training state as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(state_initializer(self))

  def encode(
    self,
    params: Mapping,
    pixels: jax.Array,
    tokens: jax.Array,
    kept_patches: jax.Array | None = None,
    *,
    packing: Packing | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Image features (n, D) of normalised pixels and text features (n, D) of token ids.

    Only the patches `kept_patches` (n, Z) of each image are read; None means all. With a packing,
    captions are encoded as `caption_packing.encode_packed` does.
    """
    model = nnx.merge(self.graphdef, self.towers(sharding.gathered(self.mesh, params)))
    encode_text = model.encode_text
    if packing:
      shards = sharding.batch_shards(self.mesh)
      encode_text = lambda tokens: encode_packed(model.text.encode_rows, tokens, packing, shards)
    return model.encode_image(pixels, kept_patches), encode_text(tokens)

  def towers(self, params: Mapping) -> dict:
    """The parameters of the model among those of the state, see `trainable.towers`."""
    return trainable.towers(params, self.config.lora.alpha)

  def select_trained(self, params: Mapping) -> dict:
    """The parameters that are trained, see `trainable.select`."""
    return trainable.select(params, config_lib.frozen_blocks(self.config))

  def learning_rates(self) -> np.ndarray:
    """The learning rate of every step of the run, in order."""
    rate_after = optimizer_lib.schedule(**_schedule_settings(self.config, self.steps_per_epoch))
    return np.asarray(rate_after(np.arange(self.total_steps)))


def create(
  config: ConfigDict,
  workdir: pathlib.Path | str,
  splits: Mapping[str, pairs_lib.PairTable] | None = None,
) -> TrainingSetup:
  """Creates every part of a training run.

  Args:
    config: the resolved config.
    workdir: the run's folder; a run that is stored there may break rules that came after it.
    splits: pairs to use instead of the configured dataset, by split name.

  Raises:
    UserError: the config or the data contains something that cannot work.
  """
  check = config_lib.check_values if workdir_lib.is_claimed(workdir) else config_lib.check
  check(config)
  return _with_data(config, setup_checks.training_mesh(config), workdir, splits)


def create_for_evaluation(
  config: ConfigDict,
  workdir: pathlib.Path | str,
  splits: Mapping[str, pairs_lib.PairTable] | None = None,
  notify: Callable[[str], None] = lambda line: None,
) -> TrainingSetup:
  """As `create`, on whatever devices are there, for a batch that need not divide over them.

  `notify` receives one line where the mesh of the run's training does not fit the devices.
  """
  config_lib.check_values(config)
  mesh = setup_checks.evaluation_mesh(config, workdir, notify)
  return _with_data(config, mesh, workdir, splits)


def _with_data(
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  workdir: pathlib.Path | str,
  splits: Mapping[str, pairs_lib.PairTable] | None,
) -> TrainingSetup:
  """Loads data and tokenizer and adds the parts that follow from them."""
  splits = splits or inputs.load_splits(config)
  vocabulary = inputs.load_tokenizer(config, workdir, splits["train"].captions)
  return assemble(config, mesh, splits, vocabulary, pathlib.Path(workdir))


def assemble(
  config: ConfigDict,
  mesh: jax.sharding.Mesh,
  splits: Mapping[str, Any],
  vocabulary: Any,
  workdir: pathlib.Path | None = None,
) -> TrainingSetup:
  """Adds the parts that follow from the others: the model's structure and the optimiser.

  Args:
    config, mesh, splits, workdir: as in `TrainingSetup`.
    vocabulary: its `tokenizer`.

  Raises:
    UserError: the model does not have what the config freezes or adapts.
  """
  setup_checks.check_trainable(config)
  return TrainingSetup(
    config=config,
    workdir=workdir,
    mesh=mesh,
    splits=splits,
    tokenizer=vocabulary,
    graphdef=abstract_graph(config, vocabulary.vocab_size, mesh),
    optimizer=create_optimizer(
      config, batches_lib.steps_per_epoch(splits["train"].num_pairs, config.batch_size)
    ),
  )


def create_model(
  config: ConfigDict, vocab_size: int, device: jax.Device | None = None
) -> dual_encoder.DualEncoder:
  """Creates the dual encoder with random weights drawn from the config's seed.

  Args:
    config: the resolved config.
    vocab_size: size of the tokenizer's vocabulary.
    device: a device of the kind that will run the model; None means this process's own.
  """
  dtype = jnp.dtype(config.model.dtype)
  return dual_encoder.create(
    config.model.name,
    image_size=tuple(config.dataset.image_size),
    context_length=config.tokenizer.context_length,
    vocab_size=vocab_size,
    dtype=dtype,
    backend=dataclasses.replace(
      backend.choose(
        device or jax.local_devices()[0],
        dtype,
        attention=config.model.attention,
        remat=config.model.remat,
      ),
      full_last_block=config.model.full_last_block,
      # A tower that is frozen whole has no trained parameter, and so no backward pass either.
      frozen_image_blocks=max(config.freeze.image_blocks, 0),
      frozen_text_blocks=max(config.freeze.text_blocks, 0),
    ),
    rngs=nnx.Rngs(config.seed),
  )


def abstract_graph(config: ConfigDict, vocab_size: int, mesh: jax.sharding.Mesh) -> nnx.GraphDef:
  """The model's structure without weights, for the kind of device that the mesh consists of."""
  device = _example_device(mesh)
  return nnx.graphdef(nnx.eval_shape(lambda: create_model(config, vocab_size, device)))


def _example_device(mesh: jax.sharding.Mesh) -> Any:
  """One device that represents all devices of a mesh."""
  # A process does not know every property of another process's devices, so its own come first.
  # In the description of an absent topology all devices are equal.
  own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
  return own[0] if own else mesh.devices.flat[0]


def create_optimizer(config: ConfigDict, steps_per_epoch: int) -> optax.GradientTransformation:
  """Creates the optax chain that the config describes."""
  settings = config.optimizer
  return optimizer_lib.create(
    **_schedule_settings(config, steps_per_epoch),
    betas=tuple(settings.betas),
    epsilon=settings.epsilon,
    weight_decay=settings.weight_decay,
    decoupled=settings.decoupled,
    bias_lr_multiplier=settings.bias_lr_multiplier,
    second_moment=settings.second_moment,
    layer_decay=settings.layer_decay,
    clip_norm=settings.clip_norm,
  )


def _schedule_settings(config: ConfigDict, steps_per_epoch: int) -> dict[str, Any]:
  """The arguments of `optimizer.schedule`."""
  return {
    "num_epochs": config.num_epochs,
    "steps_per_epoch": steps_per_epoch,
    "base": config.optimizer.learning_rate,
    "warmup_epochs": config.optimizer.warmup_epochs,
    "lr_update": config.optimizer.lr_update,
  }


def state_initializer(setup: TrainingSetup) -> Callable[[], train_state.TrainState]:
  """Returns a function that creates the initial training state; it is meant to be traced."""

  config = setup.config

  def init_params():
    model = create_model(config, setup.tokenizer.vocab_size, _example_device(setup.mesh))
    return trainable.with_additions(
      nnx.to_pure_dict(nnx.state(model, nnx.Param)),
      seed=config.seed,
      lora_rank=config.lora.rank,
      lora_matrices=config.lora.matrices,
      temperature=config.loss.temperature if config.loss.learnable_temperature else None,
    )

  return train_state.initializer(
    init_params,
    setup.optimizer,
    num_pairs=setup.train_pairs.num_pairs,
    feature_dim=setup.size.feature_width,
    select_trained=setup.select_trained,
    averaged=ema.is_on(config.ema),
    with_confidence=config.bank.gate == "running",
    pair_memory=(
      (config.tokenizer.context_length, config.global_association.k)
      if config.caption_exchange.prob
      else None
    ),
  )


def initial_state(
  setup: TrainingSetup, notify: Callable[[str], None] = lambda line: None
) -> train_state.TrainState:
  """The state that a run starts from: with random parameters, or those of `config.pretrained`.

  Args:
    setup: the training setup.
    notify: receives one line about pretrained parameters.

  Raises:
    UserError: as `load_pretrained`.
  """
  state = train_state.create(setup.mesh, state_initializer(setup))
  if setup.config.pretrained:
    params, unused = load_pretrained(setup, state.params)
    state = train_state.with_params(setup.mesh, state, params, setup.select_trained)
    notify(f"weights from {setup.config.pretrained}; not used: {initial_weights.summary(unused)}")
  return state


def load_pretrained(setup: TrainingSetup, params: Mapping) -> tuple[Mapping, Sequence[str]]:
  """Reads the towers that `config.pretrained` names; see `initial_weights.load`."""
  loaded, unused = initial_weights.load(
    setup.config.pretrained,
    {tower: params[tower] for tower in trainable.TOWERS},
    image_size=tuple(setup.config.dataset.image_size),
    family=setup.size.family,
    mesh=setup.mesh,
    new_words=inputs.pieces_of_new_words(setup.config, setup.tokenizer),
  )
  return {**params, **loaded}, unused


def create_step(
  setup: TrainingSetup, packing: Packing | None = None, **replaced: Any
) -> functools.partial:
  """Binds every argument of the training step except (state, batch).

  Args:
    setup: the training setup.
    packing: see `packing_plan.choose_packing`; None encodes all captions at full length.
    **replaced: `mine_local` or `mine_global`, functions that replace how relations are mined.

  Returns:
    Function (state, batch) -> (state, StepOutput).
  """
  return functools.partial(
    train_step.train_step,
    encode=functools.partial(setup.encode, packing=packing),
    optimizer=setup.optimizer,
    select_trained=setup.select_trained,
    config=setup.config,
    mesh=setup.mesh,
    masking=masking(setup.tokenizer),
    pixel_statistics=setup.size.family.pixels,
    num_patches=setup.size.num_patches(setup.config.dataset.image_size),
    steps_per_epoch=setup.steps_per_epoch,
    **(mining_functions(setup) | replaced),
  )


def masking(vocabulary: Vocabulary) -> augment.Masking:
  """The ids that the masking of words needs to know."""
  words = vocabulary.word_ids
  return augment.Masking(vocabulary.mask_id, words.start, words.stop, vocabulary.first_word)


def mining_functions(setup: TrainingSetup) -> dict[str, Any]:
  """The method's mining, or the stricter mining that the config asks for, with its settings bound.

  Returns:
    {"mine_local", "mine_global"}, see `dgia_jax.method.mining`.
  """
  config, bind = setup.config, functools.partial
  local, anchors = config.local_association, config.global_association
  bank = {
    "mesh": setup.mesh,
    "block_rows": config.bank.block_rows,
    "same_image_rows": setup.same_image_rows,
  }
  if not any(config.strict_mining.values()):
    return {
      "mine_local": bind(mining.mine_local, settings=local),
      "mine_global": bind(mining.mine_global, settings=anchors, **bank),
    }
  strict = config.strict_mining
  return {
    "mine_local": bind(strict_mining.mine_local, settings=local, strict=strict),
    "mine_global": bind(strict_mining.mine_global, settings=anchors, strict=strict, **bank),
  }


def losses_starting(config: ConfigDict, epoch: int) -> list[str]:
  """Names of the losses with a positive weight whose first epoch is `epoch`, counted from 1."""
  first_epochs = {
    "itc": 1,
    "local": config.local_association.start_epoch,
    "global": config.global_association.start_epoch,
    "consistency": config.local_association.start_epoch,
  }
  return [
    name
    for name, first_epoch in first_epochs.items()
    if config.loss.weights[name] and first_epoch == epoch
  ]
