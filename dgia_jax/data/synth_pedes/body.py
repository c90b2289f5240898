"""The body of one person in one view: proportions and pose."""

import dataclasses
import math

from dgia_jax.data.synth_pedes.people import Person
from dgia_jax.data.synth_pedes.solids import Point

HAND_FRONT = ("phone", "cup", "book", "umbrella")  # carried with a bent arm

Limb = tuple[Point, Point, Point]


@dataclasses.dataclass(frozen=True)
class Body:
  """The positions of body parts in one view, in the frame of `solids`."""

  shoulder: float  # half widths
  waist: float
  hip: float
  girth: float  # factor on thickness
  hip_y: float
  legs: tuple[Limb, Limb]  # (hip, knee, ankle) of side +1 and of side -1
  arms: tuple[Limb, Limb]  # (shoulder, elbow, hand) of side +1 and of side -1
  lift: float  # height of the lower foot above the ground in this pose; the body is lowered by it

  def arm(self, side: int) -> Limb:
    """The arm of side +1 (left) or -1 (right)."""
    return self.arms[0 if side > 0 else 1]


def pose(person: Person, swing: float, bend: float) -> Body:
  """Poses a person in mid-stride.

  Args:
    person: whose proportions.
    swing: forward angle of the left leg in radians; the right leg has the opposite angle.
    bend: bend of the rear knee and of the elbows in radians.
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


def _arm(person: Person, side: int, shoulder: float, forward: float, bend: float) -> Limb:
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
    forward, bend = 0.3 * forward, 0.1  # the weight keeps the arm down
  elbow = _step(joint, 0.16, forward, side * 0.02)
  return joint, elbow, _step(elbow, 0.15, forward + bend)


def _step(start: Point, length: float, angle: float, outward: float = 0.0) -> Point:
  """The point `length` below `start`, swung forward by `angle`."""
  x, y, z = start
  return (x + outward, y - length * math.cos(angle), z + length * math.sin(angle))
