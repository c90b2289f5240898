"""The page that `check` writes: sections of lines, with errors and notes marked and counted."""

from collections.abc import Iterable


class DataReport:
  """Lines of the page, and how many of them are errors and notes."""

  def __init__(self, title: str):
    self.lines = [title]
    self.errors: list[str] = []
    self.notes: list[str] = []

  def section(self, name: str):
    self.lines += ["", name]

  def say(self, text: str):
    self.lines.append(f"  {text}")

  def error(self, text: str, details: Iterable[str] = ()):
    self._remark("ERROR", self.errors, text, details)

  def note(self, text: str, details: Iterable[str] = ()):
    self._remark("note ", self.notes, text, details)

  def _remark(self, mark, remarks, text, details):
    remarks.append(text)
    self.lines.append(f"  {mark} {text}")
    self.lines += [f"        {detail}" for detail in details]

  @property
  def text(self) -> str:
    return "\n".join(self.lines)


def first_items(items: list[str], show: int) -> list[str]:
  """The first `show` items, and a line that counts the others."""
  more = len(items) - show
  return items[:show] + ([f"... and {more} more (--show {len(items)})"] if more > 0 else [])
