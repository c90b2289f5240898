"""Weights & Biases as a second place for the numbers and pictures that TensorBoard gets.

The package is optional, and so is its server: whatever fails there is reported once, and training
goes on. Numbers are drawn over the step of the run rather than wandb's own counter, because a run
that resumes repeats steps, and wandb drops points that go back.
"""

import pathlib
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from dgia_jax import files
from dgia_jax.errors import UserError

RUN_ID = "wandb_run_id.txt"  # in the working directory; a run that resumes continues the same one
STEP = "step"


class WandbMirror:
  """One wandb run; `scalars` and `image` never raise."""

  def __init__(
    self,
    project: str,
    workdir: pathlib.Path,
    settings: Mapping[str, Any],
    notify: Callable[[str], None],
  ) -> None:
    """Starts the run, or continues the one that this working directory started.

    Args:
      project: name of the project.
      workdir: working directory of the run, whose name becomes that of the wandb run.
      settings: of the run, shown beside the numbers.
      notify: receives the address of the run, and one line if wandb fails.

    Raises:
      UserError: the package is not installed.
    """
    self._wandb, self._notify, self._run = package(), notify, None
    self._guarded(self._start, project, workdir, settings)

  def _start(self, project: str, workdir: pathlib.Path, settings: Mapping[str, Any]) -> None:
    path = workdir / RUN_ID
    if not path.exists():
      files.write_text(path, uuid.uuid4().hex[:8])
    self._run = self._wandb.init(
      project=project,
      name=workdir.name,
      id=path.read_text(encoding="utf-8").strip(),
      resume="allow",
      dir=str(workdir),
      config=dict(settings),
      settings=self._wandb.Settings(silent=True, console="off"),
    )
    self._run.define_metric("*", step_metric=STEP)
    if not self._run.offline:
      self._notify(f"wandb: {self._run.url}")

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Sends numbers by name."""
    self._guarded(lambda: self._run.log({STEP: step, **values}))

  def image(self, step: int, name: str, path: pathlib.Path) -> None:
    """Sends an image file."""
    self._guarded(lambda: self._run.log({STEP: step, name: self._wandb.Image(str(path))}))

  def close(self) -> None:
    """Waits until everything is sent, or written in wandb's offline mode."""
    self._guarded(lambda: self._run.finish())

  def _guarded(self, call: Callable[..., None], *arguments: Any) -> None:
    """Calls unless wandb has failed; its first failure is its last call."""
    if self._wandb is None:
      return
    try:
      call(*arguments)
    except Exception as error:  # it must not stop training, however it fails
      self._wandb = None
      reason = " ".join(str(error).split())[:200] or type(error).__name__
      self._notify(f"wandb failed, and gets nothing from here on: {reason}")


def package() -> Any:
  """The package wandb.

  Raises:
    UserError: it is not installed.
  """
  try:
    import wandb
  except ImportError as error:
    raise UserError("config.wandb.project needs wandb: pip install 'dgia_jax[wandb]'") from error
  return wandb
