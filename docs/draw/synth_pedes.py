"""Draws the picture of synth_pedes in the README: people with some of their views and captions.

Command: python -m docs.draw.synth_pedes
Takes:   10 seconds
Writes:  docs/images/synth_pedes.png and synth_pedes.pdf
"""

import argparse
import os
import pathlib
import textwrap

import matplotlib

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image

from dgia_jax.data.synth_pedes import Settings
from dgia_jax.data.synth_pedes.generate import draw_person
from experiments import figure_files

PEOPLE = (4, 10, 13, 34, 50, 63)  # of the training split
DETAIL = 4  # enlargement of these people, relative to the training images
COLUMNS = 2  # people per row
VIEWS = 4  # per person, to leave room for captions


def main() -> None:
  """Runs the command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", default="docs/images/synth_pedes.png")
  out = parser.parse_args().out
  os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
  draw_figure(Settings(), out)
  print(f"wrote {out}")


def draw_figure(settings: Settings, out: pathlib.Path | str) -> None:
  """Writes PNG and PDF: `PEOPLE` enlarged, with captions, then images at the size of training."""
  large = settings.replace(height=settings.height * DETAIL, width=settings.width * DETAIL)
  rows = -(-len(PEOPLE) // COLUMNS)
  figure = plt.figure(figsize=(11, 3.0 * rows + 1.5))
  halves = figure.subfigures(2, 1, height_ratios=(3.0 * rows, 1.4), hspace=0)
  blocks = halves[0].subfigures(rows, COLUMNS, wspace=0.02, hspace=0)
  for block, number in zip(blocks.flat, PEOPLE, strict=False):
    axes = block.subplots(
      1, VIEWS, gridspec_kw=dict(left=0.01, right=0.99, bottom=0.3, top=0.99, wspace=0.06)
    )
    for axis, record in zip(axes, draw_person(large, "train", number)[:VIEWS], strict=True):
      _show(axis, record["image"])
      caption = "\n".join(textwrap.wrap(record["captions"][0], 23))
      axis.text(0.5, -0.04, caption, transform=axis.transAxes, ha="center", va="top", fontsize=7)
  halves[1].suptitle(
    f"At training size: {settings.height} x {settings.width} pixels, all"
    f" {settings.images_per_person} views of each person",
    fontsize=8,
    y=0.98,
  )
  strip = [r["image"] for n in range(100, 104) for r in draw_person(settings, "train", n)]
  axes = halves[1].subplots(
    1, len(strip), gridspec_kw=dict(left=0.01, right=0.99, bottom=0.03, top=0.85, wspace=0.06)
  )
  for axis, image_HxWx3 in zip(axes, strip, strict=True):
    _show(axis, image_HxWx3)
  figure_files.save(figure, pathlib.Path(out))
  plt.close(figure)
  # 256 colours take a third of the space, without a visible difference.
  Image.open(out).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


def _show(axis: Axes, image_HxWx3: np.ndarray) -> None:
  axis.imshow(image_HxWx3, interpolation="nearest")
  axis.set_axis_off()


if __name__ == "__main__":
  main()
