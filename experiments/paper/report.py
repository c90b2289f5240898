"""Writes reports: tables of our numbers beside the paper's, as Markdown, CSV, PNG and PDF."""

import csv
import dataclasses
import io
import pathlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from dgia_jax import config as config_lib
from dgia_jax import files
from experiments.paper import report_names, runs, tables
from experiments.paper.collect import CollectedResults

NOT_RUN, NO_NUMBER = "not run", "–"

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]  # header, rows of cells


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
  """Mean and sample standard deviation over seeds, each None for too few values."""
  mean = float(np.mean(values)) if len(values) else None
  return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None


def format_mean(values: Sequence[float], number_format: str = ".2f") -> str:
  """The mean over seeds as text, with the sample standard deviation for several seeds."""
  mean, deviation = mean_and_deviation(values)
  if mean is None:
    return NOT_RUN
  return f"{mean:{number_format}}" + ("" if deviation is None else f" ± {deviation:.2f}")


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table: a published number and ours.

  Attributes:
    setting: label as printed in the paper.
    measure: name of the quantity, with its unit unless that is percent.
    paper: the published number, None if the paper has none.
    values: our numbers, one per finished seed.
    shown: False for rows that only the CSV holds.
  """

  setting: str
  measure: str
  paper: float | None
  values: tuple[float, ...]
  shown: bool = True

  @property
  def mean(self) -> float | None:
    """Mean over seeds; None without a finished seed."""
    return mean_and_deviation(self.values)[0]

  @property
  def deviation(self) -> float | None:
    """Sample standard deviation over seeds; None for fewer than two."""
    return mean_and_deviation(self.values)[1]

  @property
  def difference(self) -> float | None:
    """Our mean minus the published number; None if either is missing."""
    return None if self.paper is None or not self.values else self.mean - self.paper


@dataclasses.dataclass(frozen=True)
class ReportContent:
  """Content of one report.

  Attributes:
    rows: of the main table.
    notes: paragraphs of Markdown.
    draw: writes the figure to a path; None if there is nothing to draw yet.
    caption: of the figure.
    second_table: printed below the figure.
    csv_table: replaces `rows` in the CSV.
  """

  rows: tuple[Row, ...] = ()
  notes: tuple[str, ...] = ()
  draw: Callable[[pathlib.Path], None] | None = None
  caption: str = ""
  second_table: Table | None = None
  csv_table: Table | None = None


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
  """Lines of a Markdown table."""
  line = lambda cells: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
  return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def comparison(rows: Iterable[Row]) -> list[str]:
  """Lines of the Markdown table that compares our numbers with the paper's."""
  cells = [
    (
      row.setting,
      row.measure,
      NO_NUMBER if row.paper is None else f"{row.paper:.2f}",
      format_mean(row.values),
      "" if row.difference is None else f"{row.difference:+.2f}",
      len(row.values),
    )
    for row in rows
    if row.shown
  ]
  return markdown_table(("setting", "measure", "paper", "ours", "difference", "seeds"), cells)


def csv_table(rows: Iterable[Row]) -> Table:
  """Header and cells of the CSV, unrounded; missing numbers are empty."""
  header = ("setting", "measure", "paper", "mean", "std", "seeds", "difference")
  cells = [
    (r.setting, r.measure, r.paper, r.mean, r.deviation, len(r.values), r.difference) for r in rows
  ]
  return header, [tuple("" if cell is None else cell for cell in row) for row in cells]


def write(content: ReportContent, data: CollectedResults, command: str) -> pathlib.Path:
  """Writes an experiment's report and the index of all reports.

  Args:
    content: of the report.
    data: from which the content was made.
    command: that reproduces the report.

  Returns:
    Path of the Markdown file.
  """
  experiment, options = data.experiment, data.options
  folder = options.workdir / "report" / report_names.folder_name(options)
  folder.mkdir(parents=True, exist_ok=True)
  text = io.StringIO()
  header, rows = content.csv_table or csv_table(content.rows)
  csv.writer(text, lineterminator="\n").writerows([header, *rows])
  files.write_text(folder / f"{experiment.name}.csv", text.getvalue())
  picture = folder / f"{experiment.name}.png"
  if content.draw is None:
    for stale in (picture, picture.with_suffix(".pdf")):
      stale.unlink(missing_ok=True)
  else:
    content.draw(picture)
  path = folder / f"{experiment.name}.md"
  files.write_text(path, "\n".join(_lines(content, data, command)) + "\n")
  files.write_text(folder / "README.md", "\n".join(_index(folder, options)) + "\n")
  return path


def _lines(content: ReportContent, data: CollectedResults, command: str) -> Iterator[str]:
  experiment, options = data.experiment, data.options
  yield f"# {experiment.title}: {report_names.title(options)}"
  yield ""
  yield f"{experiment.printed_in} of the paper." if experiment.printed_in else "Not in the paper."
  if content.rows:
    yield (
      f"Percent unless stated otherwise; {options.split} scores of "
      f"{tables.PROTOCOLS[options.protocol]}; ours: mean ± sample standard deviation over the "
      f"finished seeds (requested: {', '.join(map(str, options.seeds))})."
    )
    yield ""
    yield from comparison(content.rows)
  if content.draw is not None:
    yield ""
    yield f"![{experiment.title}]({experiment.name}.png)"
    if content.caption:
      yield ""
      yield content.caption
  if content.second_table:
    yield ""
    yield from markdown_table(*content.second_table)
  excluded = [f"Settings that are {data.not_applicable}."] if data.not_applicable else []
  for note in (*content.notes, *excluded, *data.problems):
    yield ""
    yield note
  yield ""
  yield "## Runs"
  yield ""
  yield from markdown_table(*_runs_table(data))
  yield ""
  yield "```"
  yield command
  yield "```"


def _runs_table(data: CollectedResults) -> Table:
  """The config changes, number of finished runs and training time of each setting."""
  header = ("setting", "description", "changed fields", "finished", "training s per run", "device")
  options, rows = data.options, []
  whole = runs.resolve(options, runs.fields_of(options, tables.WHOLE, options.seeds[0], None))
  for setting in data.experiment.settings:
    changed = config_lib.differences(data.runs[setting.label][0].config, whole)
    finished = [results for _, results in data.finished(setting.label)]
    seconds = [
      results["wall_time_seconds"] for results in finished if "wall_time_seconds" in results
    ]
    fields = {**setting.fields, **setting.needs, **setting.fields}
    changes = [f"{name}={value}" for name, value in fields.items() if name in changed]
    changes += [f"{name} x {factor}" for name, factor in setting.factors.items()]
    rows.append(
      (
        setting.label,
        setting.description,
        ", ".join(changes) or "none",
        f"{len(finished)} of {len(options.seeds)}",
        f"{np.mean(seconds):.0f}" if seconds else "",
        ", ".join(sorted({results.get("device", "") for results in finished})),
      )
    )
  return header, rows


def _index(folder: pathlib.Path, options: runs.Options) -> Iterator[str]:
  """Markdown list of the existing reports, in the order of the declarations."""
  yield f"# Reports: {report_names.title(options)}"
  yield ""
  for name, experiment in tables.EXPERIMENTS.items():
    if (folder / f"{name}.md").exists():
      printed_in = experiment.printed_in or "not in the paper"
      yield f"- [{experiment.title}]({name}.md) ({printed_in}; [CSV]({name}.csv))"


def command_of(arguments: Iterable[str]) -> str:
  """The shell command that reproduces a report, from the arguments of `experiments.run`.

  It trains all runs: without `--report_only` and `--shard`, which may be abbreviated.
  """
  kept, words = [], iter(arguments)
  for word in words:
    flag, has_value, _ = word.partition("=")
    if len(flag) > len("--") and "--report_only".startswith(flag):
      continue
    if len(flag) > len("--s") and "--shard".startswith(flag):
      if not has_value:
        next(words, None)
      continue
    kept.append(word)
  return shlex.join(["python", "-m", "experiments.run", *kept])
