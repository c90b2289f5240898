"""A small painter of solid shapes for a level camera: limbs, stacked ellipses, marks on them.

The frame of the body: x to the person's left, y up, z forward, in units of the person's height,
feet at y = 0. The camera is rotated around the person by `yaw` (0: from the front, pi: from
behind), without perspective. Shapes are collected and drawn from far to near. The alpha channel of
the image holds the number of the part of each pixel, so that drawing also determines which parts
are visible.
"""

import math
from collections.abc import Sequence

from PIL import ImageDraw

PARTS = (
  "background", "body", "hair", "face", "hat", "scarf", "upper", "pattern", "print", "inner",
  "lower", "side stripe", "shoes", "bag", "item",
)  # fmt: skip
PART_NUMBER = {name: number for number, name in enumerate(PARTS)}

RGB = tuple[int, int, int]
Point = tuple[float, float, float]  # x, y, z in the frame of the body
Pixel = tuple[float, float]  # x, y in the image, from the top left
Section = tuple[float, float, float, float, float]  # y, x, z, radius_x, radius_z of an ellipse


def darker(rgb: RGB, factor: float) -> RGB:
  """Scales the brightness of a colour; a factor above 1 makes it lighter."""
  return tuple(min(255, int(c * factor)) for c in rgb)


def mixed(a: RGB, b: RGB, share: float = 0.5) -> RGB:
  """Mixes two colours; `share` is that of `b`."""
  return tuple(int(x * (1 - share) + y * share) for x, y in zip(a, b, strict=True))


class Painter:
  """Collects shapes in the frame of the body and draws them from far to near."""

  def __init__(self, yaw: float, scale: float, origin: Pixel, lean: float = 0.0):
    """Initialises the camera.

    Args:
      yaw: angle of the camera in radians.
      scale: pixels per height of the person.
      origin: pixel of the feet.
      lean: sideways shift per unit of y.
    """
    self.cos, self.sin = math.cos(yaw), math.sin(yaw)
    self.yaw, self.scale, self.origin, self.lean = yaw, scale, origin, lean
    self._shapes = []

  def flat(self, across: float, y: float) -> Pixel:
    """Pixel of a point given in the image plane, in units of the person's height."""
    x0, y0 = self.origin
    return (x0 + self.scale * (across + self.lean * y), y0 - self.scale * y)

  def pixel(self, x: float, y: float, z: float) -> Pixel:
    """Pixel of a point in the frame of the body."""
    return self.flat(x * self.cos + z * self.sin, y)

  def depth(self, x: float, z: float) -> float:
    """Nearness of a point to the camera: larger is nearer."""
    return z * self.cos - x * self.sin

  def polygon(self, depth: float, part: str, pixels: Sequence[Pixel], rgb: RGB) -> None:
    """Adds a polygon given in pixels."""
    self._shapes.append((depth, "polygon", pixels, (*rgb, PART_NUMBER[part])))

  def disc(
    self, depth: float, part: str, pixel: Pixel, radius: float, rgb: RGB, flatten: float = 1.0
  ) -> None:
    """Adds an ellipse: `radius` in heights of the person, `flatten` times that vertically."""
    rx, ry = self.scale * radius, self.scale * radius * flatten
    box = (pixel[0] - rx, pixel[1] - ry, pixel[0] + rx, pixel[1] + ry)
    self._shapes.append((depth, "ellipse", box, (*rgb, PART_NUMBER[part])))

  def line(self, depth: float, part: str, a: Point, b: Point, width: float, rgb: RGB) -> None:
    """Adds a straight line of constant width between two points in the frame of the body."""
    self.limb(depth, part, a, b, width / 2, width / 2, rgb, shaded=False)

  def limb(
    self,
    depth: float,
    part: str,
    a: Point,
    b: Point,
    radius_a: float,
    radius_b: float,
    rgb: RGB,
    shaded: bool = True,
  ) -> None:
    """Adds a capsule between two points in the frame of the body, darker along one edge."""
    a, b = self.pixel(*a), self.pixel(*b)
    if shaded:
      self._capsule(depth, part, a, b, radius_a, radius_b, darker(rgb, 0.8))
      shift = -0.22 * self.scale * min(radius_a, radius_b)
      a, b = [(p[0] + shift, p[1]) for p in (a, b)]
      radius_a, radius_b = 0.8 * radius_a, 0.8 * radius_b
    self._capsule(depth, part, a, b, radius_a, radius_b, rgb)

  def _capsule(
    self, depth: float, part: str, a: Pixel, b: Pixel, radius_a: float, radius_b: float, rgb: RGB
  ) -> None:
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.hypot(dx, dy) or 1.0
    nx, ny = -dy / length * self.scale, dx / length * self.scale
    self.polygon(
      depth,
      part,
      [
        (a[0] + nx * radius_a, a[1] + ny * radius_a),
        (b[0] + nx * radius_b, b[1] + ny * radius_b),
        (b[0] - nx * radius_b, b[1] - ny * radius_b),
        (a[0] - nx * radius_a, a[1] - ny * radius_a),
      ],
      rgb,
    )
    self.disc(depth, part, a, radius_a, rgb)
    self.disc(depth, part, b, radius_b, rgb)

  def stack(
    self, depth: float, part: str, sections: Sequence[Section], rgb: RGB, shaded: bool = True
  ) -> "Stack":
    """Adds a solid of stacked ellipses, and returns it so that its surface can be marked.

    Args:
      depth: of the whole solid.
      part: a name in PARTS.
      sections: from top to bottom.
      rgb: its colour.
      shaded: whether one edge is darker.
    """
    solid = Stack(self, depth, sections)
    top, bottom = sections[0][0], sections[-1][0]
    solid.mark(part, -math.pi, math.pi, top, bottom, darker(rgb, 0.8) if shaded else rgb)
    if shaded:  # light from one side: the far edge stays dark
      solid.mark(part, solid.facing - 1.6, solid.facing + 0.85, top, bottom, rgb)
    return solid

  def draw(self, draw: ImageDraw.ImageDraw) -> None:
    """Draws all shapes on an RGBA image, from far to near (ties in the order of adding)."""
    for _, kind, place, fill in sorted(self._shapes, key=lambda shape: shape[0]):
      if kind == "polygon":
        draw.polygon(place, fill=fill)
      else:
        draw.ellipse(place, fill=fill)


class Stack:
  """A stack of ellipses that was added to a painter, and whose surface can be marked.

  A point on the surface is (angle, y): angle 0 is the front, pi/2 the person's left, pi the back.
  """

  def __init__(self, painter: Painter, depth: float, sections: Sequence[Section]):
    self.painter, self.depth, self.sections = painter, depth, sections
    _, _, _, rx, rz = sections[len(sections) // 2]
    self.facing = math.atan2(-painter.sin / max(rx, 1e-6), painter.cos / max(rz, 1e-6))

  def _at(self, y: float) -> Sequence[float]:
    above = self.sections[0]
    for below in self.sections[1:]:
      if y >= below[0]:
        share = (above[0] - y) / max(above[0] - below[0], 1e-9)
        share = max(0.0, share)
        return [a + (b - a) * share for a, b in zip(above, below, strict=True)]
      above = below
    return above

  def place(self, angle: float, y: float) -> Pixel:
    """Pixel of a point on the surface, visible or not."""
    _, x, z, rx, rz = self._at(y)
    return self.painter.pixel(x + rx * math.sin(angle), y, z + rz * math.cos(angle))

  def mark(self, part: str, start: float, end: float, top: float, bottom: float, rgb: RGB) -> None:
    """Paints the surface between two angles and two heights where it faces the camera."""
    middle, half = (start + end) / 2, (end - start) / 2
    inner = [s[0] for s in self.sections if bottom < s[0] < top]
    for turn in (-1, 0, 1):
      around = _wrapped(middle - self.facing) + turn * 2 * math.pi
      low, high = max(around - half, -math.pi / 2), min(around + half, math.pi / 2)
      if high - low < 1e-3:
        continue
      heights = [top, *inner, bottom]
      left = [self.place(self.facing + low, y) for y in heights]
      right = [self.place(self.facing + high, y) for y in reversed(heights)]
      self.painter.polygon(self.depth, part, left + right, rgb)

  def faces(self, angle: float) -> bool:
    """Whether the surface faces the camera at this angle."""
    return abs(_wrapped(angle - self.facing)) < math.pi / 2


def _wrapped(angle: float) -> float:
  return (angle + math.pi) % (2 * math.pi) - math.pi
