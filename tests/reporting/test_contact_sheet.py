"""Contact sheets frame correct images and keep the order of ranks."""

import numpy as np
import pytest
from PIL import Image

from dgia_jax.reporting import contact_sheet as sheets

CAPTIONS = ["a man in red", "a woman " + "with a very long description " * 40, ""]
CORRECT = [[True, False, False, True], [False, False, False, False], [False, True, True, True]]


def gray_images(height, width):
  return [[np.full((height, width, 3), 90, np.uint8) for _ in row] for row in CORRECT]


def frame_pixels(sheet, color):
  """How many pixels have the colour of a frame, by row and column of cells."""
  is_frame_HxW = np.all(np.asarray(sheet) == color, axis=-1)
  left = sheets.CAPTION_WIDTH + 2 * sheets.GAP
  top = is_frame_HxW.shape[0] % len(CORRECT)  # what the rows leave over is not in any of them
  return [
    [int(cell.sum()) for cell in np.array_split(row, len(CORRECT[0]), axis=1)]
    for row in np.split(is_frame_HxW[top:, left:], len(CORRECT))
  ]


@pytest.mark.parametrize("height, width", [(64, 32), (384, 128)])
def test_right_images_are_framed_and_wrong_ones_are_not(height, width, tmp_path):
  path = tmp_path / "sheet.png"
  sheets.contact_sheet(CAPTIONS, gray_images(height, width), CORRECT, path)
  assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
  sheet = Image.open(path).convert("RGB")

  shown = sheets.CELL_HEIGHT * width // height
  cell = shown + 2 * sheets.FRAME + sheets.GAP
  assert sheet.width == sheets.CAPTION_WIDTH + 2 * sheets.GAP + len(CORRECT[0]) * cell

  def border(thickness):
    outer = (shown + 2 * thickness) * (sheets.CELL_HEIGHT + 2 * thickness)
    return outer - shown * sheets.CELL_HEIGHT

  thick = [[border(sheets.FRAME) if right else 0 for right in row] for row in CORRECT]
  thin = [[0 if right else border(1) for right in row] for row in CORRECT]
  assert frame_pixels(sheet, sheets.RIGHT) == thick
  assert frame_pixels(sheet, sheets.WRONG) == thin


def test_images_keep_rank_order_and_content():
  shades = (10, 60, 110, 160)
  images = [[np.full((64, 32, 3), shade, np.uint8) for shade in shades] for _ in CORRECT]
  sheet = np.asarray(sheets.draw(CAPTIONS, images, CORRECT))
  middle = sheet[sheet.shape[0] // 2, :, :]  # through the images of the second of three rows
  gray = [int(p[0]) for p in middle if p[0] == p[1] == p[2] and p[0] in shades]
  assert list(dict.fromkeys(gray)) == list(shades)


def test_rows_may_be_short_and_have_scores():
  images = gray_images(64, 32)
  images[1] = images[1][:1]
  correct = [CORRECT[0], [True], CORRECT[2]]
  scores = [[0.9, 0.8, 0.7, 0.6], [0.5], [0.4, 0.3, 0.2, -0.1]]
  plain = np.asarray(sheets.draw(CAPTIONS, images, correct))
  scored = np.asarray(sheets.draw(CAPTIONS, images, correct, scores))
  assert plain.shape == scored.shape
  assert (plain != scored).any()


def test_unknown_rows_are_framed_in_gray():
  sheet = sheets.draw(CAPTIONS, gray_images(64, 32), [CORRECT[0], None, None])
  known, *unknown = frame_pixels(sheet, sheets.RIGHT)
  assert [bool(count) for count in known] == CORRECT[0]
  wrong = frame_pixels(sheet, sheets.WRONG)
  assert not np.any(unknown) and np.any(wrong[0]) and not np.any(wrong[1:])


def test_lists_of_other_lengths_are_refused():
  images = gray_images(64, 32)
  with pytest.raises(ValueError, match="correct of a contact sheet"):
    sheets.draw(CAPTIONS, images, CORRECT[:2])
  with pytest.raises(ValueError, match="scores of a contact sheet"):
    sheets.draw(CAPTIONS, images, CORRECT, [[0.1]] * 3)
  with pytest.raises(ValueError, match="at least one caption"):
    sheets.draw([], [], [])


def test_more_than_ten_images_continue_on_the_next_line():
  images = [[np.full((64, 32, 3), 90, np.uint8)] * count for count in (23, 1, 0)]
  sheet = sheets.draw(CAPTIONS, images, None, [[0.5] * len(row) for row in images])
  one_line = sheets.draw(CAPTIONS[:1], [images[0][:10]], None)
  assert sheet.width == one_line.width
  line = one_line.height - sheets._HEAD_HEIGHT
  assert sheet.height == sheets._HEAD_HEIGHT + (3 + 1 + 1) * line


def test_images_may_be_pil_images():
  arrays = gray_images(64, 32)
  pictures = [[Image.fromarray(image) for image in row] for row in arrays]
  expected = np.asarray(sheets.draw(CAPTIONS, arrays, CORRECT))
  np.testing.assert_array_equal(np.asarray(sheets.draw(CAPTIONS, pictures, CORRECT)), expected)
