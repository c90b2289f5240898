"""What stands behind and in front of people: walls, ground, clutter and occluders."""

import numpy as np

from dgia_jax.data.synth_pedes.solids import darker, mixed


def draw_background(draw, view, width, height, rng):
  """Wall and ground of the site, with clutter of this picture. Pixels; part 0 everywhere."""
  site = view.site
  wall, ground = site.wall_rgb, site.ground_rgb
  line = int(height * (site.horizon + 0.03 * rng.normal() * (view.noise > 0)))
  _rect(draw, 0, 0, width, line, wall)
  _rect(draw, 0, line, width, height, ground)
  _WALLS[site.wall](draw, wall, width, line, height, rng)
  _GROUNDS[site.ground](draw, ground, width, line, height, rng)
  if view.noise > 0:
    _draw_clutter(draw, width, height, line, rng)


def draw_shadow(draw, feet, scale, rgb):
  """A soft-looking patch of shadow under the feet."""
  x, y = feet
  box = (x - 0.2 * scale, y - 0.035 * scale, x + 0.2 * scale, y + 0.025 * scale)
  draw.ellipse(box, fill=(*darker(rgb, 0.68), 0))


def draw_occluder(draw, kind, width, height, rng):
  """Something between the camera and the person; hides (part 0) what is behind it."""
  rgb = tuple(int(c) for c in rng.uniform(40, 200, 3))
  dull = mixed(rgb, (110, 110, 110), 0.6)
  if kind == "pole":
    x, wide = width * rng.uniform(0.25, 0.75), width * rng.uniform(0.1, 0.18)
    _rect(draw, x - wide / 2, 0, x + wide / 2, height, dull)
    _rect(draw, x + wide / 5, 0, x + wide / 2, height, darker(dull, 0.75))
  elif kind == "bush":
    top, green = height * rng.uniform(0.55, 0.78), (52, int(rng.uniform(80, 130)), 48)
    for _ in range(16):
      x, y, r = rng.uniform(0, width), rng.uniform(top, height), width * rng.uniform(0.13, 0.24)
      _disc(draw, x, max(y, top + r), r, darker(green, rng.uniform(0.7, 1.2)))
  elif kind == "box":
    left, top = width * rng.uniform(-0.1, 0.5), height * rng.uniform(0.58, 0.75)
    right = left + width * rng.uniform(0.5, 0.7)
    _rect(draw, left, top, right, height, dull)
    _rect(draw, left, top, right, top + height * 0.03, darker(dull, 1.3))
  elif kind == "rail":
    for y in (rng.uniform(0.5, 0.56), rng.uniform(0.64, 0.7), rng.uniform(0.78, 0.84)):
      _rect(draw, 0, height * y, width, height * (y + 0.035), dull)
    for x in (rng.uniform(0, 0.3), rng.uniform(0.7, 1)):
      _rect(draw, width * x, height * 0.5, width * (x + 0.07), height, darker(dull, 0.8))
  elif kind == "passer-by":
    x = rng.uniform(-0.02, 0.2) if rng.random() < 0.5 else rng.uniform(0.8, 1.02)
    other = tuple(int(c) for c in rng.uniform(30, 220, 3))
    _draw_passer_by(draw, x * width, height * 1.06, 1.02 * height, rgb, other)
  else:  # car
    top = height * rng.uniform(0.68, 0.8)
    _rect(draw, 0, top, width, height, rgb)
    _rect(draw, 0, top, width, top + height * 0.05, darker(rgb, 1.25))
    _rect(draw, width * 0.08, top + height * 0.07, width * 0.6, top + height * 0.15, (60, 70, 82))


def _draw_passer_by(draw, x, feet, tall, upper, lower):
  """Another person, roughly."""
  for side in (-1, 1):
    a, b = x + side * 0.045 * tall - 0.045 * tall, x + side * 0.045 * tall + 0.045 * tall
    _rect(draw, a, feet - 0.5 * tall, b, feet, lower)
  draw.rounded_rectangle(
    (x - 0.15 * tall, feet - 0.83 * tall, x + 0.15 * tall, feet - 0.45 * tall),
    radius=0.06 * tall,
    fill=(*upper, 0),
  )
  _disc(draw, x, feet - 0.9 * tall, 0.075 * tall, (200, 160, 130))
  box = (x - 0.077 * tall, feet - 0.985 * tall, x + 0.077 * tall, feet - 0.9 * tall)
  draw.ellipse(box, fill=(50, 40, 36, 0))


def _draw_clutter(draw, width, height, line, rng):
  """Far people, signs and bins, so that strong colours also occur off the person."""
  for _ in range(rng.integers(0, 4)):
    x, rgb = rng.uniform(0, width), tuple(int(c) for c in rng.uniform(30, 230, 3))
    what = rng.integers(3)
    if what == 0:
      size = height * rng.uniform(0.25, 0.45)
      lower = tuple(int(c) for c in rng.uniform(30, 180, 3))
      _draw_passer_by(draw, x, line + 0.35 * size, size, rgb, lower)
    elif what == 1:
      y, w, h = rng.uniform(0.05, 0.45) * height, rng.uniform(0.1, 0.35) * width, 0.1 * height
      _rect(draw, x, y, x + w, y + h, rgb)
    else:
      w, h = rng.uniform(0.12, 0.3) * width, rng.uniform(0.08, 0.2) * height
      _rect(draw, x, line + 0.04 * height - h, x + w, line + 0.04 * height, rgb)


def _bricks(draw, rgb, width, line, height, rng):
  step = max(2, height / 22)
  for row in range(int(line / step) + 1):
    _rect(draw, 0, row * step, width, row * step + step * 0.16, darker(rgb, 0.8))
    for x in np.arange(-(row % 2) * step, width, 2 * step):
      _rect(draw, x, row * step, x + step * 0.16, (row + 1) * step, darker(rgb, 0.8))
  del rng


def _windows(draw, rgb, width, line, height, rng):
  x0 = rng.uniform(-0.3, 0) * width
  for column in range(3):
    for y in (0.08, 0.34):
      x = x0 + column * 0.55 * width
      box = (x, y * height, x + 0.38 * width, (y + 0.18) * height)
      _rect(draw, *box, mixed(rgb, (70, 96, 120), 0.7))
      _rect(draw, x + 0.18 * width, box[1], x + 0.2 * width, box[3], darker(rgb, 0.7))
  _rect(draw, 0, line - height * 0.03, width, line, darker(rgb, 0.7))


def _panels(draw, rgb, width, line, height, rng):
  x = rng.uniform(-0.4, 0) * width
  while x < width:
    wide = width * rng.uniform(0.2, 0.5)
    _rect(draw, x, 0, x + wide, line, darker(rgb, rng.uniform(0.75, 1.2)))
    x += wide
  del height


def _trees(draw, rgb, width, line, height, rng):
  for _ in range(9):
    x, y, r = rng.uniform(0, width), rng.uniform(0, 0.6 * line), height * rng.uniform(0.07, 0.15)
    _disc(draw, x, y, r, mixed((54, 96, 50), rgb, rng.uniform(0.1, 0.5)))
  for x in rng.uniform(0, width, 2):
    _rect(draw, x, 0.3 * line, x + 0.07 * width, line, (84, 66, 50))


def _shelves(draw, rgb, width, line, height, rng):
  for shelf in range(4):
    bottom = line * (shelf + 1) / 4
    x = 0.0
    while x < width:
      wide, tall = width * rng.uniform(0.08, 0.2), line * rng.uniform(0.1, 0.19)
      tint = tuple(int(c) for c in rng.uniform(50, 220, 3))
      _rect(draw, x, bottom - tall, x + wide, bottom, mixed(tint, rgb, 0.45))
      x += wide * 1.15
    _rect(draw, 0, bottom - 0.015 * height, width, bottom, darker(rgb, 0.6))


def _tiles(draw, rgb, width, line, height, rng):
  y, step = float(line), height * 0.03
  while y < height:
    _rect(draw, 0, y, width, y + height * 0.006, darker(rgb, 0.82))
    y, step = y + step, step * 1.35
  middle = width * rng.uniform(0.3, 0.7)
  for spread in np.linspace(-3, 3, 9):
    ends = (middle + spread * 0.2 * width, line, middle + spread * 0.7 * width, height)
    draw.line(ends, fill=(*darker(rgb, 0.82), 0), width=max(1, height // 160))


def _crossing(draw, rgb, width, line, height, rng):
  shift = rng.uniform(0, 0.3)
  for bar in np.arange(-1, 2, 0.45):
    far, near, wide = (bar + shift) * width, (1.8 * (bar + shift) - 0.4) * width, 0.2 * width
    corners = [(far, line), (far + wide, line), (near + 1.8 * wide, height), (near, height)]
    draw.polygon(corners, fill=(*mixed(rgb, (240, 240, 235), 0.75), 0))


def _grass(draw, rgb, width, line, height, rng):
  green = mixed((84, 138, 66), rgb, 0.25)
  _rect(draw, 0, line, width, height, green)
  for x, y in zip(rng.uniform(0, width, 24), rng.uniform(line, height, 24), strict=True):
    _rect(draw, x, y, x + width * 0.03, y + height * 0.02, darker(green, rng.uniform(0.75, 1.2)))


def _plain(draw, rgb, width, line, height, rng):
  """Nothing on it."""


_WALLS = {
  "plain": _plain, "bricks": _bricks, "windows": _windows, "panels": _panels, "trees": _trees,
  "shelves": _shelves,
}  # fmt: skip
_GROUNDS = {"plain": _plain, "tiles": _tiles, "crossing": _crossing, "grass": _grass}


def _rect(draw, left, top, right, bottom, rgb):
  if right > left and bottom > top:
    draw.rectangle((left, top, right, bottom), fill=(*rgb, 0))


def _disc(draw, x, y, radius, rgb):
  draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(*rgb, 0))
