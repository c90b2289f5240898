"""What a person sees of a run: tables, and a live bar on a terminal or plain lines elsewhere.

Numbers also go to files (`logs.py`); nothing here is meant to be parsed.
"""

import math

import jax
import numpy as np
import rich.box
import rich.console
import rich.live
import rich.progress
import rich.table
import rich.text

LOSS_PARTS = ("itc", "local", "global", "consistency")
DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}
SCORES = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "mAP": "mAP", "mINP": "mINP"}


class Console:
  """Tables and lines, for the first process of a run.

  Args:
    active: False on every process but the first: nothing is shown.
    file: where to, instead of standard output.
  """

  def __init__(self, active=True, file=None):
    self._rich = rich.console.Console(
      file=file, quiet=not active, markup=False, emoji=False, highlight=False
    )

  def print(self, text, style=""):
    """One line, never wrapped, so that commands and paths can be copied."""
    _print_line(self._rich, text, style)

  def dataset_summary(self, name, splits, image_size):
    """The size of every split: {"train": PairTable, ..}; `image_size` is (height, width)."""
    table = _table("split", "images", "captions", "persons")
    for split, pairs in splits.items():
      persons = len(np.unique(pairs.person_of_image_M))
      table.add_row(split, f"{pairs.num_images:,}", f"{pairs.num_pairs:,}", f"{persons:,}")
    height, width = image_size
    self._show(f"{name}: images of {height} x {width} pixels (height x width)", table)

  def parameter_overview(self, params):
    """The size of every part of a nested dict of arrays, or of their shapes and dtypes.

    A part is what shares the first two names of its path.
    """
    arrays, numbers, size = {}, {}, {}
    for path, leaf in jax.tree.leaves_with_path(params):
      part = "/".join(str(entry.key) for entry in path[:2])
      arrays[part] = arrays.get(part, 0) + 1
      numbers[part] = numbers.get(part, 0) + math.prod(leaf.shape)
      size[part] = size.get(part, 0) + math.prod(leaf.shape) * leaf.dtype.itemsize
    table = _table("part", "arrays", "numbers", "MB")
    for part in numbers:
      table.add_row(part, f"{arrays[part]:,}", f"{numbers[part]:,}", f"{size[part] / 1e6:,.1f}")
    table.add_section()
    total = [sum(column.values()) for column in (arrays, numbers, size)]
    table.add_row("total", f"{total[0]:,}", f"{total[1]:,}", f"{total[2] / 1e6:,.1f}", style="bold")
    self._show("parameters", table)

  def training(self, steps_per_epoch, num_epochs, start_step=0):
    """A context in which training reports its progress: see `TrainingProgress`."""
    return TrainingProgress(self._rich, steps_per_epoch, num_epochs, start_step)

  def evaluation(self, title, scores, unmatched=0):
    """Scores of one evaluation.

    Args:
      title: what was evaluated, such as "val, epoch 3".
      scores: {"t2i": {"R1": .., ..}, "i2t": {..}}, percent.
      unmatched: queries that had no correct item and are in no mean.
    """
    table = _table("", *SCORES.values())
    for direction, name in DIRECTIONS.items():
      table.add_row(name, *_percents(scores[direction]))
    self._show(title, table)
    if unmatched:
      self.print(f"{unmatched:,} queries without a correct item are left out.", style="yellow")

  def final(self, split, results):
    """Scores of the last and the best epoch on `split`, out of what `results.json` holds.

    Args:
      split: the scores are of this split.
      results: {"last": {"epoch", "t2i", "i2t"}, "best": {.., "selected_on"}, "best_by_split":
        {split: as "best"}}; each may be absent. A split that "best" was not chosen on adds a row.
    """
    table = _table("", *SCORES.values())
    rows = [("last", results.get("last")), ("best", results.get("best"))]
    chosen_on = results.get("best", {}).get("selected_on")
    others = results.get("best_by_split", {}).items()
    rows += [("best", found) for split, found in others if split != chosen_on]
    for model, found in rows:
      if found is None:
        continue
      chosen = f" on {found['selected_on']}" if "selected_on" in found else ""
      table.add_row(f"{model}{chosen}: epoch {found['epoch']}", style="bold")
      for direction, name in DIRECTIONS.items():
        table.add_row(f"  {name}", *_percents(found[direction]))
    self._show(f"results on {split}", table)

  def compile_report(self, found):
    """What `compile_report.measure` found: memory, arithmetic and what is sent, a device."""
    memory = found["memory_bytes"]
    table = _table("a device holds", "GiB")
    for name, size in memory.items():
      if size is not None:
        table.add_row("the chip has" if name == "has" else name, f"{size / 2**30:,.3f}")
    mesh = " x ".join(map(str, found["mesh"]))
    self._show(
      f"{found['topology']}: {found['chips']} x {found['device']}, mesh {mesh} (data x fsdp x"
      f" tensor), batch {found['batch']:,}, bank of {found['bank_rows']:,} rows",
      table,
    )
    grouped = {}
    for one in found["collectives"]:
      key = (one["kind"], one["shapes"], one["looped"])
      grouped[key] = grouped.get(key, (0, 0))
      times = one["times"]
      grouped[key] = (grouped[key][0] + times, grouped[key][1] + times * one["bytes"])
    table = _table("what a device has afterwards", "count", "MiB")
    for (kind, shapes, looped), (count, size) in sorted(grouped.items(), key=lambda g: -g[1][1]):
      shapes = shapes if len(shapes) < 40 else f"{shapes[:36]} ..."
      place = " (in a loop)" if looped else ""
      table.add_row(f"{kind} {shapes}{place}", str(count), f"{size / 2**20:,.3f}")
    total = sum(size for _, size in grouped.values())
    bank = sum(one["times"] * one["bytes"] for one in found["collectives"] if one["of_bank"])
    self._show(
      f"collectives of a step: {total / 2**20:,.1f} MiB on a device, {bank / 2**20:,.1f} of them"
      " for the bank",
      table,
    )
    counted = f"{found['flops_counted'] / 1e12:,.3f} TFLOP a device and step by count"
    if "flops" in found:
      counted += f", {found['flops'] / 1e12:,.3f} by the compiler (bodies of loops once)"
    self.print(f"{counted}; compiled in {found['compile_seconds']} s")

  def outcome(self, files, next_command=None):
    """Where results lie: {path: what it holds}; and a command worth trying next."""
    width = max(len(str(path)) for path in files)
    for path, content in files.items():
      self.print(f"  {str(path):<{width}}  {content}")
    if next_command:
      self.print("next, try:", style="bold")
      self.print(f"  {next_command}")

  def _show(self, title, table):
    self.print(title, style="bold")
    self._rich.print(table)
    self.print("")


class TrainingProgress:
  """The state of training: a bar that moves on a terminal, a line per report elsewhere.

  A context manager. Lines printed through the same `Console` meanwhile appear above the bar.
  """

  def __init__(self, rich_console, steps_per_epoch, num_epochs, start_step):
    self._rich = rich_console
    self._steps_per_epoch, self._num_epochs = steps_per_epoch, num_epochs
    self._bar = rich.progress.Progress(
      rich.progress.TextColumn("{task.description}"),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
    )
    self._task = self._bar.add_task(
      self._epoch(max(start_step, 1)), total=steps_per_epoch * num_epochs, completed=start_step
    )
    self._display = None  # only on a terminal
    if rich_console.is_interactive and not rich_console.quiet:
      self._display = rich.live.Live(self._bar, console=rich_console, refresh_per_second=4)

  def advance(self, step):
    """Moves the bar to `step` optimiser steps done. Cheap: to be called every step."""
    self._bar.update(self._task, completed=step, description=self._epoch(step))

  def report(self, step, values, seconds_left=None):
    """Shows the losses and speed of `step`.

    Args:
      step: optimiser steps done, at least 1.
      values: the training values of `metrics.jsonl`; absent or None ones are not shown.
      seconds_left: until training ends; None when not known.
    """
    words = value_words(values, seconds_left)
    if self._display is not None:
      line = rich.text.Text("  ".join(words), no_wrap=False, overflow="fold")
      self._display.update(rich.console.Group(self._bar, line))
    else:
      total = self._steps_per_epoch * self._num_epochs
      words = [self._epoch(step), f"step {step:,}/{total:,}", *words]
      _print_line(self._rich, "  ".join(words))

  def _epoch(self, step):
    return f"epoch {(step - 1) // self._steps_per_epoch + 1}/{self._num_epochs}"

  def __enter__(self):
    if self._display is not None:
      self._display.start()
    return self

  def __exit__(self, *exception):
    if self._display is not None:
      self._display.stop()


def value_words(values, seconds_left=None):
  """Training values as short phrases, leaving out what is absent or None: dict -> list of str."""
  known = {name: value for name, value in values.items() if value is not None}
  words = []
  if "loss" in known:
    parts = [
      f"{part} {known[f'loss_{part}']:.2f}" for part in LOSS_PARTS if f"loss_{part}" in known
    ]
    words.append(f"loss {known['loss']:.2f}" + (f" ({' '.join(parts)})" if parts else ""))
  precision = [
    f"{kind} {known[f'{kind}_precision']:.0f}%"
    for kind in ("local", "global")
    if f"{kind}_precision" in known
  ]
  if precision:
    words.append(f"precision {' '.join(precision)}")
  if "pairs_per_second" in known:
    words.append(f"{known['pairs_per_second']:,.0f} pairs/s")
  if known.get("input_wait", 0) >= 0.005:
    words.append(f"input wait {known['input_wait']:.0%}")
  if seconds_left is not None:
    words.append(f"{clock(seconds_left)} left")
  return words


def clock(seconds):
  """Seconds as m:ss or h:mm:ss, rounded to whole ones."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _percents(scores):
  return [f"{scores[name]:.2f}" for name in SCORES]


def _print_line(rich_console, text, style=""):
  # The style sits on the text because options of the call also reach a live bar below it.
  line = rich.text.Text(text, style=style)
  rich_console.print(line, no_wrap=True, overflow="ignore", crop=False)


def _table(words, *numbers):
  """A table whose first column holds words and whose other columns hold numbers."""
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD, show_edge=False)
  table.add_column(words, no_wrap=True)
  for name in numbers:
    table.add_column(name, justify="right", no_wrap=True)
  return table
