"""Hook of the website: links that leave docs/ point to files of the repository, shown as text."""

import re

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)]+)\)")


def on_page_markdown(markdown: str, **_: object) -> str:
  """Replaces a link to a file outside docs/ by its text and path, which a website cannot serve."""

  def as_text(link: re.Match) -> str:
    text, path = link[1], link[2].removeprefix("../").split("#")[0]
    return text if path in text else f"{text} (`{path}`)"

  return _OUTSIDE.sub(as_text, markdown)
