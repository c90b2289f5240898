"""Records a profile of a few training steps, for XProf or TensorBoard."""

import pathlib

import jax
from clu import profiler
from ml_collections import ConfigDict

from dgia_jax import remote
from dgia_jax.reporting.console import Console

FOLDER = "profile"


class StepProfiler:
  """Profiles the steps that `config.profile` asks for, on the first process.

  The first step of a process is never profiled, because it contains one-time work.
  """

  def __init__(
    self, config: ConfigDict, workdir: pathlib.Path, steps_done: int, console: Console
  ) -> None:
    """`steps_done`: steps that were done before this process started."""
    settings = config.profile
    is_active = settings.steps > 0 and jax.process_index() == 0
    self._start = max(settings.start_step, steps_done + 2) if is_active else None
    self._stop = self._start + settings.steps - 1 if is_active else None
    self._folder, self._console = workdir / FOLDER, console
    self._shown_folder = remote.origin(workdir) / FOLDER
    self._is_running = False

  def before_step(self, step: int) -> None:
    """Starts the profile if `step` is its first one."""
    if step == self._start:
      profiler.start(str(self._folder))
      self._is_running = True

  def after_step(self, step: int, output: tuple) -> None:
    """Ends the profile if `step` is its last one, after waiting for that step's output."""
    if step == self._stop:
      jax.block_until_ready(output)
      self.close()

  def close(self) -> None:
    """Ends the profile if it is still running."""
    if self._is_running:
      profiler.stop()
      self._is_running = False
      self._console.print(
        f"profile written to {self._shown_folder}; to look at it: pip install xprof, then"
        f" xprof --logdir {self._shown_folder}"
      )
