"""What a search asks for, and how several wishes become one query."""

import dataclasses
import os
import urllib.parse
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

# Weight of what results should not resemble, relative to what they should: most of what a person
# asks for must remain.
LESS_WEIGHT = 0.5
UNKNOWN_WORDS = (
  "The model has seen none of these words as a whole in training, so the order may mean little."
)


def text_of(path: str | os.PathLike) -> str:
  """The path of an image as text that every browser takes, also of undecodable names."""
  return os.fsencode(path).decode("utf-8", "replace")


def image_key(row: int, path: str) -> str:
  """An image of an index in an address: the row is where it is found at once.

  The path tells whether the row still holds this image; a compaction gives rows other numbers.
  """
  return f"{row}:{text_of(path)}"


def row_of(key: str, paths: Sequence[str], usable_rows: Int[np.ndarray, " M"]) -> int | None:
  """The row of an image that `image_key` has named; None if no row that can be a result is.

  A key of an earlier version is a row alone.
  """
  number, _, name = key.partition(":")
  if not (number.isascii() and number.isdigit() and len(number) < 10):
    return None
  row = int(number)
  if row in usable_rows and (not name or text_of(paths[row]) == name):
    return row
  if not name:
    return None
  found = (row for row, path in enumerate(paths) if text_of(path) == name and row in usable_rows)
  return next(found, None)


def combine(
  more_NxD: Float[np.ndarray, "N D"], less_NxD: Float[np.ndarray, "_ D"] | None = None
) -> Float[np.ndarray, " D"]:
  """One query from several features: Rocchio's relevance feedback.

  Args:
    more_NxD: features of norm 1 that results should resemble; at least one.
    less_NxD: features of norm 1 that they should not resemble.

  Returns:
    The mean of the first, less `LESS_WEIGHT` times the mean of the others, of norm 1.
  """
  query_D = np.mean(more_NxD, axis=0)
  if less_NxD is not None and len(less_NxD):
    query_D = query_D - LESS_WEIGHT * np.mean(less_NxD, axis=0)
  return query_D / max(float(np.linalg.norm(query_D)), 1e-12)


@dataclasses.dataclass(frozen=True)
class Query:
  """A search as the address of the web page carries it.

  Attributes:
    text: the description; may be empty.
    like: `image_key` of an image whose likes are searched; "" for none.
    less: `image_key` of an image that results should not resemble; "" for none.
    only: glob that the paths of results match, such as `*/entrance/*`; "" for all.
    top: number of images per page.
    page: the page of results, from 1.
  """

  text: str = ""
  like: str = ""
  less: str = ""
  only: str = ""
  top: int = 20
  page: int = 1

  @classmethod
  def from_address(cls, params: Mapping[str, str], default_top: int) -> "Query":
    """Reads the query of an address; values that are no numbers are ignored."""

    def number(name: str, default: int) -> int:
      value = params.get(name, "")
      return int(value) if value.isascii() and value.isdigit() and len(value) < 10 else default

    return cls(
      params.get("q", ""),
      params.get("like", ""),
      params.get("less", ""),
      params.get("only", ""),
      number("top", default_top),
      number("p", 1),
    )

  def to_address(self) -> str:
    """The query part of an address."""
    params = {"q": self.text} if self.text.strip() else {}
    params |= {"like": self.like} if self.like else {}
    params |= {"less": self.less} if self.less else {}
    params |= {"only": self.only} if self.only.strip() else {}
    # Not "page", by which Gradio chooses among its own pages.
    params |= {"p": self.page} if self.page > 1 else {}
    return "?" + urllib.parse.urlencode(params | {"top": self.top}, errors="replace")
