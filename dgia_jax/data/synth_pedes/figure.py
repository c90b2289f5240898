"""One person as solid shapes: legs, arms, head and hair, then clothes and accessories.

Shapes are drawn from far to near. Small constant offsets of the depth put a garment in front of the
limb inside it (legs < skirt < torso < arms < head in a view from the front).
"""

import math

from dgia_jax.data.synth_pedes import accessories, clothes
from dgia_jax.data.synth_pedes.body import Body
from dgia_jax.data.synth_pedes.people import Person
from dgia_jax.data.synth_pedes.solids import RGB, Painter, Section, darker, mixed

_HEAD_Y, _HEAD_TALL, _HEAD_WIDE, _HEAD_DEEP = 0.912, 0.084, 0.072, 0.080


def add_person(painter: Painter, person: Person, body: Body) -> None:
  """Adds everything of one person to the painter."""
  skin = person.shades["skin"]
  for side, leg in zip((1, -1), body.legs, strict=True):
    clothes.add_leg(painter, person, body, side, leg)
  clothes.add_lower(painter, person, body)
  clothes.add_upper(painter, person, body)
  for side, arm in zip((1, -1), body.arms, strict=True):
    clothes.add_arm(painter, person, side, arm, body)
  top = (0.0, 0.86, 0.0)
  painter.limb(0.07, "body", (0.0, 0.80, 0.0), top, 0.036, 0.036, darker(skin, 0.88), shaded=False)
  _add_head(painter, person, skin)
  accessories.add_scarf(painter, person)
  accessories.add_hat(painter, person, _HEAD_Y, _HEAD_WIDE, _HEAD_DEEP)
  accessories.add_bag(painter, person, body)
  accessories.add_item(painter, person, body)


def _ellipsoid(y: float, tall: float, wide: float, deep: float, steps: int = 9) -> list[Section]:
  """Sections of an ellipsoid around (0, y, 0), from top to bottom."""
  sections = []
  for step in range(steps):
    angle = math.pi * step / (steps - 1)
    ring = max(math.sin(angle), 0.02)
    sections.append((y + tall * math.cos(angle), 0.0, 0.0, wide * ring, deep * ring))
  return sections


def _add_head(painter: Painter, person: Person, skin: RGB) -> None:
  style = person.attributes["hair.style"]
  bald = style == "bald"
  hair = skin if bald else person.shades["hair.colour"]
  hat = person.attributes.get("hat.type")
  back = -painter.cos  # 1 when the back is seen
  if style == "long":
    fall = 0.72 + 0.1 * person.looks["style"]
    sections = [
      (0.95, 0.0, -0.02, 0.07, 0.06),
      (0.88, 0.0, -0.025, 0.088, 0.066),
      (fall, 0.0, -0.045, 0.094, 0.062),
    ]
    painter.stack(0.125 * back, "hair", sections, hair)
  elif style == "ponytail":
    tie, end = (0.0, 0.93, -0.085), (0.0, 0.76, -0.125)
    painter.limb(0.14 * back, "hair", tie, end, 0.034, 0.018, hair)
  elif style == "bun" and hat is None:
    place = painter.pixel(0.0, 0.985, -0.035)
    painter.disc(0.05 * back, "hair", place, 0.045, darker(hair, 0.9))
  grow = 1.16 if style == "curly" else 1.0
  if style == "curly":
    sections = _ellipsoid(_HEAD_Y + 0.018, 0.098, _HEAD_WIDE * 1.28, _HEAD_DEEP * 1.24)
    painter.stack(0.078, "hair", sections, hair)
  head = painter.stack(
    0.08,
    "body" if bald else "hair",
    _ellipsoid(_HEAD_Y, _HEAD_TALL, _HEAD_WIDE * (1 if bald else 1.04), _HEAD_DEEP),
    hair,
  )
  chin, hairline = _HEAD_Y - _HEAD_TALL, _HEAD_Y + 0.046 / grow
  nape = -0.035 if style in ("short", "bun", "ponytail") else -0.06
  head.mark("body", -math.pi, math.pi, _HEAD_Y + nape, chin, darker(skin, 0.92))
  half = 1.22 if style in ("short", "bald") else 1.05
  head.mark("body", -half, half, hairline, chin, skin)
  cheek = mixed(skin, (210, 90, 80), 0.22)
  for side in (-1, 1):
    if head.faces(side * 0.42):
      eye = head.place(side * 0.42, _HEAD_Y + 0.004)
      painter.disc(head.depth, "body", eye, 0.0085, (40, 30, 30))
      painter.disc(head.depth, "body", head.place(side * 0.62, _HEAD_Y - 0.032), 0.014, cheek)
  head.mark("body", -0.3, 0.3, _HEAD_Y - 0.046, _HEAD_Y - 0.054, (150, 70, 66))
  accessories.add_face(painter, person, head, _HEAD_Y, chin, hair)
