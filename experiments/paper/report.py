"""Numbers beside the paper's: rows of a table, and how they become Markdown, CSV and PNG."""

import csv
import dataclasses
import io
import os
import pathlib
import shlex
from collections.abc import Callable

import numpy as np

from experiments.paper import tables

NOT_RUN, NO_NUMBER = "not run", "–"


@dataclasses.dataclass(frozen=True)
class Row:
  """One number of a table: the paper's, and ours of every finished seed.

  Attributes:
    setting: as the paper prints it.
    measure: what is measured, with its unit where it is not percent.
    paper: the paper's number, None where it has none.
    values: ours, one for each finished seed.
    shown: False for rows that stand in the CSV only.
  """

  setting: str
  measure: str
  paper: float | None
  values: tuple
  shown: bool = True

  @property
  def mean(self):
    """Mean over seeds; None when there is none."""
    return float(np.mean(self.values)) if self.values else None

  @property
  def spread(self):
    """Sample standard deviation over seeds; None for fewer than two."""
    return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

  @property
  def difference(self):
    """Ours less the paper's; None when either is missing."""
    return None if self.paper is None or not self.values else self.mean - self.paper


@dataclasses.dataclass(frozen=True)
class Section:
  """What a form makes of an experiment.

  Attributes:
    rows: of the table.
    notes: sentences for the reader, Markdown.
    draw: function (path) that writes the figure; None when there is nothing to draw yet.
    caption: of the figure.
    context: (header, rows of cells) of a second table, or None.
    data: (header, rows) for the CSV instead of `rows`, or None.
  """

  rows: tuple = ()
  notes: tuple = ()
  draw: Callable | None = None
  caption: str = ""
  context: tuple | None = None
  data: tuple | None = None


def format_mean(row):
  """Mean and, over several seeds, sample standard deviation, as text."""
  if not row.values:
    return NOT_RUN
  spread = "" if row.spread is None else f" ± {row.spread:.2f}"
  return f"{row.mean:.2f}{spread}"


def table(header, rows):
  """Lines of a Markdown table."""
  line = lambda cells: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
  return [line(header), "|" + "---|" * len(header), *map(line, rows)]


def comparison(rows):
  """Lines of the table paper | ours | difference, in the order of `rows`."""
  cells = [
    (
      row.setting,
      row.measure,
      NO_NUMBER if row.paper is None else f"{row.paper:.2f}",
      format_mean(row),
      "" if row.difference is None else f"{row.difference:+.2f}",
      len(row.values),
    )
    for row in rows
    if row.shown
  ]
  return table(("setting", "measure", "paper", "ours", "difference", "seeds"), cells)


def data_of(rows):
  """Header and rows of the CSV, numbers unrounded, empty where there is none."""
  header = ("setting", "measure", "paper", "mean", "std", "seeds", "difference")
  cells = [
    (r.setting, r.measure, r.paper, r.mean, r.spread, len(r.values), r.difference) for r in rows
  ]
  return header, [tuple("" if cell is None else cell for cell in row) for row in cells]


def write(section, collected, command):
  """Writes an experiment's Markdown, CSV and PNG, and the list of all reports.

  Args:
    section: what its form made of it.
    collected: collect.CollectedResults, the results the section was made from.
    command: that made it, for the reader.

  Returns:
    Path of the Markdown file.
  """
  experiment, options = collected.experiment, collected.options
  folder = folder_of(options)
  folder.mkdir(parents=True, exist_ok=True)
  text = io.StringIO()
  header, rows = section.data or data_of(section.rows)
  csv.writer(text, lineterminator="\n").writerows([header, *rows])
  _write(folder / f"{experiment.name}.csv", text.getvalue())
  picture = folder / f"{experiment.name}.png"
  if section.draw is None:
    picture.unlink(missing_ok=True)
    picture.with_suffix(".pdf").unlink(missing_ok=True)
  else:
    section.draw(picture)
  path = folder / f"{experiment.name}.md"
  _write(path, "\n".join(_lines(section, collected, command)) + "\n")
  _write(folder / "README.md", "\n".join(_index(folder, options)) + "\n")
  return path


def folder_of(options):
  """Where the reports of a dataset lie."""
  name = options.dataset.name + ("" if options.split == "test" else f"-{options.split}")
  return options.workdir / "report" / name


def _lines(section, collected, command):
  experiment, options = collected.experiment, collected.options
  yield f"# {experiment.title}: {options.dataset.title}"
  yield ""
  yield f"{experiment.source} of the paper." if experiment.source else "Not in the paper."
  if section.rows:
    yield (
      f"Percent unless said otherwise; {options.split} scores are those of "
      f"{tables.PROTOCOLS[options.protocol]}; ours: mean ± sample standard deviation over "
      f"finished seeds (asked for: {', '.join(map(str, options.seeds))})."
    )
    yield ""
    yield from comparison(section.rows)
  if section.draw is not None:
    yield ""
    yield f"![{experiment.title}]({experiment.name}.png)"
    if section.caption:
      yield ""
      yield section.caption
  if section.context:
    yield ""
    yield from table(*section.context)
  for note in (*section.notes, *collected.problems):
    yield ""
    yield note
  yield ""
  yield "## Runs"
  yield ""
  yield from table(*_runs(collected))
  yield ""
  yield "```"
  yield command
  yield "```"


def _runs(collected):
  """How each setting's runs were made and how long they took."""
  header = ("setting", "what it is", "fields that differ", "finished", "training s a run", "device")
  rows = []
  for setting in collected.experiment.settings:
    done = [found for _, found in collected.finished(setting.label)]
    seconds = [found["wall_time_seconds"] for found in done if "wall_time_seconds" in found]
    fields = ", ".join(f"{name}={value}" for name, value in setting.fields.items())
    rows.append(
      (
        setting.label,
        setting.description,
        fields or "none",
        f"{len(done)} of {len(collected.options.seeds)}",
        f"{np.mean(seconds):.0f}" if seconds else "",
        ", ".join(sorted({found.get("device", "") for found in done})),
      )
    )
  return header, rows


def _index(folder, options):
  """Markdown list of the reports that exist, in the order of the tables."""
  yield f"# Reports: {options.dataset.title}"
  yield ""
  for name, experiment in tables.EXPERIMENTS.items():
    if (folder / f"{name}.md").exists():
      where = experiment.source or "not in the paper"
      yield f"- [{experiment.title}]({name}.md) ({where}; [CSV]({name}.csv))"


def command_of(arguments):
  """A command line of the runner, as one line for a shell."""
  return shlex.join(["python", "-m", "experiments.run", *arguments])


def _write(path, text):
  """Replaces a file in one move, so that a reader never finds half of it."""
  partial = pathlib.Path(path).with_name(f".{path.name}.partial")
  partial.write_text(text, encoding="utf-8")
  os.replace(partial, path)
