"""Numbers a run leaves behind: JSON files, metrics by step, TensorBoard events, and its speed.

What is written here survives a kill at any moment: whole files are replaced in one move, lines are
flushed one by one, and a line cut short is dropped when the run resumes.
"""

import json
import math
import os
import pathlib
import time

import jax
import numpy as np
import tensorboardX

from dgia_jax.errors import UserError


def write_json(path, value):
  """Writes `value` as indented, sorted JSON; `path` holds the old or the new text, never half.

  NumPy and JAX numbers and arrays become numbers and lists, NaN and infinities become null.
  """
  _replace(path, json.dumps(_plain(value), indent=2, sort_keys=True, allow_nan=False) + "\n")


class MetricsWriter:
  """Appends to `metrics.jsonl` and to TensorBoard events in a work directory.

  Args:
    workdir: made when absent.
    resume_step: the step that training continues after. Lines of later steps, written before the
      restart and about to be written again, are dropped; at 0 all are. None keeps every line, for
      a run that only evaluates.
    active: False on every process but the first: nothing is read or written.

  Raises:
    UserError: `metrics.jsonl` holds a damaged line other than the last. (A last line cut short by
      a kill is dropped.)
  """

  def __init__(self, workdir, resume_step=None, active=True):
    self._lines = self._events = None
    if not active:
      return
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "metrics.jsonl"
    if path.exists():
      _replace(path, "".join(_kept_lines(path, resume_step)))
    self._lines = path.open("a", encoding="utf-8")
    # TensorBoard hides earlier events from this step on.
    purge_step = resume_step + 1 if resume_step else resume_step
    # The file is named by the second, and a quick restart must not overwrite it: hence the suffix.
    self._events = tensorboardX.SummaryWriter(
      str(workdir), purge_step=purge_step, filename_suffix=f".{time.time_ns()}"
    )

  def write(self, step, epoch, split, values):
    """Writes one line, and one TensorBoard point per number under the tag `split/name`.

    Args:
      step: optimiser steps done.
      epoch: counted from 1.
      split: "train", or the split that was evaluated.
      values: numbers, None, or dicts of them such as {"t2i": {"R1": ..}}. What is None or not
        finite becomes null in the file and no point in TensorBoard.
    """
    if self._lines is None:
      return
    values = _plain(values)
    line = {"step": int(step), "epoch": int(epoch), "split": split}
    if line.keys() & values.keys():
      raise ValueError(f"values must not hold any of {', '.join(line)}")
    self._lines.write(json.dumps({**line, **values}, allow_nan=False) + "\n")
    self._lines.flush()
    for name, value in _flat(values):
      if value is not None:
        self._events.add_scalar(f"{split}/{name}", value, int(step))
    self._events.flush()

  def close(self):
    """Closes both files; nothing can be written afterwards."""
    if self._lines is not None:
      self._lines.close()
      self._events.close()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()


class SpeedMeter:
  """Speed, time left and time lost, from the times it is told. Reads no clock itself."""

  def __init__(self, pairs_per_step, total_steps):
    """`pairs_per_step`: the global batch size. `total_steps`: of the whole run."""
    self._pairs_per_step, self._total_steps = pairs_per_step, total_steps
    self._origin = self._last = None
    self._waited = 0.0

  def start(self, step, now):
    """Begins an interval at `step` steps done and time `now` in seconds.

    To be called after the first step, whose compilation then counts nowhere, and after every
    evaluation or save, which then counts in the time left but not in the pairs per second.
    """
    self._last, self._waited = (step, now), 0.0
    self._origin = self._origin or self._last

  def wait(self, seconds):
    """Counts `seconds` of the interval as lost to waiting for the input."""
    self._waited += seconds

  def read(self, step, now):
    """Ends the interval and begins the next one.

    Returns:
      Pairs per second, seconds left, and the share of the interval lost to waiting, 0 to 1. All are
      None when there is nothing to measure: no step, or no time, since `start`.
    """
    steps, seconds = step - self._last[0], now - self._last[1]
    if steps <= 0 or seconds <= 0:
      return None, None, None
    share, self._last, self._waited = self._waited / seconds, (step, now), 0.0
    seconds_per_step = (now - self._origin[1]) / (step - self._origin[0])
    seconds_left = seconds_per_step * (self._total_steps - step)
    return steps * self._pairs_per_step / seconds, seconds_left, share


def _replace(path, text):
  """Puts `text` at `path` in one move, so that a kill leaves the old file or the new one."""
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.partial")
  with temporary.open("w", encoding="utf-8") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def _kept_lines(path, resume_step):
  """Lines of `path` that a run resuming after `resume_step` keeps, each with its line end."""
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  kept = []
  for number, line in enumerate(lines, start=1):
    try:
      step = json.loads(line)["step"]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
      if number == len(lines):
        break
      raise UserError(
        f"{path} line {number} is not a line of metrics: remove that line, or the file"
      ) from error
    # A run that resumes at 0 starts anew: it also evaluates at step 0 again, if it ever does.
    if resume_step is None or (resume_step > 0 and step <= resume_step):
      kept.append(line + "\n")
  return kept


def _plain(value):
  """Nested dicts and lists of Python's own types, with None for what JSON cannot say."""
  if isinstance(value, dict):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, jax.Array):
    value = jax.device_get(value)
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return os.fspath(value) if isinstance(value, os.PathLike) else value


def _flat(values, prefix=""):
  """(name, value) of a nested dict, names joined by slashes."""
  for name, value in values.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{prefix}{name}/")
    else:
      yield prefix + name, value
