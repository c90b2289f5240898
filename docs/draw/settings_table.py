"""Writes the page of all settings from the comments beside them in `dgia_jax.config`:

python -m docs.draw.settings_table > docs/configuration.md
"""

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from dgia_jax import config as config_lib

HEAD = """# Settings

Every setting of a run, with its default and its meaning. `python -m docs.draw.settings_table`
generates this page from [`dgia_jax/config.py`](../dgia_jax/config.py). The files in
[`configs/`](../configs) change some of the defaults. On the command line, `--config.NAME=VALUE`
changes one setting. An unknown name, a value out of range or a combination that cannot work stops
the run with a one-line message.
"""
WIDTH = 110
_FIELD = re.compile(r'^  (?:config\.([\w.]+) = (.+?)|    "(\w+)": (.+?),)(?:  # (.*))?$')
_COMMENT = re.compile(r"^ +# (.*)$")


class SettingLine(NamedTuple):
  """One field of the default config: dotted name, default as Python source, comment."""

  name: str
  default: str
  meaning: str


def settings() -> list[SettingLine]:
  """Every field of the default config, in the order of the source."""
  fields, comments_above, dict_name = [], [], ""
  for line in inspect.getsource(config_lib.base).splitlines():
    if comment := _COMMENT.match(line):
      comments_above.append(comment.group(1))
      continue
    match = _FIELD.match(line)
    if not match:
      comments_above = comments_above if line.strip() else []
      continue
    name, value, entry, entry_value, comment_beside = match.groups()
    if entry:
      fields.append(SettingLine(f"{dict_name}.{entry}", entry_value, comment_beside or ""))
    elif value.startswith("ConfigDict(") and not comment_beside:
      dict_name = name
    elif "." in name or not value.startswith("ConfigDict("):
      meaning = comment_beside or " ".join(comments_above)
      fields.append(SettingLine(name, value.replace("ConfigDict()", "{}"), meaning))
    comments_above = []
  return fields


def lines() -> Iterator[str]:
  """The page as lines of Markdown: one heading per group, one list item per setting."""
  yield from HEAD.splitlines()
  group = None
  for name, default, meaning in settings():
    first = name.split(".")[0] if "." in name else ""
    if first != group:
      group = first
      yield from ("", f"## {group or 'The run'}", "")
    yield from textwrap.wrap(
      f"- `{name}` (`{default}`): {meaning}",
      WIDTH,
      subsequent_indent="  ",
      break_long_words=False,
      break_on_hyphens=False,
    )


if __name__ == "__main__":
  print("\n".join(lines()))
