"""The terminal output of a run: tables, messages, and a progress bar or plain lines.

The numbers are also written to files (`metrics_writer`); the output here is not meant to be parsed.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.box
import rich.console
import rich.live
import rich.progress
import rich.table
import rich.text
from clu import parameter_overview

from dgia_jax.errors import printable
from dgia_jax.reporting.score_labels import CORRECTIONS, DIRECTIONS, SCORES, percents
from dgia_jax.reporting.stored_scores import METRICS, StoredScores

LOSS_PARTS = ("itc", "local", "global", "consistency")


class Console:
  """Tables and messages, shown by the first process of a run."""

  def __init__(self, active: bool = True, file: io.TextIOBase | None = None) -> None:
    """Creates the console.

    Args:
      active: False on every process but the first: nothing is shown.
      file: replaces standard output.
    """
    self._rich = rich.console.Console(
      file=file, quiet=not active, markup=False, emoji=False, highlight=False
    )

  def print(self, text: str, style: str = "") -> None:
    """Prints one line without wrapping it, so that commands and paths can be copied."""
    _print_line(self._rich, text, style)

  def dataset_summary(
    self, name: str, splits: Mapping[str, Any], image_size: Sequence[int]
  ) -> None:
    """Shows the size of every split.

    Args:
      name: of the dataset.
      splits: PairTables by split name.
      image_size: (height, width).
    """
    table = self._table("split", "images", "captions", "persons")
    for split, pairs in splits.items():
      persons = len(np.unique(pairs.person_of_image_M))
      table.add_row(split, f"{pairs.num_images:,}", f"{pairs.num_pairs:,}", f"{persons:,}")
    height, width = image_size
    self._show(f"{name}: images of {height} x {width} pixels (height x width)", table)

  def parameter_overview(self, params: Mapping, num_trained: int | None = None) -> None:
    """Shows name, shape, type and size of every array, the sharding if there is one, the total.

    Args:
      params: every parameter.
      num_trained: how many numbers of them are trained; None for all.
    """
    is_sharded = any(not array.sharding.is_fully_replicated for array in jax.tree.leaves(params))
    self.print("parameters", style="bold")
    overview = parameter_overview.get_parameter_overview(
      params, include_stats="sharding" if is_sharded else False
    )
    for line in overview.splitlines():
      self.print(line)
    total = sum(array.size for array in jax.tree.leaves(params))
    if num_trained is not None and num_trained < total:
      share, num_frozen = 100 * num_trained / total, total - num_trained
      self.print(f"Trained: {num_trained:,} ({share:.2f} %), frozen: {num_frozen:,}")
    self.print("")

  def training(
    self, steps_per_epoch: int, num_epochs: int, start_step: int = 0
  ) -> "TrainingProgress":
    """Returns a context manager that shows the progress of training."""
    return TrainingProgress(self._rich, steps_per_epoch, num_epochs, start_step)

  def evaluation(
    self,
    title: str,
    scores: Mapping[str, Mapping[str, float]],
    chance: Mapping[str, float] | None = None,
    unmatched: int = 0,
  ) -> None:
    """Shows the scores of one evaluation.

    Args:
      title: what was evaluated, such as "val, epoch 3".
      scores: {"t2i": {"R1": .., ..}, "i2t": {..}}, in percent.
      chance: R@1 of a random ranking by direction, in percent.
      unmatched: queries without a correct item, which no score includes.
    """
    self._show_scores(title, scores, chance)
    if unmatched:
      self.print(f"{unmatched:,} queries without a correct item are left out.", style="yellow")

  def final(self, split: str, results: Mapping[str, Any]) -> None:
    """Shows the scores before training, if they were measured, of the last and the best epoch.

    An epoch that is both last and best is shown once.

    Args:
      split: the scores are of this split.
      results: the content of results.json: {"before_training": {"epoch", "t2i", "i2t"}, "last":
        likewise, with "weights", "raw" or "ema", and "test_time" if its ranking was corrected,
        "best": {.., "selected_on"}, "best_by_split": {split: like "best"}, "chance_R1": {direction:
        percent}, "ema": {"last": .., "best": ..} of the average of the weights beside those as
        trained}; each may be absent.
    """
    models = [
      ("before training", results.get("before_training")),
      ("last", results.get("last")),
      ("best", results.get("best")),
    ]
    selected_on = results.get("best", {}).get("selected_on")
    models += [
      ("best", scores)
      for other, scores in results.get("best_by_split", {}).items()
      if other != selected_on
    ]
    names_of_epoch: dict[int, list[str]] = {}
    scores_of_epoch = {}
    for name, scores in models:
      if scores is not None:
        on_split = f" on {scores['selected_on']}" if "selected_on" in scores else ""
        names_of_epoch.setdefault(scores["epoch"], []).append(f"{name}{on_split}")
        scores_of_epoch[scores["epoch"]] = scores_of_epoch.get(scores["epoch"], {}) | scores
    for epoch, names in names_of_epoch.items():
      scores = scores_of_epoch[epoch]
      average = ", average of the weights" if scores.get("weights") == "ema" else ""
      title = f"results on {split}{average}, epoch {epoch} ({', '.join(names)})"
      self._show_scores(title, scores, results.get("chance_R1"))
    if "ema" in results:
      self.final(split, {name: {"weights": "ema"} | of for name, of in results["ema"].items()})

  def comparison(
    self, title: str, own: Mapping[str, float], stored: Sequence[StoredScores]
  ) -> None:
    """Shows text-to-image scores beside those of stored runs, and how these were made.

    Args:
      title: what was evaluated, such as "test, last epoch".
      own: metric -> percent of this run.
      stored: of the settings to compare with; nothing is shown if there are none.
    """
    if not stored:
      return
    sign = "±" if _can_encode(self._rich, "±") else "+-"
    table = self._table("", *(SCORES[metric] for metric in METRICS))
    for one in stored:
      spread = (f"{one.mean(m):.2f} {sign} {one.deviation(m):.2f}" for m in METRICS)
      table.add_row(f"{one.title}, stored: {len(one.seeds)} seeds", *spread)
    table.add_row("this run", *(f"{own[metric]:.2f}" for metric in METRICS))
    self._show(f"text to image on {title}; mean {sign} standard deviation over seeds", table)
    for one in stored:
      self.print(f"{one.title}, seeds {', '.join(map(str, one.seeds))}: {one.command}")

  def compile_report(self, report: Mapping[str, Any]) -> None:
    """Shows what `compile_report.measure` returns: memory, arithmetic and traffic per device."""
    table = self._table("memory per device", "GiB")
    for name, size in report["memory_bytes"].items():
      if size is not None:
        table.add_row("the chip has" if name == "has" else name, f"{size / 2**30:,.3f}")
    mesh = " x ".join(map(str, report["mesh"]))
    self._show(
      f"{report['topology']}: {report['chips']} x {report['device']}, mesh {mesh} (data x fsdp x"
      f" tensor), batch {report['batch']:,}, bank of {report['bank_rows']:,} rows",
      table,
    )
    traffic: dict[tuple, list[int]] = {}
    for operation in report["collectives"]:
      key = (operation["kind"], operation["shapes"], operation["looped"])
      count_and_bytes = traffic.setdefault(key, [0, 0])
      count_and_bytes[0] += operation["times"]
      count_and_bytes[1] += operation["times"] * operation["bytes"]
    table = self._table("result on each device", "count", "MiB")
    table.columns[0].no_wrap = False  # on a narrow terminal, shapes wrap and numbers stay whole
    for (kind, shapes, looped), (count, size) in sorted(traffic.items(), key=lambda t: -t[1][1]):
      shapes = shapes if len(shapes) < 40 else f"{shapes[:36]} ..."
      place = " (in a loop)" if looped else ""
      table.add_row(f"{kind} {shapes}{place}", str(count), f"{size / 2**20:,.3f}")
    total = sum(size for _, size in traffic.values())
    bank = sum(one["times"] * one["bytes"] for one in report["collectives"] if one["of_bank"])
    self._show(
      f"collectives per step: {total / 2**20:,.1f} MiB on each device, of which"
      f" {bank / 2**20:,.1f} MiB serve the bank",
      table,
    )
    counted = f"{report['flops_counted'] / 1e12:,.3f} TFLOP per device and step by our own count"
    if "flops" in report:
      counted += f", {report['flops'] / 1e12:,.3f} by the compiler (loop bodies counted once)"
    self.print(f"{counted}; compiled in {report['compile_seconds']} s")

  def outcome(self, files: Mapping[Any, str], next_command: str | None = None) -> None:
    """Lists the files of a finished run, {path: content}, and suggests a next command."""
    width = max(len(str(path)) for path in files)
    for path, content in files.items():
      self.print(f"  {str(path):<{width}}  {content}")
    if next_command:
      self.print("next, try:", style="bold")
      self.print(f"  {next_command}")

  def _table(self, first_column: str, *number_columns: str) -> rich.table.Table:
    """A table whose first column holds text and whose other columns hold numbers."""
    box = rich.box.SIMPLE_HEAD if _can_encode(self._rich, "─") else rich.box.ASCII
    table = rich.table.Table(box=box, show_edge=False)
    table.add_column(first_column, no_wrap=True)
    for name in number_columns:
      table.add_column(name, justify="right", no_wrap=True)
    return table

  def _show_scores(
    self,
    title: str,
    scores: Mapping[str, Any],
    chance: Mapping[str, float] | None,
  ) -> None:
    table = self._table("", *SCORES.values(), *(["R@1 by chance"] if chance else []))
    for direction, name in DIRECTIONS.items():
      by_chance = [f"{chance[direction]:.2f}"] if chance else []
      table.add_row(name, *percents(scores[direction]), *by_chance)
      if direction == "t2i":
        for correction, corrected in scores.get("test_time", {}).items():
          table.add_row(f"  {CORRECTIONS[correction]}", *percents(corrected), *by_chance)
    self._show(title, table)

  def _show(self, title: str, table: rich.table.Table) -> None:
    self.print(title, style="bold")
    self._rich.print(table)
    self.print("")


class TrainingProgress:
  """The progress of training: a moving bar on a terminal, one line per report elsewhere.

  A context manager. Lines that the same `Console` prints meanwhile appear above the bar.
  """

  def __init__(
    self,
    rich_console: rich.console.Console,
    steps_per_epoch: int,
    num_epochs: int,
    start_step: int,
  ) -> None:
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
    if rich_console.is_interactive and not rich_console.quiet and _can_encode(rich_console, "━"):
      self._display = rich.live.Live(self._bar, console=rich_console, refresh_per_second=4)

  def advance(self, step: int) -> None:
    """Moves the bar to `step` optimiser steps done. Cheap enough for every step."""
    self._bar.update(self._task, completed=step, description=self._epoch(step))

  def report(
    self, step: int, values: Mapping[str, float | None], seconds_left: float | None = None
  ) -> None:
    """Shows the losses and the speed of a step.

    Args:
      step: optimiser steps done, at least 1.
      values: the training values of `metrics.jsonl`; those absent or None are not shown.
      seconds_left: until training ends; None if unknown.
    """
    phrases = value_phrases(values, seconds_left)
    if self._display is not None:
      line = rich.text.Text("  ".join(phrases), no_wrap=False, overflow="fold")
      self._display.update(rich.console.Group(self._bar, line))
    else:
      total = self._steps_per_epoch * self._num_epochs
      phrases = [self._epoch(step), f"step {step:,}/{total:,}", *phrases]
      _print_line(self._rich, "  ".join(phrases))

  def _epoch(self, step: int) -> str:
    return f"epoch {(step - 1) // self._steps_per_epoch + 1}/{self._num_epochs}"

  def __enter__(self):
    if self._display is not None:
      self._display.start()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._display is not None:
      self._display.stop()


def value_phrases(
  values: Mapping[str, float | None], seconds_left: float | None = None
) -> list[str]:
  """Training values as short phrases, without those that are absent or None."""
  known = {name: value for name, value in values.items() if value is not None}
  phrases = []
  if "loss" in known:
    parts = [
      f"{part} {known[f'loss_{part}']:.2f}" for part in LOSS_PARTS if f"loss_{part}" in known
    ]
    phrases.append(f"loss {known['loss']:.2f}" + (f" ({' '.join(parts)})" if parts else ""))
  precision = [
    f"{kind} {known[f'{kind}_precision']:.0f}%"
    for kind in ("local", "global")
    if f"{kind}_precision" in known
  ]
  if precision:
    phrases.append(f"precision {' '.join(precision)}")
  if "pairs_per_second" in known:
    phrases.append(f"{known['pairs_per_second']:,.0f} pairs/s")
  if known.get("input_wait", 0) >= 0.005:
    phrases.append(f"input wait {known['input_wait']:.0%}")
  if seconds_left is not None:
    phrases.append(f"{clock(seconds_left)} left")
  return phrases


def clock(seconds: float) -> str:
  """Formats seconds as m:ss or h:mm:ss, rounded to whole seconds."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def _can_encode(rich_console: rich.console.Console, text: str) -> bool:
  """Whether the console's output has a character set that contains `text`."""
  try:
    text.encode(rich_console.encoding)
  except UnicodeEncodeError:
    return False
  return True


def _print_line(rich_console: rich.console.Console, text: str, style: str = "") -> None:
  text = "\n".join(map(printable, text.split("\n")))
  text = text.encode(rich_console.encoding, "replace").decode(rich_console.encoding)
  # The style belongs to the text, because options of the call would also apply to a live bar.
  line = rich.text.Text(text, style=style)
  rich_console.print(line, no_wrap=True, overflow="ignore", crop=False)
