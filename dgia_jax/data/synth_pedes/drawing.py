"""Draws an image of a person in a view, and determines which parts are visible.

The scene is painted several times larger than the image and averaged. The alpha channel holds the
part that each large pixel belongs to. So the visible area of each part is known exactly, whatever
clothes, occluders and the image border hide.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dgia_jax.data.synth_pedes import body as body_lib
from dgia_jax.data.synth_pedes import figure, scenery
from dgia_jax.data.synth_pedes.cameras import View
from dgia_jax.data.synth_pedes.people import Person
from dgia_jax.data.synth_pedes.solids import PARTS, Painter

# Fraction of the image that a part must cover before an annotator would see it.
_LEAST_SEEN = {
  "hair": 0.004, "face": 0.0018, "hat": 0.004, "scarf": 0.004, "upper": 0.03, "pattern": 0.008,
  "print": 0.008, "inner": 0.01, "lower": 0.02, "side stripe": 0.004, "shoes": 0.0035, "bag": 0.009,
  "item": 0.004, "body": 0.004,
}  # fmt: skip


def draw(person: Person, view: View, height: int, width: int) -> tuple[np.ndarray, frozenset[str]]:
  """Draws one image.

  Args:
    person: who is drawn.
    view: how.
    height, width: of the image, in pixels.

  Returns:
    The image, uint8 (height, width, 3), and the names in `PARTS` of the visible parts.
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


def _paint(
  pen: ImageDraw.ImageDraw,
  person: Person,
  view: View,
  width: int,
  height: int,
  rng: np.random.Generator,
) -> None:
  """Paints background and person on the large canvas."""
  scenery.draw_background(pen, view, width, height, rng)
  body = body_lib.pose(person, view.swing, view.bend)
  scale = view.tall * height / _top(person)
  feet = (width / 2 + view.across * height, height * (1 - view.up))
  scenery.draw_shadow(pen, feet, scale, view.site.ground_rgb)
  painter = Painter(view.yaw, scale, (feet[0], feet[1] + body.lift * scale), view.lean)
  figure.add_person(painter, person, body)
  painter.draw(pen)


def _top(person: Person) -> float:
  """Height of the highest point (hat, umbrella) relative to the top of the head."""
  if person.attributes.get("item.type") == "umbrella":
    return 1.15
  return {"beanie": 1.08, "cap": 1.04, "sun hat": 1.04}.get(person.attributes.get("hat.type"), 1.0)


def _seen(part_of_pixel: Image.Image) -> frozenset[str]:
  """Names of the parts that cover enough of the image to be described."""
  counts = np.asarray(part_of_pixel.histogram()[: len(PARTS)])
  share = counts / (part_of_pixel.width * part_of_pixel.height)
  return frozenset(
    part for part, s in zip(PARTS[1:], share[1:], strict=True) if s >= _LEAST_SEEN[part]
  )


def _photograph(image: Image.Image, view: View, rng: np.random.Generator) -> np.ndarray:
  """Applies light, colour cast, blur, coarseness and noise of the view."""
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
