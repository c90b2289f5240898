"""A table of text that is shown on the terminal and written as Markdown."""

import dataclasses
from collections.abc import Mapping

import rich.box
import rich.console
import rich.table


@dataclasses.dataclass(frozen=True)
class Table:
  """A titled table of text cells.

  Attributes:
    title: one line.
    columns: headings.
    rows: lists of cells, one per column.
    note: explanation below the table; may be "".
  """

  title: str
  columns: tuple[str, ...]
  rows: list[list[str]]
  note: str = ""

  def markdown(self) -> list[str]:
    """Lines of Markdown."""
    line = lambda cells: "| " + " | ".join(cells) + " |"
    lines = [f"## {self.title}", "", line(self.columns), "|" + "---|" * len(self.columns)]
    lines += [line(row) for row in self.rows]
    return [*lines, "", self.note, ""] if self.note else [*lines, ""]

  def show(self, console: rich.console.Console) -> None:
    """Prints the table."""
    table = rich.table.Table(title=self.title, title_justify="left", box=rich.box.SIMPLE)
    for number, column in enumerate(self.columns):
      table.add_column(column, justify="right" if number else "left")
    for row in self.rows:
      table.add_row(*row)
    console.print(table)
    if self.note:
      console.print(self.note)


def console() -> rich.console.Console:
  """A console that is wide enough to cut no cell when its output is a file."""
  output = rich.console.Console(markup=False, highlight=False)
  if not output.is_terminal:
    output.width = 160
  return output


def spread(summary: Mapping[str, float], scale: float = 1e3, digits: int = 1) -> str:
  """Median and range of a `timing.summary`, in milliseconds by default."""
  median, low, high = (f"{scale * summary[k]:,.{digits}f}" for k in ("median", "min", "max"))
  return f"{median} ({low} to {high})"


def gigabytes(count: float) -> str:
  """Bytes as text in GB."""
  return f"{count / 1e9:,.2f} GB"


def ratio(other: Mapping[str, float], ours: Mapping[str, float]) -> float:
  """How many times faster ours is, from two summaries."""
  return other["median"] / ours["median"]
