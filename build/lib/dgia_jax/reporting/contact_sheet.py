"""One picture of what a model retrieves: captions with their best images, right ones framed."""

import os
import pathlib

from PIL import Image, ImageDraw, ImageFont

CELL_HEIGHT = 192  # pixels an image is shown at, whatever its own size
CAPTION_WIDTH = 340
GAP = 12  # between cells
FRAME = 5  # thickness around a correct image
RIGHT, WRONG = (22, 163, 74), (203, 100, 100)
INK, FAINT, PAPER, STRIPE = (24, 24, 27), (113, 113, 122), (255, 255, 255), (244, 244, 245)


def contact_sheet(queries, images, correct, path, scores=None):
  """Draws one row per caption, its best images in rank order, and writes a PNG.

  Correct images have a thick green frame, wrong ones a thin red line.

  Args:
    queries: captions.
    images: per caption a list of uint8 (H, W, 3) arrays, best first; rows may differ in length.
    correct: per caption a list of bools, one per image; None where nobody knows.
    path: of the PNG; its folder must exist.
    scores: per caption a list of similarities to print under the images, or None.

  Raises:
    ValueError: there is no caption, or the lists do not fit together.
  """
  sheet = draw(queries, images, correct, scores)
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.partial")
  sheet.save(temporary, format="PNG", optimize=True)
  os.replace(temporary, path)


def draw(queries, images, correct, scores=None):
  """The sheet of `contact_sheet` as an RGB `PIL.Image`."""
  _check(queries, images, correct, scores)
  rows = [[_thumbnail(image) for image in row] for row in images]
  cell_width = max(cell.width for row in rows for cell in row) + 2 * FRAME
  cell_height = CELL_HEIGHT + 2 * FRAME
  label, text = ImageFont.load_default(size=14), ImageFont.load_default(size=17)
  label_height = 22
  columns = max(len(row) for row in rows)
  row_height = cell_height + label_height + GAP
  head_height = 36
  left = CAPTION_WIDTH + 2 * GAP
  sheet = Image.new(
    "RGB", (left + columns * (cell_width + GAP), head_height + len(rows) * row_height), PAPER
  )
  pen = ImageDraw.Draw(sheet)
  pen.text((GAP, head_height / 2), "caption", FAINT, label, anchor="lm")
  for rank in range(columns):
    center = left + rank * (cell_width + GAP) + cell_width / 2
    pen.text((center, head_height / 2), f"{rank + 1}", FAINT, label, anchor="mm")

  for r, cells in enumerate(rows):
    top = head_height + r * row_height
    if r % 2 == 0:
      pen.rectangle((0, top, sheet.width, top + row_height - 1), fill=STRIPE)
    top += GAP // 2
    _caption(pen, queries[r], (GAP, top + FRAME), text, cell_height + label_height)
    for rank, cell in enumerate(cells):
      x = left + rank * (cell_width + GAP) + (cell_width - cell.width) // 2
      y = top + FRAME
      is_right = correct is not None and bool(correct[r][rank])
      frame = FRAME if is_right else 1
      box = (x - frame, y - frame, x + cell.width + frame - 1, y + cell.height + frame - 1)
      pen.rectangle(box, fill=_frame_color(correct, is_right))
      sheet.paste(cell, (x, y))
      if scores is not None:
        below = (x + cell.width / 2, y + cell.height + FRAME + label_height / 2)
        color = RIGHT if is_right else FAINT
        pen.text(below, f"{float(scores[r][rank]):.3f}", color, label, anchor="mm")
  return sheet


def _frame_color(correct, is_right):
  if correct is None:
    return FAINT
  return RIGHT if is_right else WRONG


def _check(queries, images, correct, scores):
  if not queries or not all(images):
    raise ValueError("a contact sheet needs at least one caption, and an image for each")
  for name, rows in (("images", images), ("correct", correct), ("scores", scores)):
    if rows is None:
      continue
    if len(rows) != len(queries) or [len(row) for row in rows] != [len(row) for row in images]:
      raise ValueError(f"{name} of a contact sheet must have a row per caption, as long as images'")


def _thumbnail(image_HxWx3):
  """The image at the height of a cell, its proportions kept."""
  height, width = image_HxWx3.shape[:2]
  size = (max(1, round(width * CELL_HEIGHT / height)), CELL_HEIGHT)
  return Image.fromarray(image_HxWx3).resize(size, Image.Resampling.LANCZOS)


def _caption(pen, caption, corner, font, height):
  """Wraps the caption into CAPTION_WIDTH and cuts what does not fit the row, with three dots."""
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
