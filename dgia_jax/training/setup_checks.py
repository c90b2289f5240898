"""Checks that a config fits the devices that are there and the model that it names."""

import pathlib
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from dgia_jax import config as config_lib
from dgia_jax import sharding
from dgia_jax.config_ranges import get
from dgia_jax.errors import UserError
from dgia_jax.method import memory_bank, trainable
from dgia_jax.models import dual_encoder
from dgia_jax.training import workdir as workdir_lib


def training_mesh(
  config: ConfigDict, devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """The config's mesh, if the memory bank and the batch divide over it.

  Args:
    config: the resolved config.
    devices: by default, all devices of all processes.

  Raises:
    UserError: they do not, or the mesh does not fit the devices.
  """
  mesh = sharding.create_mesh(**config.mesh, devices=devices)
  check_devices(mesh)
  check_batch(config, mesh)
  return mesh


def evaluation_mesh(
  config: ConfigDict, workdir: pathlib.Path | str, notify: Callable[[str], None]
) -> jax.sharding.Mesh:
  """The config's mesh, or all devices along the batch where that of a stored run does not fit them.

  Args:
    config: the resolved config.
    workdir: the run's working directory.
    notify: receives one line where the run's mesh does not fit.

  Raises:
    UserError: a mesh that is not the run's own does not fit the devices, or the memory bank cannot
      be split over them.
  """
  try:
    mesh = sharding.create_mesh(**config.mesh)
  except UserError:
    if not workdir_lib.is_claimed(workdir):
      raise
    stored = config_lib.from_stored(workdir_lib.read_config(workdir)).mesh
    if stored.to_dict() != config.mesh.to_dict():
      raise
    mesh = sharding.create_mesh()
    sizes = " ".join(f"mesh.{axis}={size}" for axis, size in stored.items())
    notify(
      f"{sizes} of the run's training does not fit {mesh.size} device(s): evaluating with"
      f" mesh.data={mesh.size} mesh.fsdp=1 mesh.tensor=1"
    )
  check_devices(mesh)
  return mesh


def check_devices(mesh: jax.sharding.Mesh) -> None:
  """Checks that the rows of the memory bank can be split over all devices.

  Raises:
    UserError: they cannot.
  """
  multiple, count = memory_bank.ROW_MULTIPLE, mesh.size
  if multiple % count:
    usable = [number for number in range(1, multiple + 1) if multiple % number == 0]
    fewer = max(number for number in usable if number < count)
    raise UserError(
      f"mesh.data x mesh.fsdp x mesh.tensor = {count} device(s) cannot share the memory bank: their"
      f" number must divide {multiple:,}; use {fewer} (of GPUs, set CUDA_VISIBLE_DEVICES), or"
      f" another of {', '.join(map(str, usable[:12]))}, ..."
    )


def check_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
  """Checks that the batch divides over the mesh and over the parts of gradient accumulation.

  Raises:
    UserError: the batch does not divide.
  """
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


def check_trainable(config: ConfigDict) -> None:
  """Checks that the towers are as deep and as wide as freezing and LoRA need, and are trained.

  Raises:
    UserError: they are not.
  """
  tokenizer = config.tokenizer
  for field in ("freeze.text_blocks", "lora.rank"):
    frozen = get(config, field)
    if tokenizer.new_words and not tokenizer.name and config.pretrained and frozen:
      raise UserError(
        f"config.tokenizer.new_words={tokenizer.new_words}: new words are learned below the first"
        f" block of the text tower, which config.{field}={frozen} freezes; set one of them to 0"
      )
  if config.model.name not in dual_encoder.SIZES:
    return  # creating the model reports it
  size, rank, trained = dual_encoder.SIZES[config.model.name], config.lora.rank, []
  for tower, frozen in config_lib.frozen_blocks(config).items():
    depth, width = getattr(size, tower).depth, getattr(size, tower).width
    if frozen > depth:
      raise UserError(
        f"config.freeze.{tower}_blocks={frozen}: the {tower} tower of config.model.name="
        f"{config.model.name} has {depth} blocks"
      )
    if rank > width:
      raise UserError(
        f"config.lora.rank={rank}: the {tower} tower of config.model.name={config.model.name} is"
        f" {width} wide; give a lower rank"
      )
    if frozen != trainable.WHOLE_TOWER and not (rank and frozen == depth):
      trained.append(tower)
  if not trained:
    raise UserError(
      "config.freeze.image_blocks and config.freeze.text_blocks leave nothing to train; lower one"
    )
