"""Draws the picture of one training step for docs/concepts.md.

Command: python -m docs.draw.concepts
Writes:  docs/images/concepts.png and concepts.pdf
"""

import argparse
import pathlib

import matplotlib

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from experiments import figure_files

DATA, MODEL, MINED, LOSS, STORED = "#e8eef7", "#dcecdc", "#fbeed3", "#f7dede", "#e9e1f2"
UPDATE = "#7a5ca8"

# name: (centre x, centre y, width, height, colour, text)
BOXES = {
  "batch": (1.1, 3.4, 1.7, 1.3, DATA, "batch\nuint8 images,\ntoken ids,\nbank rows"),
  "clean": (3.3, 5.1, 1.7, 0.8, DATA, "clean view"),
  "distorted": (3.3, 1.5, 1.7, 1.0, DATA, "distorted view\nflip, crop, erase,\nmasked words"),
  "towers": (5.3, 3.4, 1.4, 1.4, MODEL, "image tower\nand\ntext tower"),
  "features": (7.5, 5.1, 1.7, 0.8, MODEL, "features v, t"),
  "bank": (7.5, 3.3, 2.0, 1.0, STORED, "memory bank\nN rows per modality,\non all devices"),
  "distorted features": (7.5, 1.5, 1.7, 0.8, MODEL, "features v', t'"),
  "local": (10.3, 5.1, 2.4, 0.8, MINED, "local relations:\nboth cosines > 0.7"),
  "search": (
    10.3, 3.3, 2.4, 1.0, MINED, "anchor search, exact:\n3 neighbours and their\nconfidence weights"
  ),
  "distorted local": (10.3, 1.5, 2.4, 0.8, MINED, "local relations\nof the distorted view"),
  "itc loss": (13.1, 7.0, 2.0, 0.7, LOSS, "contrastive"),
  "local loss": (13.1, 5.1, 2.0, 0.7, LOSS, "local association"),
  "global loss": (13.1, 3.3, 2.0, 0.7, LOSS, "global association"),
  "consistency loss": (13.1, 1.5, 2.0, 0.7, LOSS, "consistency"),
  "update": (15.7, 3.9, 1.6, 1.1, MODEL, "gradient,\nAdam,\nparameters"),
}  # fmt: skip
ARROWS = (
  ("batch", "clean"), ("batch", "distorted"), ("clean", "towers"), ("distorted", "towers"),
  ("towers", "features"), ("towers", "distorted features"), ("features", "itc loss"),
  ("features", "local"), ("features", "search"), ("bank", "search"),
  ("distorted features", "distorted local"), ("local", "local loss"), ("search", "global loss"),
  ("distorted local", "consistency loss"), ("itc loss", "update"), ("local loss", "update"),
  ("global loss", "update"), ("consistency loss", "update"),
)  # fmt: skip
UPDATES = (("features", "bank"),)  # after the loss


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", default="docs/images/concepts.png")
  draw(parser.parse_args().out)


def draw(out: pathlib.Path | str) -> None:
  """Writes the picture to a PNG file, and a PDF beside it."""
  figure, axis = plt.subplots(figsize=(13, 5.6), layout="constrained")
  patches = {}
  for name, (x, y, width, height, colour, text) in BOXES.items():
    patches[name] = axis.add_patch(
      FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0.04",
        facecolor=colour,
        edgecolor="#555555",
        linewidth=0.9,
      )
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=9.5)
  for start, end in ARROWS:
    _arrow(axis, patches[start], patches[end], color="#555555")
  for start, end in UPDATES:
    _arrow(axis, patches[start], patches[end], color=UPDATE, linestyle="--")
  axis.text(7.05, 2.2, "written after the loss:\n0.9 new + 0.1 old", color=UPDATE)
  axis.text(13.1, 7.6, "the four losses", ha="center", fontweight="bold")
  axis.text(10.5, 4.2, "mined without labels", ha="center", fontweight="bold")
  axis.set(xlim=(0, 16.7), ylim=(0.8, 7.8))
  axis.axis("off")
  figure_files.save(figure, pathlib.Path(out), dpi=110)
  plt.close(figure)


def _arrow(axis: Axes, start: FancyBboxPatch, end: FancyBboxPatch, **style: str) -> None:
  axis.add_patch(
    FancyArrowPatch(
      posA=_centre(start),
      posB=_centre(end),
      patchA=start,
      patchB=end,
      arrowstyle="-|>",
      mutation_scale=11,
      **style,
    )
  )


def _centre(patch: FancyBboxPatch) -> tuple[float, float]:
  box = patch.get_bbox()
  return (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2


if __name__ == "__main__":
  main()
