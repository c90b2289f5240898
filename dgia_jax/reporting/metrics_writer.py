"""Writes the numbers of a run: `metrics.jsonl`, TensorBoard, wandb; measures throughput.

Lines are flushed one by one, so that a kill at any moment loses none. A line that a kill cut short
is dropped when the run resumes.
"""

import datetime
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorboardX
from PIL import Image

from dgia_jax import files
from dgia_jax.errors import UserError
from dgia_jax.reporting.wandb_mirror import WandbMirror

METRICS = "metrics.jsonl"
_NO_VALUES = ("step", "epoch", "split", "time")  # in a line: where its values belong


class MetricsWriter:
  """Appends to `metrics.jsonl` and to TensorBoard events, which a `WandbMirror` gets, too.

  Raises:
    UserError: a line of `metrics.jsonl` other than the last is damaged.
  """

  def __init__(
    self,
    workdir: pathlib.Path | str,
    steps_done: int | None = None,
    active: bool = True,
    mirror: WandbMirror | None = None,
    is_evaluated: bool = True,
  ) -> None:
    """Opens both files.

    Args:
      workdir: is created if it does not exist.
      steps_done: steps after which training continues. Lines of later steps are dropped, because
        these steps are repeated; 0 drops all lines. None keeps every line, for a run that only
        evaluates.
      active: False on every process but the first: nothing is read or written.
      mirror: gets every point and image that TensorBoard gets; None for none.
      is_evaluated: False if the evaluation after `steps_done` is to be repeated: lines that an
        interrupted one wrote are dropped, too.
    """
    self._lines = self._events = None
    self._mirror = mirror
    if not active:
      return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path, kept = workdir / METRICS, []
    if path.exists():
      kept = _kept_lines(path, steps_done, is_evaluated)
      files.write_text(path, "".join(kept))
    self._lines = path.open("a", encoding="utf-8")
    # TensorBoard hides earlier events from this step on.
    purge_step = steps_done + 1 if steps_done and is_evaluated else steps_done
    # The file's name has a resolution of one second. A suffix keeps a quick restart from
    # overwriting the earlier file.
    self._events = tensorboardX.SummaryWriter(
      str(workdir), purge_step=purge_step, filename_suffix=f".{time.time_ns()}"
    )
    if not is_evaluated:  # what training wrote about the same step is hidden, too
      for line in map(json.loads, kept):
        if line["step"] == steps_done and line.get("split") == "train":
          self._write_events(steps_done, _points(line))

  def write(self, step: int, epoch: int, split: str, values: Mapping[str, object]) -> None:
    """Writes one line, and one TensorBoard point `split/name` per number.

    The line also gets `time`, the UTC time in ISO 8601.

    Args:
      step: optimiser steps done.
      epoch: counted from 1.
      split: "train", or the split that was evaluated.
      values: numbers, None, or dicts of them such as {"t2i": {"R1": ..}}. None and numbers that
        are not finite become null in the file and no point in TensorBoard.
    """
    if self._lines is None:
      return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = {"step": int(step), "epoch": int(epoch), "split": split, "time": now}
    if reserved := line.keys() & values.keys():
      raise ValueError(f"values must not contain {', '.join(sorted(reserved))}")
    line |= files.jsonable(values)
    self._lines.write(json.dumps(line, allow_nan=False) + "\n")
    self._lines.flush()
    points = _points(line)
    self._write_events(int(step), points)
    if self._mirror is not None:
      self._mirror.scalars(int(step), points)

  def _write_events(self, step: int, points: Mapping[str, float]) -> None:
    for name, value in points.items():
      self._events.add_scalar(name, value, step)
    self._events.flush()

  def write_image(self, step: int, name: str, path: pathlib.Path | str) -> None:
    """Adds an image file to TensorBoard under `name`."""
    if self._events is None:
      return
    with Image.open(path) as image:
      pixels_HxWx3 = np.asarray(image.convert("RGB"))
    self._events.add_image(name, pixels_HxWx3, int(step), dataformats="HWC")
    self._events.flush()
    if self._mirror is not None:
      self._mirror.image(int(step), name, pathlib.Path(path))

  def close(self) -> None:
    """Closes both files and the mirror."""
    if self._lines is not None:
      self._lines.close()
      self._events.close()
    if self._mirror is not None:
      self._mirror.close()

  def __enter__(self):
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()


class Speed(NamedTuple):
  """The speed of an interval; every field is None if nothing can be measured yet."""

  pairs_per_second: float | None
  step_seconds: float | None  # of the interval, on average
  input_wait: float | None  # share of the interval in which the device waited for input, 0 to 1
  seconds_left: float | None  # until the end of training, evaluations included


class SpeedMeter:
  """Computes throughput, remaining time and input wait from times that its user passes in."""

  def __init__(self, pairs_per_step: int, total_steps: int) -> None:
    """`pairs_per_step`: the global batch size. `total_steps`: steps of the whole run."""
    self._pairs_per_step, self._total_steps = pairs_per_step, total_steps
    self._origin = self._last = None
    self._waited = 0.0

  def start(self, step: int, now: float) -> None:
    """Starts an interval at `step` steps done and time `now` in seconds.

    Call it after the first step, so that one-time work counts nowhere, and after every evaluation
    or save, so that these count in the remaining time but not in the throughput.
    """
    self._last, self._waited = (step, now), 0.0
    self._origin = self._origin or self._last

  def wait(self, seconds: float) -> None:
    """Counts `seconds` of the interval as waiting for input."""
    self._waited += seconds

  def read(self, step: int, now: float) -> Speed:
    """Ends the interval at `step` steps done and starts the next one."""
    steps, seconds = step - self._last[0], now - self._last[1]
    if steps <= 0 or seconds <= 0:
      return Speed(None, None, None, None)
    share, self._last, self._waited = self._waited / seconds, (step, now), 0.0
    average = (now - self._origin[1]) / (step - self._origin[0])
    return Speed(
      pairs_per_second=steps * self._pairs_per_step / seconds,
      step_seconds=seconds / steps,
      input_wait=share,
      seconds_left=average * (self._total_steps - step),
    )


def _kept_lines(path: pathlib.Path, steps_done: int | None, is_evaluated: bool) -> list[str]:
  """The lines of `path`, with line ends, that a run resuming after `steps_done` keeps."""
  try:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error}); move it away to start a new one") from error
  kept = []
  for number, line in enumerate(lines, start=1):
    try:
      values = json.loads(line)
      step, split = values["step"], values.get("split")
      if not isinstance(step, int):
        raise TypeError("the step is not a number")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
      if number == len(lines):
        break
      raise UserError(
        f"{path} line {number} is not a line of metrics: remove that line, or the file"
      ) from error
    # A run that resumes at 0 repeats everything, even an evaluation at step 0.
    is_repeated = step == steps_done and split != "train" and not is_evaluated
    if steps_done is None or (steps_done > 0 and step <= steps_done and not is_repeated):
      kept.append(line + "\n")
  return kept


def _points(line: Mapping[str, Any]) -> dict[str, float]:
  """The points of TensorBoard, by name, that the values of a line are."""
  values = {name: value for name, value in line.items() if name not in _NO_VALUES}
  flat = _flat(values, f"{line['split']}/")
  return {name: value for name, value in flat if value is not None}


def _flat(values: Mapping, prefix: str = "") -> Iterator[tuple[str, float | None]]:
  """Yields (name, value) of a nested dict, with names joined by slashes."""
  for name, value in values.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{prefix}{name}/")
    else:
      yield prefix + name, value
