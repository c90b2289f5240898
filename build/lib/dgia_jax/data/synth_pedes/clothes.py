"""Garments: torso, sleeves, lower clothes, legs and shoes, with their patterns."""

import math

from dgia_jax.data.synth_pedes.solids import darker, mixed

_PI = math.pi
# Lower end of each upper garment, in body heights.
_HEM = {
  "t-shirt": 0.465, "shirt": 0.455, "sweater": 0.46, "hoodie": 0.455, "jacket": 0.45, "coat": 0.27,
  "tank top": 0.47, "dress": 0.29,
}  # fmt: skip
_SHORT_SLEEVES = ("t-shirt", "dress")


def add_leg(painter, person, body, side, leg):
  """One leg with what covers it, and the shoe."""
  kind = person.attributes.get("lower.type")
  skin = person.shades["skin"]
  cloth = person.shades.get("lower.colour", skin)
  hip, knee, ankle = leg
  depth = max(-0.055, min(0.055, painter.depth(knee[0], 0.4 * knee[2])))
  girth = 0.45 + 0.55 * body.girth
  width = {"leggings": 0.86, "jeans": 1.0, "trousers": 1.08, "shorts": 1.2}.get(kind, 0.84) * girth
  covered = kind in ("trousers", "jeans", "leggings")
  bare = 0.84 * girth
  part, rgb = ("lower", cloth) if covered else ("body", skin)
  shin = width if covered else bare
  painter.limb(depth, part, knee, ankle, 0.041 * shin, (0.036 if covered else 0.027) * shin, rgb)
  if kind == "shorts":
    painter.limb(depth, "body", hip, knee, 0.05 * bare, 0.04 * bare, skin)
    hem = tuple(h + 0.72 * (k - h) for h, k in zip(hip, knee, strict=True))
    painter.limb(depth, "lower", hip, hem, 0.054 * width, 0.046 * width, cloth)
  else:
    painter.limb(depth, part, hip, knee, 0.054 * width, 0.042 * width, rgb)
  if kind == "jeans":  # the lighter front of worn denim, and a turned-up end
    painter.line(depth, "lower", *_between(hip, knee, 0.35, 1.1), 0.028, darker(cloth, 1.25))
    turn_up = _between(knee, ankle, 0.93, 1.0)
    painter.limb(depth, "lower", *turn_up, 0.036, 0.036, darker(cloth, 1.4))
  if person.attributes.get("lower.pattern") == "side-striped":
    if side * -painter.sin > -0.45:  # the outer side of this leg is in sight
      stripe = (240, 240, 240) if sum(cloth) < 420 else (40, 40, 44)
      end = knee if kind == "shorts" else ankle
      reach = 0.85 * 0.045 * width * side
      for a, b in ((hip, knee), (knee, end)):
        a, b = (a[0] + reach, a[1], a[2]), (b[0] + 0.8 * reach, b[1], b[2])
        painter.line(depth, "side stripe", a, b, 0.017, stripe)
  _add_shoe(painter, person, ankle, depth, skin)


def _add_shoe(painter, person, ankle, depth, skin):
  kind = person.attributes["shoes.type"]
  rgb = person.shades["shoes.colour"]
  x, y, z = ankle
  heel, toe = (x, y - 0.018, z - 0.018), (x, y - 0.022, z + 0.062)
  if kind == "boots":
    painter.limb(depth, "shoes", (x, y + 0.10, z), (x, y, z), 0.041, 0.037, rgb)
  if kind == "sandals":
    painter.limb(depth, "body", heel, toe, 0.024, 0.021, skin, shaded=False)
    strap = (x, y - 0.012, z + 0.015), (x, y - 0.018, z + 0.04)
    painter.limb(depth, "shoes", *strap, 0.026, 0.024, rgb)
  else:
    painter.limb(depth, "shoes", heel, toe, 0.029, 0.025, rgb)
  if kind == "sneakers":
    sole = (225, 225, 222) if sum(rgb) < 500 else (70, 70, 74)
    a, b = (x, y - 0.038, z - 0.03), (x, y - 0.038, z + 0.075)
    painter.line(depth, "shoes", a, b, 0.014, sole)


def add_lower(painter, person, body):
  """Hips of trousers, and skirts."""
  kind = person.attributes.get("lower.type")
  if kind is None:  # a dress covers everything
    return
  rgb = person.shades["lower.colour"]
  hip, deep, y = body.hip, 0.078 * (0.4 + 0.6 * body.girth), body.hip_y
  top = (y + 0.06, 0.0, 0.0, 0.92 * hip, deep)
  middle = (y, 0.0, 0.0, hip, deep)
  if kind in ("skirt", "long skirt"):
    end = 0.34 if kind == "skirt" else 0.1
    flare = 1.32 if kind == "skirt" else 1.5
    sections = [top, middle, (end, 0.0, 0.0, flare * hip, flare * deep * 1.15)]
    skirt = painter.stack(0.057, "lower", sections, rgb)
    for angle in (-2.2, -1.2, -0.4, 0.4, 1.2, 2.2):  # folds
      skirt.mark("lower", angle - 0.05, angle + 0.05, y - 0.04, end, darker(rgb, 0.84))
  else:
    sections = [top, middle, (y - 0.06, 0.0, 0.0, 0.85 * hip, 0.8 * deep)]
    painter.stack(0.056, "lower", sections, rgb)


def add_upper(painter, person, body):
  """The torso with its garment, pattern, and the inner garment where that is open."""
  attributes, shades = person.attributes, person.shades
  kind, rgb = attributes["upper.type"], shades["upper.colour"]
  thick = 0.4 + 0.6 * body.girth
  bulk = 1.08 if kind in ("jacket", "coat", "hoodie") else 1.02 if kind == "sweater" else 1.0
  shoulder, waist, hip = body.shoulder * bulk, body.waist * bulk, body.hip * bulk * 1.04
  deep = 0.08 * thick * bulk
  hem = _HEM[kind]
  sections = [
    (0.835, 0.0, 0.0, 0.045, 0.04),
    (0.812, 0.0, 0.0, 0.78 * shoulder, 0.75 * deep),
    (0.782, 0.0, 0.0, shoulder, deep),
    (0.70, 0.0, 0.0, 0.5 * (shoulder + max(waist, 0.85 * shoulder)), deep),
    (0.60, 0.0, 0.0, waist, 0.95 * deep),
    (0.51, 0.0, 0.0, hip, 1.05 * deep),
  ]
  if hem < 0.4:
    flare = 1.45 if kind == "dress" else 1.18
    sections.append((hem, 0.0, 0.0, flare * hip, flare * deep))
  else:
    sections.append((hem, 0.0, 0.0, hip, 1.05 * deep))
  if kind == "tank top":
    skin = shades["skin"]
    painter.stack(0.0595, "body", sections[:4], skin)
    sections = [(0.775, 0.0, 0.0, 0.74 * shoulder, deep), *sections[3:]]
  torso = painter.stack(0.06, "upper", sections, rgb)
  if kind == "tank top":
    for side in (-1, 1):
      painter.line(0.06, "upper", (side * 0.06, 0.825, 0), (side * 0.07, 0.76, 0), 0.026, rgb)
  _add_pattern(torso, person, sections[0][0] - 0.02, hem)
  _add_details(painter, torso, person, rgb, hem)


def _add_pattern(torso, person, top, hem):
  pattern = person.attributes.get("upper.pattern")
  if pattern is None:
    return
  rgb, accent = person.shades["upper.colour"], person.shades["upper.accent"]
  pitch = person.looks["pitch"]
  if pattern == "two-tone":
    torso.mark("pattern", -_PI, _PI, 0.84, 0.69, accent)
  elif pattern == "striped":
    y = top - 0.5 * pitch
    while y > hem + 0.3 * pitch:
      torso.mark("pattern", -_PI, _PI, y, y - 0.5 * pitch, accent)
      y -= 1.25 * pitch
  elif pattern == "checked":
    blend, y = mixed(rgb, accent, 0.6), top - 0.5 * pitch
    while y > hem + 0.3 * pitch:
      torso.mark("pattern", -_PI, _PI, y, y - 0.4 * pitch, blend)
      for angle in range(8):
        centre = angle * _PI / 4
        torso.mark("pattern", centre - 0.12, centre + 0.12, y, y - 0.4 * pitch, accent)
      y -= 1.2 * pitch
    for angle in range(8):
      centre = angle * _PI / 4
      torso.mark("pattern", centre - 0.07, centre + 0.07, top, hem, blend)
  elif pattern == "dotted":
    y, odd = top - 0.6 * pitch, 0
    while y > hem + 0.4 * pitch:
      for step in range(9):
        angle = (step + 0.5 * odd) * 2 * _PI / 9
        if torso.faces(angle):
          place = torso.place(angle, y)
          torso.painter.disc(torso.depth, "pattern", place, 0.33 * pitch, accent)
      y, odd = y - 0.95 * pitch, 1 - odd
  elif pattern == "printed":
    torso.mark("print", -0.62, 0.62, 0.745, 0.60, accent)
    torso.mark("print", -0.3, 0.3, 0.715, 0.63, mixed(accent, rgb, 0.75))


def _add_details(painter, torso, person, rgb, hem):
  kind = person.attributes["upper.type"]
  line = darker(rgb, 0.68) if sum(rgb) > 150 else (84, 84, 90)
  if kind in ("jacket", "coat"):
    if "inner.colour" in person.attributes:
      end = max(hem, 0.45)
      torso.mark("inner", -0.4, 0.4, 0.83, end, person.shades["inner.colour"])
      for side in (-1, 1):
        torso.mark("upper", side * 0.46 - 0.07, side * 0.46 + 0.07, 0.825, end, line)
    else:
      torso.mark("upper", -0.04, 0.04, 0.83, hem, line)
    torso.mark("upper", -_PI, _PI, 0.838, 0.81, line)  # collar
    for side in (-1, 1):  # pockets
      torso.mark("upper", side * 0.85 - 0.2, side * 0.85 + 0.2, 0.545, 0.53, line)
  elif kind == "shirt":
    torso.mark("upper", -0.035, 0.035, 0.82, hem, line)
    torso.mark("upper", -_PI, _PI, 0.838, 0.817, darker(rgb, 0.88))
    torso.mark("body", -0.22, 0.22, 0.838, 0.80, person.shades["skin"])
  elif kind == "hoodie":
    torso.mark("upper", -0.7, 0.7, 0.555, 0.485, darker(rgb, 0.82))  # pocket
    back = -painter.cos
    place = painter.pixel(0.0, 0.825, -0.05)
    painter.disc(0.09 if back > 0.2 else 0.055, "upper", place, 0.078, darker(rgb, 0.86), 0.5)
    for side in (-1, 1):
      torso.mark("upper", side * 0.2 - 0.035, side * 0.2 + 0.035, 0.81, 0.73, line)
  elif kind == "sweater":
    torso.mark("upper", -_PI, _PI, hem + 0.03, hem, darker(rgb, 0.8))
    torso.mark("upper", -_PI, _PI, 0.838, 0.818, darker(rgb, 0.8))
  elif kind == "t-shirt":
    torso.mark("body", -0.5, 0.5, 0.838, 0.812, person.shades["skin"])
  elif kind == "dress":
    torso.mark("body", -0.6, 0.6, 0.838, 0.80, person.shades["skin"])
    torso.mark("upper", -_PI, _PI, 0.605, 0.585, darker(rgb, 0.75))  # belt


def add_arm(painter, person, side, arm, body):
  """One arm: sleeve or skin, and the hand."""
  attributes, shades = person.attributes, person.shades
  kind, skin, rgb = attributes["upper.type"], shades["skin"], shades["upper.colour"]
  shoulder, elbow, hand = arm
  upper_depth = 0.07 - shoulder[0] * painter.sin
  fore_depth = 0.07 + painter.depth(0.7 * shoulder[0] + 0.3 * hand[0], hand[2])
  fat = (0.5 + 0.5 * body.girth) * (1.18 if kind in ("jacket", "coat", "hoodie") else 1.0)
  long_sleeve = kind not in (*_SHORT_SLEEVES, "tank top")
  part, cloth = ("upper", rgb) if long_sleeve else ("body", skin)
  painter.disc(fore_depth, "body", painter.pixel(*hand), 0.026, skin)
  wrist = _between(elbow, hand, 0, 0.9)[1]
  painter.limb(fore_depth, part, elbow, wrist, 0.031 * fat, 0.026 * fat, cloth)
  painter.limb(upper_depth, part, shoulder, elbow, 0.037 * fat, 0.032 * fat, cloth)
  if kind in _SHORT_SLEEVES:
    end = _between(shoulder, elbow, 0, 0.62)[1]
    painter.limb(upper_depth, "upper", shoulder, end, 0.041 * fat, 0.042 * fat, rgb)
  pattern = attributes.get("upper.pattern")
  if pattern in ("striped", "checked") and kind != "tank top":
    accent = shades["upper.accent"]
    accent = mixed(rgb, accent, 0.7) if pattern == "checked" else accent
    for share in (0.2, 0.5) if not long_sleeve else (0.2, 0.55, 0.9):
      a, b = _between(shoulder, elbow, share, share + 0.16)
      painter.line(upper_depth, "pattern", a, b, 0.066 * fat, accent)
    for share in (0.3, 0.65) if long_sleeve else ():
      a, b = _between(elbow, hand, share, share + 0.14)
      painter.line(fore_depth, "pattern", a, b, 0.055 * fat, accent)


def _between(a, b, start, end):
  """The points at two shares of the way from `a` to `b`."""
  ends = [tuple(p + share * (q - p) for p, q in zip(a, b, strict=True)) for share in (start, end)]
  return tuple(ends)
