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
_GROUP = re.compile(r"^  config\.([\w.]+) = ConfigDict\(\)$")
_FIELD = re.compile(r'^  (?:config\.([\w.]+) = (.+?)|    "(\w+)": (.+?),)(?:  # (.*))?$')
_COMMENT = re.compile(r"^ +# (.*)$")


class SettingLine(NamedTuple):
  """One field of the default config: dotted name, default as Python source, comment."""

  name: str
  default: str
  meaning: str


def settings() -> list[SettingLine]:
  """Every field of the default config, in the order of the source."""
  return _parsed()[0]


def _parsed() -> tuple[list[SettingLine], dict[str, str]]:
  """Every field in the order of the source, and the comment on each group that has one."""
  fields, groups, comments_above, dict_name = [], {}, [], ""
  for line in inspect.getsource(config_lib.base).splitlines():
    if comment := _COMMENT.match(line):
      comments_above.append(comment.group(1))
      continue
    if (group := _GROUP.match(line)) and comments_above:
      groups[group.group(1)] = " ".join(comments_above)
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
  return fields, groups


def lines() -> Iterator[str]:
  """The page as lines of Markdown: one heading per group, one list item per setting."""
  yield from HEAD.splitlines()
  heading, (fields, comments) = None, _parsed()
  for name, default, meaning in fields:
    group = name.rpartition(".")[0]
    if group not in comments:
      group = group.split(".")[0]
    if group != heading:
      heading = group
      yield from ("", f"## {heading or 'The run'}", "")
      if heading in comments:
        yield from (*_wrapped(comments[heading]), "")
    yield from _wrapped(f"- `{name}` (`{default}`): {meaning}")


def _wrapped(text: str) -> list[str]:
  return textwrap.wrap(
    text, WIDTH, subsequent_indent="  " if text.startswith("- ") else "",
    break_long_words=False, break_on_hyphens=False,
  )  # fmt: skip


if __name__ == "__main__":
  print("\n".join(lines()))
