"""Configs with changed settings, and the names of all settings."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from dgia_jax import config as config_lib


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
  """Dotted names of all settings; an empty group counts as one."""
  for name, value in config.items():
    if isinstance(value, ConfigDict) and len(value):
      yield from leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"


def change(config: ConfigDict, **fields: Any) -> None:
  """Replaces fields of a config; "__" stands for the dot."""
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})


def changed(**fields: Any) -> ConfigDict:
  """The default config with fields replaced, as `change` takes them."""
  config = config_lib.base()
  change(config, **fields)
  return config
