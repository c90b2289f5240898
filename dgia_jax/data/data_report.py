"""The page that `data check` prints: sections of lines, errors and notes marked and counted."""

from collections.abc import Iterable, Sequence

from dgia_jax.errors import printable


class DataReport:
  """A page of text that is built line by line, and the errors and notes on it.

  Attributes:
    lines: of the page, safe to print: control characters from the user's files are escaped.
    errors: the text of each error, without its details.
    notes: the text of each note, without its details.
  """

  def __init__(self, title: str) -> None:
    self.lines = [printable(title)]
    self.errors: list[str] = []
    self.notes: list[str] = []

  def add_section(self, name: str) -> None:
    """Starts a section."""
    self.lines += ["", name]

  def add_line(self, text: str) -> None:
    """Adds a line that is neither an error nor a note."""
    self.lines.append(f"  {printable(text)}")

  def add_error(self, text: str, details: Iterable[str] = ()) -> None:
    """Adds something that stops a build or loses data."""
    self._add_remark("ERROR", self.errors, text, details)

  def add_note(self, text: str, details: Iterable[str] = ()) -> None:
    """Adds something that is unusual but does not stop a build."""
    self._add_remark("note ", self.notes, text, details)

  def _add_remark(self, mark: str, remarks: list[str], text: str, details: Iterable[str]) -> None:
    remarks.append(printable(text))
    self.lines.append(f"  {mark} {printable(text)}")
    self.lines += [f"        {printable(detail)}" for detail in details]

  @property
  def text(self) -> str:
    """The whole page."""
    return "\n".join(self.lines)


def first_items(items: Sequence[str], show: int) -> list[str]:
  """The first `show` items, and a line that counts the others."""
  more = len(items) - show
  return [*items[:show], *([f"... and {more} more (--show {len(items)})"] if more > 0 else [])]
