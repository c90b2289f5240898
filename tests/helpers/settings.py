"""The names of all settings of a config."""

from collections.abc import Iterator

from ml_collections import ConfigDict


def leaves(config: ConfigDict, prefix: str = "") -> Iterator[str]:
  """Dotted names of all settings; an empty group counts as one."""
  for name, value in config.items():
    if isinstance(value, ConfigDict) and len(value):
      yield from leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"
