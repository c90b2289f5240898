"""Checks of settings: each raises UserError in one line that names the field."""

import functools
import math
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from dgia_jax.errors import UserError
from dgia_jax.method import learnable_temperature, lora, trainable


def get(config: ConfigDict, field: str) -> Any:
  """The value of a field by its dotted name."""
  return functools.reduce(lambda group, name: group[name], field.split("."), config)


def numbers(config: ConfigDict, field: str) -> tuple:
  """The number of a field, or the numbers of a tuple.

  Raises:
    UserError: for anything else, NaN included.
  """
  value = get(config, field)
  values = value if isinstance(value, tuple) else (value,)
  if not all(isinstance(n, int | float) and not math.isnan(n) for n in values):
    raise UserError(f"config.{field}={value!r}: give a number")
  return values


def check_positive(config: ConfigDict, fields: Iterable[str]) -> None:
  for field in fields:
    (number,) = numbers(config, field)
    if not 0 < number < math.inf:
      raise UserError(f"config.{field}={number}: must be positive")


def check_range(config: ConfigDict, field: str, low: float, high: float) -> None:
  if not all(low <= number <= high for number in numbers(config, field)):
    raise UserError(f"config.{field}={get(config, field)}: must lie in [{low}, {high}]")


def check_smallest_and_largest(config: ConfigDict, field: str) -> None:
  values = numbers(config, field)
  if len(values) != 2 or values[0] > values[1]:
    raise UserError(f"config.{field}={get(config, field)}: give the smallest and the largest")
  if values[0] <= 0:  # sizes are drawn on a logarithmic scale
    raise UserError(f"config.{field}={get(config, field)}: the smallest must be above 0")


def check_trainable(config: ConfigDict) -> None:
  """Checks freezing, LoRA, the average of the weights and the learnable temperature."""
  for tower in trainable.TOWERS:
    num_blocks = config.freeze[f"{tower}_blocks"]
    if num_blocks < trainable.WHOLE_TOWER:
      whole = f"{trainable.WHOLE_TOWER} for the whole tower"
      raise UserError(f"config.freeze.{tower}_blocks={num_blocks}: give a number, or {whole}")
  matrices = config.lora.matrices
  known = tuple(lora.MATRICES)
  if not matrices or any(matrices.count(m) > 1 or m not in known for m in matrices):
    raise UserError(f"config.lora.matrices={matrices}: give some of {', '.join(known)}, each once")
  if not 0 <= numbers(config, "ema.decay")[0] < 1:
    raise UserError(f"config.ema.decay={config.ema.decay}: must lie in [0, 1); 0 = off")
  low, high = learnable_temperature.MIN_TEMPERATURE, learnable_temperature.MAX_TEMPERATURE
  if config.loss.learnable_temperature and not low <= config.loss.temperature <= high:
    raise UserError(
      f"config.loss.temperature={config.loss.temperature}: a learnable temperature lies in"
      f" [{low}, {high}]"
    )
