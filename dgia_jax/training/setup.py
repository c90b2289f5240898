"""From a config to the parts of a run: mesh, data, tokenizer, model, optimiser, training step.

The one place that reads most of the config. Each part is made by a function of its own, in the
order in which they depend on each other.
"""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax import nnx

from dgia_jax import config as config_lib
from dgia_jax import sharding
from dgia_jax.data import batches as batches_lib
from dgia_jax.data import datasets, tokenizer
from dgia_jax.data import pairs as pairs_lib
from dgia_jax.errors import UserError
from dgia_jax.method import optimizer as optimizer_lib
from dgia_jax.method import train_state, train_step
from dgia_jax.models import backend, dual_encoder
from dgia_jax.models.pretrained import load as load_lib
from dgia_jax.models.pretrained import params as params_lib
from dgia_jax.training import checkpoint
from dgia_jax.training import workdir as workdir_lib

SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything a run is made of; immutable, holds no training state."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  splits: dict  # split name -> PairTable
  tokenizer: tokenizer.Tokenizer
  graphdef: nnx.GraphDef
  optimizer: optax.GradientTransformation

  @property
  def train_pairs(self):
    """The training pairs."""
    return self.splits["train"]

  @property
  def steps_per_epoch(self):
    """Batches in an epoch, the last partial one included."""
    return batches_lib.steps_per_epoch(self.train_pairs.num_pairs, self.config.batch_size)

  @property
  def total_steps(self):
    """Batches in the whole run."""
    return self.steps_per_epoch * self.config.num_epochs

  def encode(self, params, pixels, tokens):
    """(params, (n, H, W, 3) float, (n, L) int32) -> ((n, D), (n, D)) float32 features."""
    model = nnx.merge(self.graphdef, sharding.gathered(self.mesh, params))
    return model.encode_image(pixels), model.encode_text(tokens)


def build(config, workdir, splits=None):
  """Makes every part of a run.

  Args:
    config: the resolved config.
    workdir: the run's folder.
    splits: {"train": PairTable, ...} to use instead of the configured dataset.

  Returns:
    A Run.

  Raises:
    UserError: for whatever in the config or the data cannot work.
  """
  config_lib.check(config)
  mesh = sharding.create_mesh(**config.mesh)
  check_batch(config, mesh)
  splits = splits or load_splits(config)
  words = load_tokenizer(config, workdir, splits["train"].captions)
  return Run(
    config=config,
    workdir=pathlib.Path(workdir),
    mesh=mesh,
    splits=splits,
    tokenizer=words,
    graphdef=abstract_graph(config, words.vocab_size, mesh),
    optimizer=create_optimizer(
      config, batches_lib.steps_per_epoch(splits["train"].num_pairs, config.batch_size)
    ),
  )


def check_batch(config, mesh):
  """Raises UserError unless the batch divides over the mesh and over accumulation's parts."""
  shards = sharding.batch_shards(mesh)
  if config.batch_size % shards:
    raise UserError(
      f"config.batch_size={config.batch_size} cannot be divided over mesh.data x mesh.fsdp ="
      f" {shards} device(s); choose a multiple"
    )
  rows, parts = config.batch_size // shards, config.gradient_accumulation
  if rows % parts:
    raise UserError(
      f"config.gradient_accumulation={parts} does not divide the {rows} pair(s) of"
      f" config.batch_size={config.batch_size} on each of mesh.data x mesh.fsdp = {shards}"
      " device(s); choose a divisor"
    )


def load_splits(config):
  """Reads the configured dataset, building it first when it is absent: {split: PairTable}."""
  settings = config.dataset
  files = {name: settings[name] for name in ("source", "annotations", "images") if settings[name]}
  builder = datasets.load_builder(
    settings.name,
    image_size=tuple(settings.image_size),
    data_dir=settings.data_dir,
    **files,
    **settings.options,
  )
  found = [split for split in SPLITS if split in builder.info.splits]
  for needed in ("train", "test", config.eval.select_on):
    if needed not in found:
      raise UserError(
        f"dataset {settings.name} has no {needed} split (found: {', '.join(found)});"
        + (" set config.eval.select_on=test" if needed == "val" else " check its annotations")
      )
  image_size = tuple(settings.image_size)
  return {split: pairs_lib.load_pairs(builder, split, image_size) for split in found}


def load_tokenizer(config, workdir, train_captions):
  """CLIP's tokenizer, or a vocabulary of the run's own, kept in its folder.

  The own one is that of the run whose weights this one starts from, or else is made from the
  training captions.
  """
  settings = config.tokenizer
  if settings.name:
    return tokenizer.clip_tokenizer(settings.name, settings.context_length)
  folder = pathlib.Path(workdir) / workdir_lib.TOKENIZER
  if workdir_lib.is_claimed(workdir):
    return tokenizer.load_tokenizer(folder)
  if config.pretrained and workdir_lib.is_run(config.pretrained):
    words = tokenizer.load_tokenizer(pathlib.Path(config.pretrained) / workdir_lib.TOKENIZER)
    if words.context_length != settings.context_length:
      raise UserError(
        f"config.tokenizer.context_length={settings.context_length}: the run that"
        f" config.pretrained={config.pretrained} names has {words.context_length}; give the same"
      )
  else:
    words = tokenizer.train_tokenizer(train_captions, settings.context_length, settings.vocab_size)
  if jax.process_index() == 0:
    words.save(folder)
  return words


def create_model(config, vocab_size, device=None):
  """The dual encoder with fresh weights drawn from the config's seed.

  Args:
    config: the resolved config.
    vocab_size: of the tokenizer.
    device: one of those that will compute it; None for this process's own.
  """
  dtype = jnp.dtype(config.model.dtype)
  return dual_encoder.create(
    config.model.name,
    image_size=tuple(config.dataset.image_size),
    context_length=config.tokenizer.context_length,
    vocab_size=vocab_size,
    dtype=dtype,
    backend=backend.choose(
      device or jax.local_devices()[0],
      dtype,
      attention=config.model.attention,
      remat=config.model.remat,
    ),
    rngs=nnx.Rngs(config.seed),
  )


def abstract_graph(config, vocab_size, mesh):
  """The model's structure, without weights, as the devices of a mesh compute it."""
  device = _device_of(mesh)
  return nnx.graphdef(nnx.eval_shape(lambda: create_model(config, vocab_size, device)))


def _device_of(mesh):
  """A device that stands for all of a mesh."""
  # Of a device of another process not everything is known; of a described topology all are alike.
  own = [device for device in mesh.devices.flat if device.process_index == jax.process_index()]
  return own[0] if own else mesh.devices.flat[0]


def create_optimizer(config, steps_per_epoch):
  """The optax chain of the config's recipe."""
  settings = config.optimizer
  return optimizer_lib.create(
    num_epochs=config.num_epochs,
    steps_per_epoch=steps_per_epoch,
    base=settings.learning_rate,
    warmup_epochs=settings.warmup_epochs,
    lr_update=settings.lr_update,
    betas=tuple(settings.betas),
    epsilon=settings.epsilon,
    weight_decay=settings.weight_decay,
    decoupled=settings.decoupled,
    bias_lr_multiplier=settings.bias_lr_multiplier,
    second_moment=settings.second_moment,
  )


def init_state(run):
  """A function without arguments that makes the fresh TrainState; to be traced."""

  def init_params():
    model = create_model(run.config, run.tokenizer.vocab_size, _device_of(run.mesh))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))

  return train_state.initializer(
    init_params,
    run.optimizer,
    num_pairs=run.train_pairs.num_pairs,
    feature_dim=dual_encoder.SIZES[run.config.model.name].feature_width,
  )


def load_pretrained(run, params):
  """Parameters read from `config.pretrained`, laid out like the fresh ones they replace.

  Args:
    run: the Run.
    params: the fresh parameters.

  Returns:
    Parameters, and the names of the tensors in the files that the model has no place for.

  Raises:
    UserError: the files cannot be read or do not fit the model.
  """
  source = run.config.pretrained
  if workdir_lib.is_run(source):
    _, loaded = checkpoint.restore_params(source)
    dropped = ()
    _check_same_shapes(source, loaded, params)
  else:
    found = load_lib.load_pretrained(
      source, params, image_size=tuple(run.config.dataset.image_size)
    )
    loaded, dropped = found.params, found.dropped
  return sharding.place(loaded, sharding.parameters(run.mesh, params)), dropped


def _check_same_shapes(source, loaded, params):
  """Raises UserError, naming the parameters, unless a run's parameters are those of this model."""
  shapes = lambda tree: {name: array.shape for name, array in params_lib.flatten(tree).items()}
  theirs, ours = shapes(loaded), shapes(params)
  differing = sorted(
    name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)
  )
  if differing:
    raise UserError(
      f"config.pretrained={source} is a run of another model: {', '.join(differing[:4])}"
      f"{', ...' if len(differing) > 4 else ''} differ; give the same model.name, image size and"
      " tokenizer, or convert it (python -m dgia_jax.convert) to have its positions resized"
    )


def create_step(run, **searches):
  """The training step with everything but (state, batch) bound.

  Args:
    run: the Run.
    **searches: `mine_local` or `mine_global`, to replace how relations are found.

  Returns:
    Function (state, batch) -> (state, Report).
  """
  captions_of_image = np.bincount(run.train_pairs.image_of_pair_N)
  return functools.partial(
    train_step.train_step,
    encode=run.encode,
    optimizer=run.optimizer,
    config=run.config,
    mesh=run.mesh,
    mask_id=run.tokenizer.mask_id,
    steps_per_epoch=run.steps_per_epoch,
    same_image_rows=int(captions_of_image.max()) - 1,
    **searches,
  )
