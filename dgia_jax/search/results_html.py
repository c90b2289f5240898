"""Parts of the web page that need nothing but the results."""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dgia_jax.search import gallery

_WIDTH, _HEIGHT = 480, 60  # pixels of the histogram


def downloads(rows: Sequence[Mapping[str, Any]]) -> str:
  """Links that save a list of results as CSV or JSON; the files are part of the page."""
  table = io.StringIO()
  writer = csv.DictWriter(table, fieldnames=list(rows[0]))
  writer.writeheader()
  writer.writerows(rows)
  files = {
    "CSV": ("results.csv", "text/csv", table.getvalue()),
    "JSON": ("results.json", "application/json", json.dumps(list(rows), indent=2)),
  }
  links = []
  for label, (name, kind, text) in files.items():
    content = base64.b64encode(text.encode("utf-8")).decode("ascii")
    links.append(f'<a download="{name}" href="data:{kind};base64,{content}">{label}</a>')
  return f'<div class="bar"><span>Download the list:</span>{"".join(links)}</div>'


def histogram(counts: Float[np.ndarray, " _"], lowest_shown: float) -> str:
  """A drawing of how similar all images are to the query; those shown have another colour.

  Args:
    counts: from `Gallery.histogram`.
    lowest_shown: the smallest cosine among the results.
  """
  edges = np.linspace(-1, 1, gallery.BINS + 1)
  filled = np.flatnonzero(counts)
  first, last = filled[0], filled[-1] + 1
  width = _WIDTH / (last - first)
  bars = []
  for number in range(first, last):
    # A root scale: the few images shown would be invisible beside the many others.
    height = _HEIGHT * float(np.sqrt(counts[number] / counts.max()))
    color = "var(--link-text-color)" if edges[number + 1] > lowest_shown else "gray"
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
