"""The weights of a run for all that comes after its training: to convert, index, measure or go on.

The parameters of a run may hold more than the model: LoRA's pairs, a learned temperature, an
average of the weights. Here they become the two towers.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dgia_jax import cli
from dgia_jax.method import ema, learnable_temperature, scored_weights, trainable
from dgia_jax.models import pretrained
from dgia_jax.training import checkpoint
from dgia_jax.training import workdir as workdir_lib


class RunWeights(NamedTuple):
  """The weights of one checkpoint."""

  step: int  # of the checkpoint
  params: dict[str, Any]  # both towers as NumPy arrays, LoRA merged
  temperature: float  # learned or configured
  kind: str  # "raw", or "ema" for their average


def load(
  folder: pathlib.Path | str,
  choice: str = "best",
  weights: str = "",
  *,
  setting: str = "--workdir",
  notify: checkpoint.Notify = cli.print_to_stderr,
) -> RunWeights:
  """Reads the weights of a run, which may be training; nothing is written.

  Args:
    folder: working directory of the run.
    choice: "best" or "last" checkpoint.
    weights: "raw", "ema" for their average, or "" for those that the run's scores are of.
    setting: the name of `folder` in error messages.
    notify: as in `checkpoint.restore_params`.

  Raises:
    UserError: the folder holds no run, no complete checkpoint, or no average of the weights.
  """
  config = workdir_lib.read_config(folder, setting)
  weights = weights or _group(config, "eval").get("weights", "raw")
  step, params, kind = checkpoint.restore_params(folder, choice, notify, weights)
  temperature = learnable_temperature.temperature_of(params, config["loss"]["temperature"])
  towers = trainable.towers(params, _group(config, "lora").get("alpha", 0.0))
  return RunWeights(step, jax.device_get(towers), float(temperature), kind)


def kinds(folder: pathlib.Path | str) -> tuple[str, ...]:
  """The values of `weights` that `load` takes for a run; ("raw",) for anything else."""
  folder = pretrained.local_copy(folder, "--run")
  if workdir_lib.is_run(folder) and ema.is_on(_group(workdir_lib.read_config(folder), "ema")):
    return scored_weights.KINDS
  return scored_weights.KINDS[:1]


def _group(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """A group of settings, which the config of an earlier release lacks."""
  return config.get(name, {})
