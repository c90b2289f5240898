"""Keeps compiled programs on disk, so that later starts of a run need not compile them again.

JAX's own environment variables have the last word: `JAX_COMPILATION_CACHE_DIR` names another
folder, and `JAX_ENABLE_COMPILATION_CACHE=false` switches the cache off.
"""

import os
import pathlib

import jax


def default_folder() -> pathlib.Path:
  """`~/.cache/dgia_jax/compiled`, or the same below `$XDG_CACHE_HOME`."""
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(cache) / "dgia_jax" / "compiled"


def enable() -> None:
  """Chooses `default_folder` unless the user has chosen a folder or switched the cache off."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(default_folder()))


def folder() -> str | None:
  """The folder that JAX uses at present, or None if nothing is cached."""
  if not jax.config.jax_enable_compilation_cache:
    return None
  return jax.config.jax_compilation_cache_dir or None
