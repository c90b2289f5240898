"""Fails if a line of Markdown exceeds 120 characters; generated reports and cards are exempt:

python -m docs.draw.long_lines
"""

import pathlib
import sys

LIMIT = 120
ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("dgia_jax", "configs", "experiments", "tests", "docs", "launch")


def long_lines() -> list[str]:
  """All lines that are too long, as `FILE:LINE: LENGTH characters`."""
  files = [*ROOT.glob("*.md")]
  for folder in FOLDERS:
    files += (ROOT / folder).rglob("*.md")
  return [
    f"{path.relative_to(ROOT)}:{number}: {len(line)} characters"
    for path in sorted(files)
    if not _is_generated(path)
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    if len(line) > LIMIT
  ]


def _is_generated(path: pathlib.Path) -> bool:
  """Whether a program wrote the file: a report of an experiment, or the card of a shipped model."""
  return "shipped" in path.parts or ("results" in path.parts and path.name != "README.md")


if __name__ == "__main__":
  too_long = long_lines()
  print("\n".join(too_long))
  sys.exit(1 if too_long else 0)
