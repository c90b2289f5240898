"""The paper's figures, drawn with matplotlib: published numbers in grey, ours in colour.

Every function takes the path of a PNG and writes a PDF with the same name beside it.
"""

import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import figure_files
from experiments.paper.report import Row, mean_and_deviation

PAPER, OURS, SECOND = "0.55", "tab:blue", "tab:orange"  # SECOND: another series of ours
TICK_WIDTH = 12  # characters per line of a tick's label
_MOST_BESIDE = 7  # settings with which panels stand beside each other, not one above the other


class Line(NamedTuple):
  """One line of a `curve`: its colour and its points (x, row)."""

  colour: str
  points: Sequence[tuple[float, Row]]


def compare_rows(rows: Sequence[Row], path: pathlib.Path, ylabel: str) -> None:
  """Our means with their standard deviations beside the published numbers, one tick per row.

  Rows without any number are left out; at least one row must have a number.
  """
  rows = [row for row in rows if row.values or row.paper is not None]
  figure = Figure(figsize=(max(3.2, 1.1 * len(rows) + 1.2), 3.0), layout="constrained")
  axes = figure.subplots()
  ours = [(x, row.mean, row.deviation or 0.0) for x, row in enumerate(rows) if row.values]
  if ours:
    x, mean, deviation = zip(*ours, strict=True)
    axes.errorbar(x, mean, deviation, fmt="o", color=OURS, capsize=4)
  published = [(x, row.paper) for x, row in enumerate(rows) if row.paper is not None]
  if published:
    _published(axes, *zip(*published, strict=True))
  _name_ticks(axes, [row.setting for row in rows])
  axes.set_ylabel(ylabel)
  axes.grid(axis="y", alpha=0.3)
  if ours and published:
    _legend_of_both(axes)
  figure_files.save(figure, path)


def paired_gains(
  gains: Mapping[str, Mapping[str, Mapping[int, float]]],
  published: Mapping[str, float],
  baseline: str,
  path: pathlib.Path,
) -> None:
  """Gains over the baseline, paired by seed: a small dot per seed, and the mean with its deviation.

  Args:
    gains: {setting: {score as printed: {seed: gain}}}; every setting has the same scores.
    published: {setting: published gain} for the first score.
    baseline: label of the setting that the gains refer to.
    path: of the PNG.
  """
  metrics = list(next(iter(gains.values())))
  width = max(3.0, 1.0 * len(gains) + 1.0)
  rows, columns = (1, len(metrics)) if len(gains) <= _MOST_BESIDE else (len(metrics), 1)
  figure = Figure(figsize=(width * columns, 3.0 * rows), layout="constrained")
  panels = list(figure.subplots(rows, columns, squeeze=False).flat)
  for axes, metric in zip(panels, metrics, strict=True):
    axes.axhline(0, color="black", lw=0.8)
    for x, (label, by_metric) in enumerate(gains.items()):
      values = list(by_metric[metric].values())
      offsets = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
      if len(values) > 1:
        axes.scatter(x + offsets, values, s=12, color=OURS, alpha=0.45, lw=0)
      mean, deviation = mean_and_deviation(values)
      axes.errorbar(x, mean, deviation or 0.0, fmt="o", color=OURS, capsize=4)
      if metric == metrics[0] and label in published:
        _published(axes, [x], [published[label]])
    _name_ticks(axes, gains)
    axes.set(ylabel=f"gain over {baseline} in {metric} (points)")
    axes.grid(axis="y", alpha=0.3)
  if published.keys() & gains.keys():
    _legend_of_both(panels[0])
  figure_files.save(figure, path)


def curve(lines: Mapping[str, Line], path: pathlib.Path, xlabel: str, ylabel: str) -> None:
  """Scores over a number, as in Figure 3; the keys of `lines` are their names in the legend."""
  figure = Figure(figsize=(4.4, 3.1), layout="constrained")
  axes = figure.subplots()
  for name, line in lines.items():
    ours = [(x, row.mean, row.deviation or 0.0) for x, row in line.points if row.values]
    if ours:
      x, mean, deviation = zip(*ours, strict=True)
      label = f"{name}, ours" if any(row.paper is not None for _, row in line.points) else name
      axes.errorbar(x, mean, deviation, color=line.colour, marker="o", capsize=3, label=label)
    published = [(x, row.paper) for x, row in line.points if row.paper is not None]
    if published:
      marker = "s" if line.colour == OURS else "^"
      axes.plot(
        *zip(*published, strict=True), ls="--", marker=marker, color=PAPER, label=f"{name}, paper"
      )
  axes.set(xlabel=xlabel, ylabel=ylabel)
  axes.grid(alpha=0.3)
  _legend(axes)
  figure_files.save(figure, path)


def precision(
  percents: Mapping[str, Mapping[int, Sequence[float]]],
  published: Mapping[str, float | None],
  path: pathlib.Path,
) -> None:
  """Precision of mined relations over epochs, as in Figure 4: one panel per kind of relation.

  Args:
    percents: {"local" or "global": {epoch: percent of each seed}}; kinds without any number are
      left out.
    published: the paper's final precision of each kind, None if it has none.
    path: of the PNG.
  """
  kinds = [kind for kind in percents if percents[kind] or published[kind] is not None]
  figure = Figure(figsize=(3.6 * len(kinds), 3.0), layout="constrained")
  for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
    by_epoch = percents[kind]
    epochs = sorted(by_epoch)
    if epochs:
      statistics = [mean_and_deviation(by_epoch[epoch]) for epoch in epochs]
      mean = np.array([mean for mean, _ in statistics])
      deviation = np.array([deviation or 0.0 for _, deviation in statistics])
      axes.plot(epochs, mean, marker="o", color=OURS, label="ours, mean")
      if any(deviation):
        axes.fill_between(
          epochs,
          mean - deviation,
          mean + deviation,
          color=OURS,
          alpha=0.2,
          lw=0,
          label="ours, standard deviation",
        )
    if published[kind] is not None:
      axes.axhline(published[kind], color=PAPER, ls="--", label="paper, final epoch")
    axes.set(title=f"{kind} relations", xlabel="epoch", ylabel="correct / mined (%)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    _legend(axes)
  figure_files.save(figure, path)


def people(points_by_setting: Mapping[str, Sequence[Mapping]], path: pathlib.Path) -> None:
  """Features of people on a plane: one colour per person, one panel per setting.

  Args:
    points_by_setting: as measured by `measures.tsne`.
    path: of the PNG.
  """
  markers = {"image": "o", "text": "x"}
  panels = len(points_by_setting)
  figure = Figure(figsize=(3.4 * panels, 3.6), layout="constrained")
  colours = matplotlib.colormaps["tab20"]
  for axes, (setting, points) in zip(
    figure.subplots(1, panels, squeeze=False)[0], points_by_setting.items(), strict=True
  ):
    persons = sorted({point["person"] for point in points})
    for kind, marker in markers.items():
      of_kind = [point for point in points if point["kind"] == kind]
      axes.scatter(
        [point["x"] for point in of_kind],
        [point["y"] for point in of_kind],
        s=22,
        marker=marker,
        c=[colours(persons.index(point["person"]) % 20) for point in of_kind],
      )
    axes.set(title=setting, xticks=[], yticks=[])
  grey = [
    Line2D([], [], ls="", color="0.3", marker=marker, label=kind)
    for kind, marker in markers.items()
  ]
  figure.legend(handles=grey, loc="outside lower center", ncols=2)
  figure_files.save(figure, path)


def regions(
  examples: Sequence[Mapping[str, Any]], decode: Callable[[str], np.ndarray], path: pathlib.Path
) -> None:
  """Captions with their images, and the relevance of the image's regions for each chosen word.

  Args:
    examples: as measured by `measures.attention`.
    decode: converts an example's image to uint8 (H, W, 3).
    path: of the PNG.
  """
  columns = 1 + max(len(example["words"]) for example in examples)
  images = [decode(example["image"]) for example in examples]
  aspect = images[0].shape[0] / images[0].shape[1]
  figure = Figure(figsize=(1.3 * columns + 2.6, (1.3 * aspect + 0.4) * len(examples)),
                  layout="constrained")  # fmt: skip
  grid = figure.subplots(
    len(examples), columns + 1, squeeze=False, width_ratios=[1.7] + [1] * columns
  )
  for panels, example, image in zip(grid, examples, images, strict=True):
    height, width = image.shape[:2]
    for axes in panels:
      axes.axis("off")
    caption = textwrap.fill(example["caption"], 30)
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
        alpha=0.55,
        interpolation="bilinear",
        vmin=0,
        vmax=1,
      )
      axes.set_title(f"{word['word']} ({word['adds']:+.2f})", fontsize=8)
  figure_files.save(figure, path)


def _name_ticks(axes: Axes, labels: Sequence[str] | Mapping[str, Any]) -> None:
  """Labels the ticks 0, 1, ... of the x axis, broken into short lines."""
  wrapped = [_broken_label(label) for label in labels]
  axes.set_xticks(range(len(wrapped)), wrapped)
  axes.set_xlim(-0.6, len(wrapped) - 0.4)


def _broken_label(label: str) -> str:
  """A label in lines of about 12 characters; only longer words break, after "+" and "_"."""
  mark = " \0"  # a place to break that is no space of the label
  words = [
    word if len(word) <= TICK_WIDTH else word.replace("+", "+" + mark).replace("_", "_" + mark)
    for word in label.split()
  ]
  lines = textwrap.fill(" ".join(words), TICK_WIDTH, break_long_words=False)
  return lines.replace(mark, "").replace("\0", "")


def _published(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
  """Marks published numbers with bars; as markers, because a legend would cover `hlines`."""
  axes.plot(x, y, ls="", marker="_", markersize=36, mew=3, color=PAPER)


def _legend_of_both(axes: Axes) -> None:
  """The legend of our means and the published numbers beside them."""
  axes.legend(
    handles=[
      Line2D([], [], color=OURS, marker="o", ls="", label="ours"),
      Line2D([], [], color=PAPER, lw=3, label="paper"),
    ]
  )


def _legend(axes: Axes) -> None:
  """A legend, unless the axes show a single series."""
  if len(axes.get_legend_handles_labels()[0]) > 1:
    axes.legend()
