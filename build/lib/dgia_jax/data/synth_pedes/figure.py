"""One person as solid shapes: pose, legs, arms, head and hair. Clothes and things are put on top.

Depths: shapes are sorted by how near they are, with small constant offsets where a garment must lie
over the limb inside it (legs < skirt < torso < arms < head in a view from the front).
"""

import dataclasses
import math

from dgia_jax.data.synth_pedes import clothes, things
from dgia_jax.data.synth_pedes.solids import darker, mixed

_HEAD_Y, _HEAD_TALL, _HEAD_WIDE, _HEAD_DEEP = 0.912, 0.084, 0.072, 0.080
HAND_FRONT = ("phone", "cup", "book", "umbrella")  # carried with a bent arm


@dataclasses.dataclass(frozen=True)
class Body:
  """Where the parts of one person's body are in one view, in the body's frame."""

  shoulder: float  # half widths
  waist: float
  hip: float
  girth: float  # factor on thickness
  hip_y: float
  legs: tuple  # ((hip, knee, ankle) of side +1, of side -1)
  arms: tuple  # ((shoulder, elbow, hand) of side +1, of side -1)
  lift: float  # how far the lower foot is off the ground in this pose: the body sinks by it

  def arm(self, side):
    return self.arms[0 if side > 0 else 1]


def pose(person, swing, bend):
  """The body of a person mid-stride.

  Args:
    person: whose proportions.
    swing: angle of the left leg forward (the right leg goes the other way), radians.
    bend: how much the rear knee and the elbows bend, radians.
  """
  looks = person.looks
  man = person.attributes["gender"] == "man"
  girth = looks["girth"]
  thick = 0.5 + 0.5 * girth
  shoulder = (0.128 if man else 0.112) * looks["shoulder"] * thick
  waist = (0.103 if man else 0.082) * girth
  hip = (0.098 if man else 0.108) * looks["hip"] * thick
  hip_y = 0.5 * looks["leg"]
  legs, arms = [], []
  for side in (1, -1):
    forward = side * swing
    knee_bend = bend if forward < 0 else 0.25 * bend
    top = (side * 0.48 * hip, hip_y, 0.0)
    knee = _step(top, 0.47 * hip_y, forward)
    ankle = _step(knee, 0.45 * hip_y, forward - knee_bend)
    legs.append((top, knee, ankle))
    arms.append(_arm(person, side, shoulder, -0.8 * forward, 0.15 + 0.5 * bend))
  lift = min(leg[2][1] for leg in legs) - 0.04
  return Body(shoulder, waist, hip, girth, hip_y, tuple(legs), tuple(arms), lift)


def _arm(person, side, shoulder, forward, bend):
  joint = (side * (shoulder + 0.004), 0.782, 0.0)
  item = person.attributes.get("item.type")
  holds = item is not None and side == person.looks["hand"]
  if holds and item in HAND_FRONT:
    elbow = _step(joint, 0.155, 0.2)
    hand = (side * 0.55 * shoulder, 0.80 if item == "phone" else 0.69, 0.13)
    return joint, elbow, hand
  if holds and item == "ball":
    return joint, (side * (shoulder + 0.06), 0.64, -0.02), (side * (shoulder + 0.05), 0.53, 0.06)
  if holds or (person.attributes.get("bag.type") == "handbag" and side == person.looks["side"]):
    forward, bend = 0.3 * forward, 0.1  # a weight keeps the arm down
  elbow = _step(joint, 0.16, forward, side * 0.02)
  return joint, elbow, _step(elbow, 0.15, forward + bend)


def _step(start, length, angle, outward=0.0):
  """The point `length` below `start`, swung forward by `angle`."""
  x, y, z = start
  return (x + outward, y - length * math.cos(angle), z + length * math.sin(angle))


def add_person(painter, person, body):
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
  things.add_scarf(painter, person)
  things.add_hat(painter, person, _HEAD_Y, _HEAD_WIDE, _HEAD_DEEP)
  things.add_bag(painter, person, body)
  things.add_item(painter, person, body)


def _ellipsoid(y, tall, wide, deep, steps=9):
  """Sections of an ellipsoid around (0, y, 0), from top to bottom."""
  sections = []
  for step in range(steps):
    angle = math.pi * step / (steps - 1)
    ring = max(math.sin(angle), 0.02)
    sections.append((y + tall * math.cos(angle), 0.0, 0.0, wide * ring, deep * ring))
  return sections


def _add_head(painter, person, skin):
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
  things.add_face(painter, person, head, _HEAD_Y, chin, hair)
