"""The figures, drawn with matplotlib: the paper's numbers in grey, ours in colour."""

import os
import pathlib
import textwrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure

PAPER, OURS, OTHER = "0.55", "tab:blue", "tab:orange"  # OTHER: a second line of ours


def rows_compared(rows, path, ylabel="R@1 (%)"):
  """Our means as dots with their spread, the paper's numbers as short lines, one column per row.

  Rows without any number are left out.

  Args:
    rows: report.Row, in order; at least one number among them.
    path: of the PNG.
    ylabel: of the axis.
  """
  rows = [row for row in rows if row.values or row.paper is not None]
  figure = Figure(figsize=(max(4.0, 1.3 * len(rows) + 1.5), 3.4), layout="constrained")
  axes = figure.subplots()
  ours = [(x, row.mean, row.spread or 0.0) for x, row in enumerate(rows) if row.values]
  if ours:
    x, mean, spread = zip(*ours, strict=True)
    axes.errorbar(x, mean, spread, fmt="o", color=OURS, capsize=4, label="ours")
  paper = [(x, row.paper) for x, row in enumerate(rows) if row.paper is not None]
  if paper:
    x, y = np.array(paper).T
    axes.hlines(y, x - 0.3, x + 0.3, color=PAPER, lw=3, label="paper")
  labels = [textwrap.fill(row.setting.replace("+", "+ "), 12) for row in rows]
  axes.set_xticks(range(len(rows)), labels, fontsize=8)
  axes.set_xlim(-0.6, len(rows) - 0.4)
  axes.set_ylabel(ylabel)
  axes.grid(axis="y", alpha=0.3)
  _legend(axes)
  _save(figure, path)


def paired_gains(rows, path, ylabel):
  """Gains paired by seed: a small dot per seed, their mean and spread, and the zero line.

  Args:
    rows: report.Row with the gains of every seed; rows without values are left out.
    path: of the PNG.
    ylabel: of the axis.
  """
  rows = [row for row in rows if row.values]
  figure = Figure(figsize=(max(3.6, 1.3 * len(rows) + 1.5), 3.4), layout="constrained")
  axes = figure.subplots()
  axes.axhline(0.0, color="black", lw=0.8)
  for x, row in enumerate(rows):
    axes.plot([x - 0.18] * len(row.values), row.values, "o", color=OURS, alpha=0.35, ms=4)
    axes.errorbar(x, row.mean, row.spread, fmt="o", color=OURS, capsize=4)
  labels = [textwrap.fill(row.setting.replace("+", "+ "), 12) for row in rows]
  axes.set_xticks(range(len(rows)), labels, fontsize=8)
  axes.set_xlim(-0.6, len(rows) - 0.4)
  axes.set_ylabel(ylabel)
  axes.grid(axis="y", alpha=0.3)
  _save(figure, path)


def curve(points, path, xlabel, ylabel):
  """Lines over a number, as Figure 3.

  Args:
    points: {line: (colour, [(x, Row)])}.
    path: of the PNG.
    xlabel, ylabel: of the axes.
  """
  figure = Figure(figsize=(5.2, 3.6), layout="constrained")
  axes = figure.subplots()
  for name, (colour, rows) in points.items():
    ours = [(x, row.mean, row.spread or 0.0) for x, row in rows if row.values]
    if ours:
      x, mean, spread = zip(*ours, strict=True)
      axes.errorbar(x, mean, spread, color=colour, marker="o", capsize=3, label=name)
    paper = [(x, row.paper) for x, row in rows if row.paper is not None]
    if paper:
      axes.plot(*zip(*paper, strict=True), "--s", color=PAPER, label=f"{name}, paper")
  axes.set(xlabel=xlabel, ylabel=ylabel)
  axes.grid(alpha=0.3)
  _legend(axes)
  _save(figure, path)


def precision(kinds, finals, path):
  """Precision of mined relations over epochs, local and global beside each other, as Figure 4.

  Args:
    kinds: {"local": {epoch: [percent of each seed]}, "global": ..}.
    finals: {kind: the paper's number at the end, or None}.
    path: of the PNG.
  """
  figure = Figure(figsize=(8, 3.4), layout="constrained")
  for axes, (kind, epochs) in zip(figure.subplots(1, 2), kinds.items(), strict=True):
    x = sorted(epochs)
    if x:
      mean = np.array([np.mean(epochs[epoch]) for epoch in x])
      low, high = (np.array([f(epochs[epoch]) for epoch in x]) for f in (min, max))
      axes.plot(x, mean, marker="o", color=OURS, label="ours, mean over seeds")
      axes.fill_between(x, low, high, color=OURS, alpha=0.2, label="lowest to highest seed")
    if finals[kind] is not None:
      axes.axhline(finals[kind], color=PAPER, ls="--", label="paper, at its end")
    axes.set(title=f"{kind} relations", xlabel="epoch", ylabel="correct / mined (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    _legend(axes)
  _save(figure, path)


def people(points_of, path):
  """Images (dots) and captions (crosses) of test people, a colour each, one panel a setting.

  Args:
    points_of: {label: [{"person", "kind", "x", "y"}]}.
    path: of the PNG.
  """
  figure = Figure(figsize=(4.4 * len(points_of), 4.2), layout="constrained")
  panels = figure.subplots(1, len(points_of), squeeze=False)[0]
  colours = matplotlib.colormaps["tab20"]
  for axes, (label, points) in zip(panels, points_of.items(), strict=True):
    persons = sorted({point["person"] for point in points})
    for kind, marker in (("image", "o"), ("text", "x")):
      chosen = [point for point in points if point["kind"] == kind]
      axes.scatter(
        [point["x"] for point in chosen],
        [point["y"] for point in chosen],
        s=26,
        marker=marker,
        c=[colours(persons.index(point["person"]) % 20) for point in chosen],
        label=kind,
      )
    axes.set(title=label, xticks=[], yticks=[])
    axes.legend(fontsize=8)
  _save(figure, path)


def regions(examples, decode, path):
  """Captions with their image, and for each chosen word the image under its relevance.

  Args:
    examples: as `measures.attention.measure` gives them.
    decode: function (text) -> uint8 (H, W, 3).
    path: of the PNG.
  """
  columns = 1 + max(len(example["words"]) for example in examples)
  figure = Figure(figsize=(1.9 * columns + 2.6, 3.0 * len(examples)), layout="constrained")
  grid = figure.subplots(
    len(examples), columns + 1, squeeze=False, width_ratios=[1.7] + [1] * columns
  )
  for panels, example in zip(grid, examples, strict=True):
    image = decode(example["image"])
    height, width = image.shape[:2]
    for axes in panels:
      axes.axis("off")
    caption = textwrap.fill(example["caption"], 34)
    panels[0].text(0, 0.5, caption, va="center", fontsize=8, transform=panels[0].transAxes)
    panels[1].imshow(image)
    panels[1].set_title(f"cosine {example['cosine']:.2f}", fontsize=8)
    for axes, word in zip(panels[2:], example["words"], strict=False):
      axes.imshow(image)
      relevance = np.asarray(word["relevance"])
      axes.imshow(
        relevance / max(relevance.max(), 1e-12),
        extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        cmap="viridis",
        alpha=0.5,
        interpolation="bilinear",
        vmin=0,
        vmax=1,
      )
      axes.set_title(f"{word['word']} ({word['adds']:+.2f})", fontsize=8)
  _save(figure, path)


def _legend(axes):
  """Adds a legend when there is more than one series to tell apart."""
  if len(axes.get_legend_handles_labels()[0]) > 1:
    axes.legend(fontsize=8)


def _save(figure, path):
  """Writes the PNG, and a PDF beside it for papers; each replaces its file in one move."""
  for suffix in (".png", ".pdf"):
    target = pathlib.Path(path).with_suffix(suffix)
    partial = target.with_name(f".{target.stem}.partial{suffix}")
    figure.savefig(partial, dpi=130)
    os.replace(partial, target)
