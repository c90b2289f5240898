"""`--mode compile`: the real training step, compiled for chips that are not there.

Says whether a config fits, what fills the memory, how much is computed and what is sent, without
data, weights or accelerators.
"""

import dataclasses
import pathlib
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dgia_jax import config as config_lib
from dgia_jax import sharding
from dgia_jax.data import catalog
from dgia_jax.data.synth_pedes.settings import Settings
from dgia_jax.dry_run import flops, hlo_collectives, topology
from dgia_jax.errors import UserError
from dgia_jax.method import compilation, memory_bank, train_state
from dgia_jax.models import dual_encoder
from dgia_jax.training import setup

CAPTIONS_PER_IMAGE = 2
BANK_FILE = pathlib.Path(memory_bank.__file__).name
# What the TPU compiler says when it gives up, early or late. Early it speaks of temporaries and
# counts what a run keeps among them: compiled with banks of several sizes, it names their sum.
_SIZE = r"([\d.]+[KMGT]?)"
_TEMPORARIES_EXCEED = re.compile(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")
_ALL_EXCEEDS = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What the step needs to know of a dataset and a vocabulary that are not there."""

  num_pairs: int
  vocab_size: int

  @property
  def image_of_pair_N(self):
    """The images of the first few pairs: as many captions an image as is usual."""
    return np.zeros(CAPTIONS_PER_IMAGE, np.int32)

  @property
  def mask_id(self):
    """As in `data.tokenizer`."""
    return self.vocab_size - 3


def abstract_run(config, devices, num_pairs):
  """The TrainingSetup of a config on given devices, for a dataset of a given size.

  Raises:
    UserError: as `setup.create`.
  """
  config_lib.check(config)
  mesh = sharding.create_mesh(**config.mesh, devices=devices)
  setup.check_batch(config, mesh)
  sizes = Sizes(num_pairs, config.tokenizer.vocab_size)
  return setup.TrainingSetup(
    config=config,
    workdir=None,
    mesh=mesh,
    splits={"train": sizes},
    tokenizer=sizes,
    graphdef=setup.abstract_graph(config, sizes.vocab_size, mesh),
    optimizer=setup.create_optimizer(config, -(-num_pairs // config.batch_size)),
  )


def abstract_batch(config):
  """Shapes of a global batch."""
  size, (height, width) = config.batch_size, config.dataset.image_size
  shape = jax.ShapeDtypeStruct
  return {
    "image": shape((size, height, width, 3), jnp.uint8),
    "tokens": shape((size, config.tokenizer.context_length), jnp.int32),
    "index": shape((size,), jnp.int32),
    "image_index": shape((size,), jnp.int32),
    "mask": shape((size,), jnp.bool_),
  }


def measure(config, name, num_pairs):
  """Compiles the step of a config for a topology.

  Args:
    config: the resolved config.
    name: of the topology.
    num_pairs: training pairs, the rows of the bank.

  Returns:
    A dict of plain numbers and strings: `chips`, `mesh`, `fits`, `memory_bytes` (per device: each
    kind, `total` and what the chip `has`), `flops` and `flops_counted` (per device and step, by
    XLA, which counts the body of a loop once, and by hand), `collectives` (`kind`, `shapes`,
    `bytes` on a device, `times` a step, `looped`, `of_bank`: whether it serves the search, gather
    or update of the bank, `source`) and `compile_seconds`. When the
    compiler itself finds no room, `memory_bytes` has its total.

  Raises:
    UserError: the topology or the config cannot work.
  """
  devices = topology.devices_of(name)
  run = abstract_run(config, devices, num_pairs)
  state, batch = jax.eval_shape(setup.init_state(run)), abstract_batch(config)
  layouts = train_state.layout(run.mesh, state)
  memory = {
    "parameters": _bytes(state.params, layouts.params),
    "optimizer": _bytes(state.opt_state, layouts.opt_state),
    "bank": _bytes(state.bank, layouts.bank),
    "batch": _bytes(batch, {key: sharding.batch(run.mesh) for key in batch}),
  }
  found = {
    "topology": name,
    "device": devices[0].device_kind,
    "chips": len(devices),
    "mesh": [run.mesh.shape[axis] for axis in sharding.AXES],
    "model": config.model.name,
    "batch": config.batch_size,
    "bank_rows": num_pairs,
    "remat": config.model.remat,
    "gradient_accumulation": config.gradient_accumulation,
    "flops_counted": _counted_flops(config, num_pairs, len(devices)),
    "collectives": [],
  }
  has, start = topology.memory_of(name), time.time()
  try:
    compiled = compilation.compile_step(setup.create_step(run), run.mesh, state, batch)
  except jax.errors.JaxRuntimeError as error:
    needs = _exhausted(str(error))
    if not needs:
      raise
    total, has = needs
  else:
    sizes = compiled.memory_analysis()
    arguments = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    total = arguments - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes
    found["flops"] = compiled.cost_analysis()["flops"]
    found["collectives"] = [_plain(one) for one in hlo_collectives.collectives(compiled.as_text())]
  memory["activations and temporaries"] = max(total - sum(memory.values()), 0)
  memory |= {"total": total, "has": has}
  return found | {
    "memory_bytes": memory,
    "fits": has is None or total <= has,
    "compile_seconds": round(time.time() - start, 1),
  }


def _exhausted(message):
  """(bytes needed on a chip, bytes it has) from the compiler's complaint; None if it is another."""
  found = _TEMPORARIES_EXCEED.search(message) or _ALL_EXCEEDS.search(message)
  return tuple(map(_read_size, found.groups())) if found else None


def report(config, name, num_pairs, console):
  """Compiles, shows what was found, and fails when it does not fit.

  Args:
    config: the resolved config.
    name: of the topology.
    num_pairs: training pairs; None: those of the configured dataset.
    console: console.Console.

  Returns:
    As `measure`.

  Raises:
    UserError: it does not fit, or as `measure`.
  """
  num_pairs = known_pairs(config) if num_pairs is None else num_pairs
  if num_pairs < 1:
    raise UserError(f"--num_pairs={num_pairs}: must be at least 1")
  found = measure(config, name, num_pairs)
  console.compile_report(found)
  memory = found["memory_bytes"]
  if not found["fits"]:
    over = (memory["total"] - memory["has"]) / topology.GIB
    raise UserError(
      f"does not fit {name}: {memory['total'] / topology.GIB:.2f} GiB a chip, {over:.2f} GiB too"
      " much; use more chips, config.mesh.fsdp, config.model.remat=True or"
      " config.gradient_accumulation"
    )
  return found


def known_pairs(config):
  """Training pairs of the configured dataset, as published or as it will be drawn.

  Raises:
    UserError: nothing is known of it.
  """
  name = config.dataset.name
  if name == "synth_pedes":
    drawn = Settings(**config.dataset.options)
    return drawn.train_people * drawn.images_per_person * drawn.captions_per_image
  for release in catalog.LAYOUTS[name].releases if name in catalog.LAYOUTS else ():
    if "train" in release.splits:
      return release.splits["train"].captions
  raise UserError(
    f"--num_pairs is missing: how many training pairs config.dataset.name={name} has is not known"
  )


def _counted_flops(config, num_pairs, devices):
  size, views = dual_encoder.SIZES[config.model.name], 2 if config.loss.weights.consistency else 1
  pair = flops.train_pair_flops(
    size, config.dataset.image_size, config.tokenizer.context_length, views
  )
  batch, dim, settings = config.batch_size, size.feature_width, config.global_association
  total = batch * pair
  if config.loss.weights["global"]:
    anchors = 2 if settings.anchor == "both" else 1
    total += anchors * flops.bank_flops(batch, num_pairs, dim)
    total += flops.loss_flops(batch, dim, settings.k)
  else:
    total += flops.loss_flops(batch, dim, k=0)
  return total / devices


def _plain(collective):
  return {
    "kind": collective.kind,
    "shapes": " ".join(f"{kind}[{','.join(map(str, dims))}]" for kind, dims in collective.shapes),
    "bytes": collective.bytes,
    "times": collective.times,
    "looped": collective.in_loop,
    "of_bank": pathlib.PurePath(collective.source.split(":")[0]).name == BANK_FILE,
    "source": f"{collective.op_name} {_importable(collective.source)}".strip(),
  }


def _importable(source):
  """A source file as Python finds it, without the folder it is installed in."""
  for folder in sorted(filter(None, sys.path), key=len, reverse=True):
    if source.startswith(f"{folder}/"):
      return source.removeprefix(f"{folder}/")
  return source


def _bytes(tree, layouts):
  """Bytes of a tree on one device."""
  size = lambda leaf, layout: int(np.prod(layout.shard_shape(leaf.shape))) * leaf.dtype.itemsize
  return sum(jax.tree.leaves(jax.tree.map(size, tree, layouts)))


def _read_size(text):
  """Bytes of "15.75G"."""
  units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  return int(float(text.rstrip("KMGT")) * units.get(text[-1], 1))
