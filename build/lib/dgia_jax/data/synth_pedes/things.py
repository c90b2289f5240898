"""What people wear on head and neck and what they carry: hats, glasses, scarves, bags, items."""

import math

from dgia_jax.data.synth_pedes.solids import darker, mixed

_PI = math.pi


def add_face(painter, person, head, head_y, chin, hair):
  """Glasses, mask or beard, on the front of the head."""
  kind = person.attributes.get("face.type")
  if kind == "glasses":
    dark = (24, 24, 28)
    for middle in (-0.44, 0.44):
      head.mark("face", middle - 0.3, middle + 0.3, head_y + 0.021, head_y - 0.012, dark)
    head.mark("face", -1.2, 1.2, head_y + 0.014, head_y + 0.004, dark)
  elif kind == "mask":
    tone = (226, 234, 240) if person.looks["style"] < 0.6 else (120, 176, 214)
    head.mark("face", -0.85, 0.85, head_y - 0.014, chin + 0.006, tone)
    head.mark("face", -1.3, 1.3, head_y - 0.014, head_y - 0.022, tone)
  elif kind == "beard":
    tone = (70, 50, 40) if person.attributes["hair.style"] == "bald" else darker(hair, 0.9)
    head.mark("face", -1.1, 1.1, head_y - 0.028, chin - 0.002, tone)
    head.mark("body", -0.22, 0.22, head_y - 0.046, head_y - 0.054, (170, 90, 84))


def add_hat(painter, person, y, wide, deep):
  """Cap, beanie or sun hat over the upper half of the head."""
  kind = person.attributes.get("hat.type")
  if kind is None:
    return
  rgb = person.shades["hat.colour"]
  brim = y + 0.03
  grow = 1.3 if person.attributes["hair.style"] == "curly" else 1.12
  tall = 0.1 if kind == "beanie" else 0.078
  sections = []
  for angle in (1.45, 1.1, 0.75, 0.4, 0.0):
    ring = grow * max(math.cos(angle), 0.25)
    sections.append((brim + tall * math.sin(angle), 0.0, 0.0, ring * wide, ring * deep))
  if kind == "cap":
    ahead = painter.pixel(0.0, brim + 0.004, 0.105)
    radius = 0.062 * abs(painter.cos) + 0.055 * abs(painter.sin)
    painter.disc(0.083 + 0.01 * painter.cos, "hat", ahead, radius, darker(rgb, 0.78), 0.3)
  crown = painter.stack(0.085, "hat", sections, rgb)
  if kind == "beanie":
    crown.mark("hat", -_PI, _PI, brim + 0.034, brim, darker(rgb, 0.72))
    bobble = painter.pixel(0.0, brim + tall + 0.01, 0.0)
    painter.disc(0.085, "hat", bobble, 0.022, darker(rgb, 0.85))
  elif kind == "sun hat":
    middle = painter.pixel(0.0, brim + 0.006, 0.0)
    painter.disc(0.086, "hat", middle, 0.15, darker(rgb, 0.85), 0.17)
    crown.mark("hat", -_PI, _PI, brim + 0.03, brim + 0.012, darker(rgb, 0.5))


def add_scarf(painter, person):
  """A ring around the neck and one end hanging in front."""
  if "scarf.colour" not in person.attributes:
    return
  rgb = person.shades["scarf.colour"]
  side = person.looks["side"]
  end = painter.depth(0.0, 0.09)
  tail = (side * 0.035, 0.81, 0.08), (side * 0.045, 0.66, 0.09)
  painter.line(max(end, -0.06) + 0.02, "scarf", *tail, 0.05, darker(rgb, 0.85))
  sections = [
    (0.866, 0.0, 0.0, 0.06, 0.058),
    (0.84, 0.0, 0.005, 0.082, 0.078),
    (0.81, 0.0, 0.005, 0.078, 0.074),
  ]
  painter.stack(0.115, "scarf", sections, rgb)


def add_bag(painter, person, body):
  """Backpack, handbag or shoulder bag. Straps count as cloth: they do not tell what hangs there."""
  kind = person.attributes.get("bag.type")
  if kind is None:
    return
  rgb, side = person.shades["bag.colour"], person.looks["side"]
  strap = darker(rgb, 0.75)
  if kind == "backpack":
    wide, back = 0.098, 0.085 * (0.5 + 0.5 * body.girth)
    sections = [
      (0.805, 0.0, -back - 0.035, 0.6 * wide, 0.04),
      (0.78, 0.0, -back - 0.04, wide, 0.052),
      (0.59, 0.0, -back - 0.045, 1.06 * wide, 0.064),
      (0.56, 0.0, -back - 0.04, 0.8 * wide, 0.05),
    ]
    pack = painter.stack(max(-0.13 * painter.cos, -0.13) + 0.015, "bag", sections, rgb)
    pack.mark("bag", _PI - 0.95, _PI + 0.95, 0.675, 0.60, darker(rgb, 0.72))
    pack.mark("bag", -_PI, _PI, 0.765, 0.755, darker(rgb, 0.6))
    ahead = 0.075 * (0.4 + 0.6 * body.girth)
    for x in (-0.62 * body.shoulder, 0.62 * body.shoulder) if painter.cos > -0.3 else ():
      chest = (x, 0.76, ahead)
      painter.line(0.0605, "upper", (x, 0.825, 0.02), chest, 0.026, strap)
      painter.line(0.0605, "upper", chest, (1.1 * x, 0.63, 0.6 * ahead), 0.026, strap)
  elif kind == "handbag":
    hand = body.arm(side)[2]
    depth = 0.072 + painter.depth(hand[0], hand[2])
    x, y, z = hand[0], hand[1], hand[2]
    for shift in (-0.03, 0.03):
      painter.line(depth, "bag", (x, y, z), (x, y - 0.075, z + shift), 0.012, strap)
    sections = [
      (y - 0.07, x, z, 0.028, 0.06),
      (y - 0.085, x, z, 0.036, 0.078),
      (y - 0.185, x, z, 0.042, 0.092),
    ]
    bag = painter.stack(depth, "bag", sections, rgb)
    bag.mark("bag", -_PI, _PI, y - 0.105, y - 0.115, darker(rgb, 0.6))
  else:
    x = side * (body.hip + 0.035)
    for z in (0.06, -0.06):
      a, b = (-side * 0.45 * body.shoulder, 0.822, 0.3 * z), (side * body.hip, 0.53, z)
      depth = 0.0606 if z * painter.cos > 0 else -0.01
      painter.line(depth, "upper", a, b, 0.02, strap)
    sections = [(0.545, x, -0.01, 0.034, 0.085), (0.43, x, -0.01, 0.04, 0.092)]
    bag = painter.stack(0.069 + 1.1 * painter.depth(x, 0.0), "bag", sections, rgb)
    bag.mark("bag", -_PI, _PI, 0.545, 0.505, darker(rgb, 0.75))


def add_item(painter, person, body):
  """What is held in the hand."""
  kind = person.attributes.get("item.type")
  if kind is None:
    return
  side = person.looks["hand"]
  x, y, z = body.arm(side)[2]
  depth = 0.071 + painter.depth(0.7 * side * body.shoulder + 0.3 * x, z)
  rgb = person.shades.get("item.colour", (38, 38, 44))
  if kind == "umbrella":
    tip = (0.6 * x, 1.13, 0.05)
    painter.line(depth, "item", (x, y - 0.05, z), tip, 0.014, (60, 60, 64))
    centre, top = painter.pixel(0.6 * x, 0.0, 0.05)[0], 1.15
    _add_canopy(painter, centre, top, rgb)
  elif kind == "phone":
    box = (x, y - 0.01, z), (x, y + 0.055, z)
    painter.line(depth, "item", *box, 0.036, (30, 30, 36))
    painter.line(depth, "item", (x, y, z), (x, y + 0.045, z), 0.02, (150, 200, 230))
  elif kind == "cup":
    sections = [(y + 0.055, x, z, 0.03, 0.03), (y - 0.025, x, z, 0.021, 0.021)]
    cup = painter.stack(depth, "item", sections, (238, 234, 226))
    cup.mark("item", -_PI, _PI, y + 0.03, y - 0.002, (150, 96, 56))
    cup.mark("item", -_PI, _PI, y + 0.062, y + 0.05, (70, 60, 56))
  elif kind == "book":
    sections = [(y + 0.06, x, z, 0.058, 0.02), (y - 0.045, x, z, 0.058, 0.02)]
    book = painter.stack(depth, "item", sections, rgb)
    book.mark("item", -0.7, 0.7, y + 0.03, y + 0.01, mixed(rgb, (255, 255, 255), 0.6))
  elif kind == "ball":
    place = painter.pixel(x + side * 0.01, y + 0.045, z - 0.02)
    painter.disc(depth - 0.003, "item", place, 0.078, darker(rgb, 0.8))
    shifted = (place[0] - 0.014 * painter.scale, place[1] - 0.012 * painter.scale)
    painter.disc(depth - 0.003, "item", shifted, 0.06, rgb)
  elif kind == "shopping bag":
    painter.line(depth, "item", (x, y, z), (x, y - 0.05, z), 0.03, darker(rgb, 0.7))
    sections = [(y - 0.045, x, z, 0.03, 0.075), (y - 0.21, x, z, 0.04, 0.085)]
    bag = painter.stack(depth, "item", sections, rgb)
    stamp = mixed(rgb, (255, 255, 255) if sum(rgb) < 500 else (60, 60, 60), 0.65)
    for middle in (_PI / 2, -_PI / 2):
      bag.mark("item", middle - 0.5, middle + 0.5, y - 0.1, y - 0.15, stamp)
  elif kind == "suitcase":
    cx, cz = side * (body.hip + 0.1), -0.14
    painter.line(depth, "item", (x, y, z), (cx, 0.3, cz), 0.014, (70, 70, 76))
    sections = [
      (0.315, cx, cz, 0.06, 0.05),
      (0.30, cx, cz, 0.085, 0.062),
      (0.05, cx, cz, 0.085, 0.062),
      (0.03, cx, cz, 0.07, 0.05),
    ]
    case = painter.stack(painter.depth(cx, cz) - 0.02, "item", sections, rgb)
    for height in (0.24, 0.17, 0.10):
      case.mark("item", -_PI, _PI, height, height - 0.012, darker(rgb, 0.7))


def _add_canopy(painter, centre, top, rgb):
  """An open umbrella seen from the side: a scalloped half disc."""
  wide, tall, steps = 0.27 * painter.scale, 0.15 * painter.scale, 16
  _, peak = painter.flat(0.0, top)
  rim = peak + tall
  arc = [
    (centre - wide * math.cos(_PI * i / steps), rim - tall * math.sin(_PI * i / steps))
    for i in range(steps + 1)
  ]
  painter.polygon(0.4, "item", arc, rgb)
  for index, (start, end) in enumerate(((-1, -0.5), (-0.5, 0), (0, 0.5), (0.5, 1))):
    rib = [(centre, peak), (centre + start * wide, rim), (centre + end * wide, rim)]
    if index % 2:
      painter.polygon(0.4, "item", rib, darker(rgb, 0.82))
