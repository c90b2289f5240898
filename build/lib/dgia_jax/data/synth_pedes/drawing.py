"""From a person and a view to a picture, and to what can be seen in it.

The scene is painted several times larger than asked and averaged down; the alpha channel carries
the part every large pixel belongs to, which gives the visible share of each part exactly, after
other clothes, the picture's border and occluders have hidden what they hide.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dgia_jax.data.synth_pedes import figure, scenery
from dgia_jax.data.synth_pedes.solids import PARTS, Painter

# Share of the picture a part must cover before an annotator would see it.
_LEAST_SEEN = {
  "hair": 0.004, "face": 0.0018, "hat": 0.004, "scarf": 0.004, "upper": 0.03, "pattern": 0.008,
  "print": 0.008, "inner": 0.01, "lower": 0.02, "side stripe": 0.004, "shoes": 0.0035, "bag": 0.009,
  "item": 0.004, "body": 0.004,
}  # fmt: skip


def draw(person, view, height, width):
  """Draws one picture.

  Args:
    person: a `people.Person`.
    view: a `cameras.View`.
    height, width: of the picture, pixels.

  Returns:
    (image, seen): uint8 (height, width, 3), and the frozenset of names in `PARTS` that can be seen.
  """
  zoom = 4 if height <= 128 else 2
  large = Image.new("RGBA", (width * zoom, height * zoom))
  pen = ImageDraw.Draw(large)
  rng = np.random.default_rng(view.detail)
  _paint(pen, person, view, *large.size, rng)
  if view.occluder is not None:
    scenery.draw_occluder(pen, view.occluder, *large.size, rng)
  seen = _seen(large.getchannel("A"))
  return _photograph(large.convert("RGB").reduce(zoom), view, rng), seen


def _paint(pen, person, view, width, height, rng):
  """Background and person on the large canvas."""
  scenery.draw_background(pen, view, width, height, rng)
  body = figure.pose(person, view.swing, view.bend)
  scale = view.tall * height / _top(person)
  feet = (width / 2 + view.across * height, height * (1 - view.up))
  scenery.draw_shadow(pen, feet, scale, view.site.ground_rgb)
  painter = Painter(view.yaw, scale, (feet[0], feet[1] + body.lift * scale), view.lean)
  figure.add_person(painter, person, body)
  painter.draw(pen)


def _top(person):
  """Height of the highest point over the height of the head's top: what the crop must hold."""
  if person.attributes.get("item.type") == "umbrella":
    return 1.15
  return {"beanie": 1.08, "cap": 1.04, "sun hat": 1.04}.get(person.attributes.get("hat.type"), 1.0)


def _seen(part_of_pixel):
  """Names of the parts that cover enough of the picture to be described."""
  counts = np.asarray(part_of_pixel.histogram()[: len(PARTS)])
  share = counts / (part_of_pixel.width * part_of_pixel.height)
  return frozenset(
    part for part, s in zip(PARTS[1:], share[1:], strict=True) if s >= _LEAST_SEEN[part]
  )


def _photograph(image, view, rng):
  """Light, colour cast, blur, coarseness and noise of the view."""
  width, height = image.size
  if view.coarse < 1:
    small = (max(4, round(width * view.coarse)), max(8, round(height * view.coarse)))
    image = image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BILINEAR)
  if view.blur > 0:
    image = image.filter(ImageFilter.GaussianBlur(view.blur * height))
  pixels_HxWx3 = np.asarray(image, np.float32)
  across_W = np.linspace(-0.5, 0.5, width, dtype=np.float32)
  light_1xWx3 = (1 + view.slope * across_W)[None, :, None] * np.float32(view.gains)[None, None, :]
  pixels_HxWx3 = 118 + view.contrast * (pixels_HxWx3 * light_1xWx3 - 118)
  if view.noise > 0:
    noise_HxWx3 = rng.standard_normal(pixels_HxWx3.shape, np.float32)
    pixels_HxWx3 = pixels_HxWx3 + view.noise * noise_HxWx3
  return np.clip(np.rint(pixels_HxWx3), 0, 255).astype(np.uint8)
