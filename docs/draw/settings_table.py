"""Writes the table of all settings from the comments beside them in `dgia_jax.config`:

python -m docs.draw.settings_table > docs/configuration.md
"""

import inspect
import re

from dgia_jax import config as config_lib

HEAD = """# Settings

Every setting of a run, as `python -m docs.draw.settings_table` reads them from
[`dgia_jax/config.py`](../dgia_jax/config.py). A file in [`configs/`](../configs) changes some of
them; on the command line `--config.NAME=VALUE` changes one. An unknown name, a value out of range
and a combination that cannot work stop the run in one line.
"""
_FIELD = re.compile(r'^  (?:config\.([\w.]+) = (.+?)|    "(\w+)": (.+?),)(?:  # (.*))?$')
_COMMENT = re.compile(r"^ +# (.*)$")


def settings():
  """Every field of the default config in the order of the source.

  Returns:
    [(dotted name, default as Python source, comment)].
  """
  found, above, inside = [], [], ""
  for line in inspect.getsource(config_lib.base).splitlines():
    if comment := _COMMENT.match(line):
      above.append(comment.group(1))
      continue
    match = _FIELD.match(line)
    if not match:
      above = above if line.strip() else []
      continue
    name, value, entry, entry_value, beside = match.groups()
    if entry:
      found.append((f"{inside}.{entry}", entry_value, beside or ""))
    elif value.startswith("ConfigDict(") and not beside:
      inside = name
    elif "." in name or not value.startswith("ConfigDict("):
      found.append((name, value.replace("ConfigDict()", "{}"), beside or " ".join(above)))
    above = []
  return found


def lines():
  """The reference as lines of Markdown, one table for each group of settings."""
  yield from HEAD.splitlines()
  group = None
  for name, value, comment in settings():
    first = name.split(".")[0] if "." in name else ""
    if first != group:
      group = first
      yield from ("", f"## {group or 'the run'}", "")
      yield from ("| setting | default | meaning |", "|---|---|---|")
    yield f"| `{name}` | `{value}` | {comment.replace('|', chr(92) + '|')} |"


if __name__ == "__main__":
  print("\n".join(lines()))
