"""Parts of the web page that need nothing but the results."""

import base64
import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dgia_jax.search import gallery

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_WIDTH, _HEIGHT = 480, 60  # pixels of the histogram
# Tiles are portrait, as people are; `contain` shows the whole picture, whatever its shape.
STYLE = """<style>
#results .tiles { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(150px, 30%), 1fr)); }
#results figure { margin: 0; min-width: 0; }
#results figure > a { display: block; border-radius: 8px; overflow: hidden;
  background: var(--background-fill-secondary); }
#results img { display: block; width: 100%; aspect-ratio: 1 / 2; object-fit: contain; margin: 0; }
#results figcaption { font-size: 12px; line-height: 1.35; margin-top: 4px;
  overflow-wrap: anywhere; }
#results figure.correct > a { outline: 5px solid #16a34a; }
#results .mark { color: #16a34a; font-weight: 600; margin-left: 6px; }
#results .mark, #results .score, #results .less { white-space: nowrap; }
#results .pages { display: flex; gap: 24px; margin: 16px 0; }
#results .rank { font-weight: 600; margin-right: 6px; }
#results .bar { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 4px 0 12px; }
#results a { color: var(--link-text-color); margin: 0; padding: 0; }
#results .zoom { position: absolute; opacity: 0; }
#results .zoom:focus-visible ~ figcaption label { outline: 2px solid; }
#results label { color: var(--link-text-color); cursor: pointer; margin-right: 6px; }
#results .zoom:checked ~ a img { position: fixed; inset: 0; z-index: 1000; width: 100vw;
  height: 100vh; aspect-ratio: auto; background: rgba(0, 0, 0, 0.85); }
#results .zoom:checked ~ figcaption label { position: fixed; inset: 0; z-index: 1001; opacity: 0;
  margin: 0; }
#results svg { display: block; margin: 16px 0 0; max-width: 100%; }
footer { display: none !important; }
</style>"""


def downloads(rows: Sequence[Mapping[str, Any]]) -> str:
  """Links that save a list of results as CSV or JSON; the files are part of the page."""
  table = io.StringIO()
  writer = csv.DictWriter(table, fieldnames=list(rows[0]))
  writer.writeheader()
  writer.writerows({name: _as_text(value) for name, value in row.items()} for row in rows)
  files = {
    "CSV": ("results.csv", "text/csv", table.getvalue()),
    "JSON": ("results.json", "application/json", json.dumps(list(rows), indent=2)),
  }
  links = []
  for label, (name, kind, text) in files.items():
    content = base64.b64encode(text.encode("utf-8")).decode("ascii")
    links.append(f'<a download="{name}" href="data:{kind};base64,{content}">{label}</a>')
  return f'<div class="bar"><span>Download the list:</span>{"".join(links)}</div>'


def _as_text(value: Any) -> Any:
  """A cell that no spreadsheet takes for a formula: the name of a file could be one."""
  return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def pages(page: int, previous: str, following: str) -> str:
  """The number of a page, with links to its neighbours; "" if it is the only one.

  Args:
    page: from 1.
    previous, following: the addresses of its neighbours; "" if there is none.
  """
  if not previous and not following:
    return ""
  link = lambda address, text: (
    f'<a href="{html.escape(address)}" target="_self">{text}</a>' if address else ""
  )
  parts = (link(previous, "Previous page"), f"<span>Page {page}</span>")
  return f'<div class="pages">{"".join(parts)}{link(following, "Next page")}</div>'


def histogram(counts: Float[np.ndarray, " _"], lowest: float, highest: float) -> str:
  """A drawing of how similar all images are to the query; those shown have another colour.

  Args:
    counts: from `Gallery.histogram`.
    lowest, highest: the cosines of the results that are shown.
  """
  edges = np.linspace(-1, 1, gallery.BINS + 1)
  filled = np.flatnonzero(counts)
  first, last = filled[0], filled[-1] + 1
  width = _WIDTH / (last - first)
  bars = []
  for number in range(first, last):
    # A root scale: the few images shown would be invisible beside the many others.
    height = _HEIGHT * float(np.sqrt(counts[number] / counts.max()))
    is_shown = edges[number + 1] > lowest and edges[number] <= highest
    color = "var(--link-text-color)" if is_shown else "gray"
    x = (number - first) * width
    bars.append(
      f'<rect x="{x:.1f}" y="{_HEIGHT - height:.1f}" width="{width:.1f}" height="{height:.1f}"'
      f' fill="{color}"><title>{edges[number]:.2f} to {edges[number + 1]:.2f}:'
      f" {counts[number]:,.0f}</title></rect>"
    )
  return (
    f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
    f' aria-label="similarity of all images">{"".join(bars)}</svg>'
    f"<p>Similarity of all {counts.sum():,.0f} images to the query, from {edges[first]:.2f} to"
    f" {edges[last]:.2f}; the part that is shown is coloured.</p>"
  )
