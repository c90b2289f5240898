"""`--mode compile`: the real training step, compiled for devices that are not attached.

Reports whether a config fits, what uses the memory, the arithmetic and the traffic between devices,
without data, weights or accelerators.
"""

import dataclasses
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax import sharding
from dgia_jax.data import catalog
from dgia_jax.data.synth_pedes.settings import PRESETS
from dgia_jax.data.token_ids import TokenIds
from dgia_jax.dry_run import flops, hlo_collectives, hlo_estimates, topology
from dgia_jax.errors import UserError
from dgia_jax.method import bank_search, compilation, memory_bank, mining, train_state
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.reporting.console import Console
from dgia_jax.training import setup, setup_checks

CAPTIONS_PER_IMAGE = 2
CLIP_VOCABULARY = 49_408
# Rows of SigLIP's vocabularies, by a part of the names on the hub; the first that fits counts.
SIGLIP_VOCABULARIES = {"siglip2": 256_000, "multilingual": 250_000, "siglip": 32_000}
BANK_FILES = {pathlib.Path(module.__file__).name for module in (memory_bank, bank_search)}
# Messages of the TPU compiler when memory is short, early or late. The early one counts the state
# among the temporaries: for banks of several sizes it names the sum of both.
_SIZE = r"([\d.]+[KMGT]?)"
_TEMPORARIES_EXCEED = re.compile(rf"temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")
_ALL_EXCEEDS = re.compile(rf"Used {_SIZE} of {_SIZE} hbm")


@dataclasses.dataclass(frozen=True)
class DatasetSizes:
  """The facts about a dataset that the step is compiled for."""

  num_pairs: int

  @property
  def image_of_pair_N(self) -> np.ndarray:
    """Image numbers of the first pairs: the usual number of captions per image."""
    return np.zeros(CAPTIONS_PER_IMAGE, np.int32)


def abstract_setup(
  config: ConfigDict, devices: Sequence[jax.Device], num_pairs: int
) -> setup.TrainingSetup:
  """The setup of a config on given devices, for a dataset of `num_pairs` pairs.

  Raises:
    UserError: as `setup.create`.
  """
  config_lib.check(config)
  mesh = setup_checks.training_mesh(config, devices)
  vocabulary = TokenIds(vocabulary_size(config))
  return setup.assemble(config, mesh, {"train": DatasetSizes(num_pairs)}, vocabulary)


def vocabulary_size(config: ConfigDict) -> int:
  """Rows of the token embedding, as far as they are known without captions and downloads.

  A vocabulary that is yet to be learned counts with its largest size, one of an unknown SigLIP
  model with that of SigLIP 2, and new words are not counted.
  """
  settings = config.tokenizer
  if not settings.name:
    if not pretrained.is_shipped(config.pretrained):
      return settings.vocab_size
    folder = pretrained.local_copy(config.pretrained, "config.pretrained")
    return pretrained.read_config(folder).vocab_size
  if not dual_encoder.named(config.model.name).family.is_siglip:
    return CLIP_VOCABULARY
  names = f"{settings.name} {config.pretrained}".lower()
  known = (rows for part, rows in SIGLIP_VOCABULARIES.items() if part in names)
  return next(known, max(SIGLIP_VOCABULARIES.values()))


def abstract_batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
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


def measure(config: ConfigDict, name: str, num_pairs: int) -> dict[str, Any]:
  """Compiles the step of a config for a topology.

  Args:
    config: the resolved config.
    name: of the topology.
    num_pairs: training pairs, the rows of the bank.

  Returns:
    Plain numbers and strings: `chips`, `mesh`, `fits`, `memory_bytes` (per device: each kind, the
    `total`, and what the chip `has`), `flops_counted` (per device and step, analytically), `flops`
    and `bytes_accessed` (by XLA, which counts the body of a loop once; not for GPUs), for
    TPUs `estimated_cycles`, `product_flops` and `padded_product_flops` (of a step, see
    `hlo_estimates`), `collectives` (`kind`, `shapes`,
    `bytes` per device, `times` per step, `looped`, `source`, and `of_bank`: whether it belongs to
    the search, gather or update of the bank) and `compile_seconds`. When the compiler runs out of
    memory, `memory_bytes` holds its total.

  Raises:
    UserError: the topology or the config cannot work.
  """
  devices = topology.devices_of(name)
  abstract = abstract_setup(config, devices, num_pairs)
  mesh = abstract.mesh
  state, batch = abstract.abstract_state, abstract_batch(config)
  layouts = train_state.layout(mesh, state)
  memory = {
    "parameters": sharding.device_bytes(state.params, layouts.params),
    "optimizer": sharding.device_bytes(state.opt_state, layouts.opt_state),
    "bank": sharding.device_bytes((state.bank, state.pairs), (layouts.bank, layouts.pairs)),
    **({} if state.ema is None else {"average": sharding.device_bytes(state.ema, layouts.ema)}),
    "batch": sharding.device_bytes(batch, {key: sharding.batch(mesh) for key in batch}),
  }
  facts = {
    "topology": name,
    "device": devices[0].device_kind,
    "chips": len(devices),
    "mesh": [mesh.shape[axis] for axis in sharding.AXES],
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
    compiled = compilation.compile_step(setup.create_step(abstract), mesh, state, batch)
  except jax.errors.JaxRuntimeError as error:
    sizes = _exhausted(str(error))
    if not sizes:
      raise
    total, has = sizes
  else:
    sizes = compiled.memory_analysis()
    arguments = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
    total = arguments - sizes.alias_size_in_bytes + sizes.temp_size_in_bytes
    if costs := compiled.cost_analysis():  # GPUs that are not attached have none
      facts |= {"flops": costs["flops"], "bytes_accessed": costs["bytes accessed"]}
    text = compiled.as_text()
    facts["collectives"] = [_plain(one) for one in hlo_collectives.collectives(text)]
    if side := topology.MATRIX_UNIT_SIDE.get(topology.parse(name)[0]):
      products = hlo_estimates.products(text)
      facts["estimated_cycles"] = hlo_estimates.cycles(text)
      facts["product_flops"] = sum(one.flops for one in products)
      facts["padded_product_flops"] = sum(one.padded_flops(side) for one in products)
  memory["activations and temporaries"] = max(total - sum(memory.values()), 0)
  memory |= {"total": total, "has": has}
  return facts | {
    "memory_bytes": memory,
    "fits": has is None or total <= has,
    "compile_seconds": round(time.time() - start, 1),
  }


def _exhausted(message: str) -> tuple[int, ...] | None:
  """(bytes needed per chip, bytes it has) from the compiler's message; None for other messages."""
  match = _TEMPORARIES_EXCEED.search(message) or _ALL_EXCEEDS.search(message)
  return tuple(map(_read_size, match.groups())) if match else None


def report(
  config: ConfigDict, name: str, num_pairs: int | None, console: Console
) -> dict[str, Any]:
  """Compiles, shows the result, and fails when the step does not fit.

  Args:
    config: the resolved config.
    name: of the topology.
    num_pairs: training pairs; None for those of the configured dataset.
    console: shows the result.

  Returns:
    As `measure`.

  Raises:
    UserError: it does not fit, or as `measure`.
  """
  num_pairs = known_pairs(config) if num_pairs is None else num_pairs
  if num_pairs < 1:
    raise UserError(f"--num_pairs={num_pairs}: must be at least 1")
  facts = measure(config, name, num_pairs)
  console.compile_report(facts)
  memory = facts["memory_bytes"]
  if not facts["fits"]:
    over = (memory["total"] - memory["has"]) / topology.GIB
    raise UserError(
      f"does not fit {name}: {memory['total'] / topology.GIB:.2f} GiB per chip, {over:.2f} GiB too"
      " much; use more chips, config.mesh.fsdp, config.model.remat=True or"
      " config.gradient_accumulation"
    )
  return facts


def known_pairs(config: ConfigDict) -> int:
  """Training pairs of the configured dataset, as published or as it will be drawn.

  Raises:
    UserError: the number is not known, or an option of the dataset is wrong.
  """
  name = config.dataset.name
  if name == "synth_pedes":
    options = dict(config.dataset.options)
    options.pop("workers", None)  # draw the images
    preset = options.pop("preset", "default")
    if preset not in PRESETS:
      raise UserError(f"config.dataset.options.preset={preset!r}: choose from {', '.join(PRESETS)}")
    drawn = PRESETS[preset].replace(**options)
    return drawn.train_people * drawn.images_per_person * drawn.captions_per_image
  for release in catalog.LAYOUTS[name].releases if name in catalog.LAYOUTS else ():
    if "train" in release.splits:
      return release.splits["train"].captions
  raise UserError(
    f"--num_pairs is missing: how many training pairs config.dataset.name={name} has is not known"
  )


def _counted_flops(config: ConfigDict, num_pairs: int, devices: int) -> float:
  """FLOPs per device and step, counted analytically, as if every parameter were trained."""
  size, views = dual_encoder.SIZES[config.model.name], 2 if config.loss.weights.consistency else 1
  pair = flops.train_pair_flops(
    size,
    config.dataset.image_size,
    config.tokenizer.context_length,  # captions are compiled at full length
    views,
    config.model.full_last_block,
    config.augment.patch_drop_ratio,
  )
  batch, dim, settings = config.batch_size, size.feature_width, config.global_association
  k = settings.k if config.loss.weights["global"] else 0
  total = batch * pair + flops.loss_flops(batch, dim, k)
  searched = 0  # features that are compared with all rows of a modality's bank
  if mining.searches_bank(config.loss.weights["global"], config.caption_exchange.prob):
    searched += batch * (2 if settings.anchor == "both" else 1)
    searched += batch * settings.k if config.strict_mining.reciprocal else 0
  if config.bank.gate == "rank":
    searched += batch
  total += flops.bank_flops(searched, num_pairs, dim)
  return total / devices


def _plain(collective: hlo_collectives.Collective) -> dict[str, Any]:
  """A collective as numbers and strings."""
  return {
    "kind": collective.kind,
    "shapes": " ".join(f"{kind}[{','.join(map(str, dims))}]" for kind, dims in collective.shapes),
    "bytes": collective.bytes,
    "times": collective.times,
    "looped": collective.in_loop,
    "of_bank": pathlib.PurePath(collective.source.split(":")[0]).name in BANK_FILES,
    "source": f"{collective.op_name} {_importable(collective.source)}".strip(),
  }


def _importable(source: str) -> str:
  """A source file as it is imported, without the folder of its installation."""
  for folder in sorted(filter(None, sys.path), key=len, reverse=True):
    if source.startswith(f"{folder}/"):
      return source.removeprefix(f"{folder}/")
  return source


def _read_size(text: str) -> int:
  """Parses a size: "15.75G" -> bytes."""
  units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  return int(float(text.rstrip("KMGT")) * units.get(text[-1], 1))
