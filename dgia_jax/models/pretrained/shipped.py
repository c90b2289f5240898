"""Models that the package ships, by name, such as `mini`.

Each is a folder as `dgia_jax.convert` writes it; its README.md says how it was made.
"""

import os
import pathlib

from dgia_jax import remote

FOLDER = pathlib.Path(__file__).parents[1] / "shipped"


def names() -> list[str]:
  """Names of the shipped models, sorted."""
  return sorted(path.name for path in FOLDER.glob("[a-z]*") if path.is_dir())


def is_shipped(source: str | os.PathLike) -> bool:
  """Whether `source` is the name of a shipped model; a folder of that name is `./NAME`."""
  return isinstance(source, str) and source in names()


def local_copy(source: str | os.PathLike, setting: str) -> pathlib.Path:
  """Where a model is on this machine.

  Args:
    source: the name of a shipped model, a local path, in which `~` is expanded, or one at gs://.
      Any other name stays as it is: it may be one on the Hugging Face hub.
    setting: the setting or flag that holds it, for error messages.

  Raises:
    UserError: as `remote.local_copy`.
  """
  if is_shipped(source):
    return FOLDER / str(source)
  return remote.local_copy(source, setting)
