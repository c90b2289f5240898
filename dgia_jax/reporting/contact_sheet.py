"""One picture of retrieval results: captions with their top-ranked images, correct ones framed."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dgia_jax import files

CELL_HEIGHT = 192  # pixels; every image is drawn at this height
COLUMNS = 10  # images per line; more of one caption continue on the next line
CAPTION_WIDTH = 340
GAP = 12  # between cells
FRAME = 5  # thickness around a correct image
RIGHT, WRONG = (22, 163, 74), (203, 100, 100)
INK, FAINT, PAPER, STRIPE = (24, 24, 27), (113, 113, 122), (255, 255, 255), (244, 244, 245)
_HEAD_HEIGHT, _LABEL_HEIGHT = 36, 22
_LINE_HEIGHT = CELL_HEIGHT + 2 * FRAME + _LABEL_HEIGHT + GAP

Color = tuple[int, int, int]
Picture = UInt8[np.ndarray, "_h _w 3"] | Image.Image


def contact_sheet(
  queries: Sequence[str],
  images: Sequence[Sequence[Picture]],
  correct: Sequence[Sequence[bool] | None] | None,
  path: pathlib.Path | str,
  scores: Sequence[Sequence[float]] | None = None,
) -> None:
  """Draws a block per caption, with its images in rank order, and writes a PNG.

  Correct images have a thick green frame, wrong ones a thin red line.

  Args:
    queries: captions.
    images: per caption, images of any size, best first; captions may have different numbers.
    correct: per image, whether it is correct; None if unknown, for one caption or for all.
    path: the PNG file; its folder must exist.
    scores: per image, the similarity to print below it.

  Raises:
    ValueError: there is no caption or no image, or the lists do not have the same lengths.
  """
  sheet = draw(queries, images, correct, scores)
  with files.replacing(path) as partial:
    sheet.save(partial, format="PNG", optimize=True)


def draw(
  queries: Sequence[str],
  images: Sequence[Sequence[Picture]],
  correct: Sequence[Sequence[bool] | None] | None,
  scores: Sequence[Sequence[float]] | None = None,
) -> Image.Image:
  """The sheet of `contact_sheet` as an RGB image."""
  _check(queries, images, correct, scores)
  blocks = [[_thumbnail(image) for image in row] for row in images]
  cell_width = max(cell.width for row in blocks for cell in row) + 2 * FRAME
  label, text = ImageFont.load_default(size=14), ImageFont.load_default(size=17)
  columns = min(max(len(row) for row in blocks), COLUMNS)
  wraps = any(len(row) > COLUMNS for row in blocks)
  lines = [max(-(-len(row) // COLUMNS), 1) for row in blocks]
  left = CAPTION_WIDTH + 2 * GAP
  size = (left + columns * (cell_width + GAP), _HEAD_HEIGHT + sum(lines) * _LINE_HEIGHT)
  sheet = Image.new("RGB", size, PAPER)
  pen = ImageDraw.Draw(sheet)
  pen.text((GAP, _HEAD_HEIGHT / 2), "caption", FAINT, label, anchor="lm")
  if not wraps:
    for column in range(columns):
      center = left + column * (cell_width + GAP) + cell_width / 2
      pen.text((center, _HEAD_HEIGHT / 2), f"{column + 1}", FAINT, label, anchor="mm")

  top = _HEAD_HEIGHT
  for number, cells in enumerate(blocks):
    if number % 2 == 0:
      bottom = top + lines[number] * _LINE_HEIGHT - 1
      pen.rectangle((0, top, sheet.width, bottom), fill=STRIPE)
    first = top + GAP // 2 + FRAME
    _draw_caption(pen, queries[number], (GAP, first), text, lines[number] * _LINE_HEIGHT - GAP)
    for rank, cell in enumerate(cells):
      line, column = divmod(rank, COLUMNS)
      x = left + column * (cell_width + GAP) + (cell_width - cell.width) // 2
      y = first + line * _LINE_HEIGHT
      known = correct[number] if correct is not None else None
      is_right = known is not None and bool(known[rank])
      frame = FRAME if is_right else 1
      box = (x - frame, y - frame, x + cell.width + frame - 1, y + cell.height + frame - 1)
      pen.rectangle(box, fill=_frame_color(known is not None, is_right))
      sheet.paste(cell, (x, y))
      words = [f"{rank + 1}."] if wraps else []
      words += [f"{float(scores[number][rank]):.3f}"] if scores is not None else []
      below = (x + cell.width / 2, y + cell.height + FRAME + _LABEL_HEIGHT / 2)
      pen.text(below, "  ".join(words), RIGHT if is_right else FAINT, label, anchor="mm")
    top += lines[number] * _LINE_HEIGHT
  return sheet


def _frame_color(known: bool, is_right: bool) -> Color:
  if not known:
    return FAINT
  return RIGHT if is_right else WRONG


def _check(
  queries: Sequence[str],
  images: Sequence[Sequence[Picture]],
  correct: Sequence[Sequence[bool] | None] | None,
  scores: Sequence[Sequence[float]] | None,
) -> None:
  if not queries or not any(images):
    raise ValueError("a contact sheet needs at least one caption and one image")
  for name, rows in (("images", images), ("correct", correct), ("scores", scores)):
    if rows is None:
      continue
    fit = [row is None or len(row) == len(shown) for row, shown in zip(rows, images, strict=False)]
    if len(rows) != len(queries) or not all(fit):
      raise ValueError(f"{name} of a contact sheet must have a row per caption, as long as images'")


def _thumbnail(image: Picture) -> Image.Image:
  """The image at the height of a cell, its proportions kept."""
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  size = (max(1, round(image.width * CELL_HEIGHT / image.height)), CELL_HEIGHT)
  return image.resize(size, Image.Resampling.LANCZOS)


def _draw_caption(
  pen: ImageDraw.ImageDraw, caption: str, corner: tuple[float, float], font: Any, height: float
) -> None:
  """Wraps the caption into CAPTION_WIDTH; three dots replace what does not fit into `height`."""
  lines = [""]
  for word in caption.split():
    longer = f"{lines[-1]} {word}".strip()
    if not lines[-1] or pen.textlength(longer, font) <= CAPTION_WIDTH:
      lines[-1] = longer
    else:
      lines.append(word)
  line_height = font.size * 1.3
  fitting = int(height // line_height)
  if len(lines) > fitting:
    lines = [*lines[: fitting - 1], f"{lines[fitting - 1]} ..."]
  for i, line in enumerate(lines):
    pen.text((corner[0], corner[1] + i * line_height), line, INK, font)
