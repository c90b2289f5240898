"""A small painter for solid shapes seen by a level camera: limbs, stacked ellipses, marks on them.

The body's frame: x to the person's left, y up, z forward, in units of the person's height, feet at
y = 0. The camera turns around the person by `yaw` (0: from the front, pi: from behind), without
perspective. Shapes are collected and drawn from far to near. Colours go to RGB and the number of
the part to the alpha channel of one RGBA image, so that one pass of drawing also tells what is
visible.
"""

import math

PARTS = (
  "background", "body", "hair", "face", "hat", "scarf", "upper", "pattern", "print", "inner",
  "lower", "side stripe", "shoes", "bag", "item",
)  # fmt: skip
PART_NUMBER = {name: number for number, name in enumerate(PARTS)}


def darker(rgb, factor):
  """The colour scaled in brightness: below 1 darker, above 1 lighter."""
  return tuple(min(255, int(c * factor)) for c in rgb)


def mixed(a, b, share=0.5):
  """The colour between `a` and `b`."""
  return tuple(int(x * (1 - share) + y * share) for x, y in zip(a, b, strict=True))


class Painter:
  """Collects shapes in the body's frame and draws them in depth order."""

  def __init__(self, yaw, scale, origin, lean=0.0):
    """scale: pixels per person height; origin: pixel of the feet; lean: sideways shift per y."""
    self.cos, self.sin = math.cos(yaw), math.sin(yaw)
    self.yaw, self.scale, self.origin, self.lean = yaw, scale, origin, lean
    self._shapes = []

  def flat(self, across, y):
    """Pixel of a point given across the picture and up, both in person heights."""
    x0, y0 = self.origin
    return (x0 + self.scale * (across + self.lean * y), y0 - self.scale * y)

  def pixel(self, x, y, z):
    """Pixel of a point of the body's frame."""
    return self.flat(x * self.cos + z * self.sin, y)

  def depth(self, x, z):
    """How near the camera a point is (larger is nearer)."""
    return z * self.cos - x * self.sin

  def polygon(self, depth, part, pixels, rgb):
    self._shapes.append((depth, "polygon", pixels, (*rgb, PART_NUMBER[part])))

  def disc(self, depth, part, pixel, radius, rgb, flatten=1.0):
    """An ellipse: `radius` across in person heights, `flatten` times that up."""
    rx, ry = self.scale * radius, self.scale * radius * flatten
    box = (pixel[0] - rx, pixel[1] - ry, pixel[0] + rx, pixel[1] + ry)
    self._shapes.append((depth, "ellipse", box, (*rgb, PART_NUMBER[part])))

  def line(self, depth, part, a, b, width, rgb):
    """A straight line of constant width between two points of the body's frame."""
    self.limb(depth, part, a, b, width / 2, width / 2, rgb, shaded=False)

  def limb(self, depth, part, a, b, radius_a, radius_b, rgb, shaded=True):
    """A capsule from `a` to `b` (points of the body's frame), darker along one edge."""
    a, b = self.pixel(*a), self.pixel(*b)
    if shaded:
      self._capsule(depth, part, a, b, radius_a, radius_b, darker(rgb, 0.8))
      shift = -0.22 * self.scale * min(radius_a, radius_b)
      a, b = [(p[0] + shift, p[1]) for p in (a, b)]
      radius_a, radius_b = 0.8 * radius_a, 0.8 * radius_b
    self._capsule(depth, part, a, b, radius_a, radius_b, rgb)

  def _capsule(self, depth, part, a, b, radius_a, radius_b, rgb):
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

  def stack(self, depth, part, sections, rgb, shaded=True):
    """A solid of stacked ellipses. Returns it, so that marks can be put on its surface.

    Args:
      sections: (y, x, z, radius_x, radius_z) from top to bottom.
    """
    solid = Stack(self, depth, sections)
    top, bottom = sections[0][0], sections[-1][0]
    solid.mark(part, -math.pi, math.pi, top, bottom, darker(rgb, 0.8) if shaded else rgb)
    if shaded:  # light from one side: the far edge of what is seen stays dark
      solid.mark(part, solid.facing - 1.6, solid.facing + 0.85, top, bottom, rgb)
    return solid

  def draw(self, draw):
    """Draws everything collected on an RGBA `ImageDraw`, far to near (ties in order of adding)."""
    for _, kind, place, fill in sorted(self._shapes, key=lambda shape: shape[0]):
      if kind == "polygon":
        draw.polygon(place, fill=fill)
      else:
        draw.ellipse(place, fill=fill)


class Stack:
  """A stack of ellipses already added to a painter; its surface takes marks.

  A place on the surface is (angle, y): angle 0 is the front, pi/2 the person's left, pi the back.
  """

  def __init__(self, painter, depth, sections):
    self.painter, self.depth, self.sections = painter, depth, sections
    _, _, _, rx, rz = sections[len(sections) // 2]
    self.facing = math.atan2(-painter.sin / max(rx, 1e-6), painter.cos / max(rz, 1e-6))

  def _at(self, y):
    above = self.sections[0]
    for below in self.sections[1:]:
      if y >= below[0]:
        share = (above[0] - y) / max(above[0] - below[0], 1e-9)
        share = max(0.0, share)
        return [a + (b - a) * share for a, b in zip(above, below, strict=True)]
      above = below
    return above

  def place(self, angle, y):
    """Pixel of a place on the surface (seen or not)."""
    _, x, z, rx, rz = self._at(y)
    return self.painter.pixel(x + rx * math.sin(angle), y, z + rz * math.cos(angle))

  def mark(self, part, start, end, top, bottom, rgb):
    """Paints the surface between two angles and two heights, where it faces the camera."""
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

  def faces(self, angle):
    """Whether the surface at this angle is turned towards the camera."""
    return abs(_wrapped(angle - self.facing)) < math.pi / 2


def _wrapped(angle):
  return (angle + math.pi) % (2 * math.pi) - math.pi
