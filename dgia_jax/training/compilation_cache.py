"""Keeps compiled programs on disk, so that later starts of a run need not compile them again.

JAX's own environment variables have the last word: `JAX_COMPILATION_CACHE_DIR` names another
folder, and `JAX_ENABLE_COMPILATION_CACHE=false` switches the cache off.

Programs for several CPU devices are not cached. XLA 0.10 loses the order of their exchanges when it
loads them, and the devices then wait for each other until XLA aborts the process. Its flag
`--xla_cpu_enable_concurrency_optimized_scheduler=false` avoids that, and the cache stays on.
"""

import os
import pathlib

import jax

_SEQUENTIAL = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def default_folder() -> pathlib.Path:
  """`~/.cache/dgia_jax/compiled`, or the same below `$XDG_CACHE_HOME`."""
  cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(cache) / "dgia_jax" / "compiled"


def enable() -> None:
  """Chooses `default_folder` unless the user has chosen a folder or switched the cache off.

  Starts JAX's backend, so the processes of a run must know each other before.
  """
  if jax.default_backend() == "cpu" and jax.device_count() > 1:
    if _SEQUENTIAL not in os.environ.get("XLA_FLAGS", ""):
      jax.config.update("jax_enable_compilation_cache", False)
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(default_folder()))


def folder() -> str | None:
  """The folder that JAX uses at present, or None if nothing is cached."""
  if not jax.config.jax_enable_compilation_cache:
    return None
  return jax.config.jax_compilation_cache_dir or None
