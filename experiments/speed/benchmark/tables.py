"""Results as tables: one description, shown on the terminal and written as Markdown."""

import dataclasses

import rich.box
import rich.console
import rich.table


@dataclasses.dataclass(frozen=True)
class Table:
  """A titled table of text cells.

  Attributes:
    title: one line.
    columns: headings.
    rows: lists of cells, as many as columns.
    note: what a reader must know; may be "".
  """

  title: str
  columns: tuple[str, ...]
  rows: list[list[str]]
  note: str = ""

  def markdown(self):
    """Lines of Markdown."""
    line = lambda cells: "| " + " | ".join(cells) + " |"
    lines = [f"## {self.title}", "", line(self.columns), "|" + "---|" * len(self.columns)]
    lines += [line(row) for row in self.rows]
    return [*lines, "", self.note, ""] if self.note else [*lines, ""]

  def show(self, console):
    """Prints it with rich."""
    table = rich.table.Table(title=self.title, title_justify="left", box=rich.box.SIMPLE)
    for number, column in enumerate(self.columns):
      table.add_column(column, justify="right" if number else "left")
    for row in self.rows:
      table.add_row(*row)
    console.print(table)
    if self.note:
      console.print(self.note)


def console():
  """Where tables are printed: wide enough that no cell is cut when the output is a file."""
  found = rich.console.Console(markup=False, highlight=False)
  if not found.is_terminal:
    found.width = 160
  return found


def spread(summary, scale=1e3, digits=1):
  """Median and range of a `timing.summary`, in milliseconds by default."""
  median, low, high = (f"{scale * summary[k]:,.{digits}f}" for k in ("median", "min", "max"))
  return f"{median} ({low} to {high})"


def gigabytes(count):
  """Bytes as text."""
  return f"{count / 1e9:,.2f} GB"


def ratio(theirs, ours):
  """How many times faster ours is, from two summaries."""
  return theirs["median"] / ours["median"]
