"""Who the people of synth_pedes are: the attribute vocabulary and one person per number.

A person is a pure function of (seed, number), so that splits are ranges of numbers and neither the
order of drawing nor the number of processes changes anyone. Attributes are what captions may name;
looks (exact shades, skin, proportions) are seen in the pictures only.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

# Colour names with their RGB. People wear their own shade of it (see `_shade`).
COLOURS = {
  "black": (30, 30, 34),
  "white": (236, 236, 232),
  "grey": (132, 134, 138),
  "navy": (28, 38, 88),
  "blue": (44, 92, 190),
  "sky blue": (140, 188, 232),
  "teal": (26, 138, 142),
  "green": (58, 152, 72),
  "dark green": (28, 76, 48),
  "yellow": (238, 206, 62),
  "orange": (232, 122, 34),
  "red": (204, 36, 42),
  "maroon": (112, 24, 38),
  "pink": (238, 142, 178),
  "purple": (122, 62, 152),
  "brown": (112, 72, 44),
  "beige": (212, 190, 150),
}
HAIR_COLOURS = {
  "black": (28, 24, 24),
  "brown": (88, 56, 34),
  "blonde": (214, 176, 104),
  "red": (158, 70, 34),
  "grey": (164, 162, 160),
}
_SKINS = ((244, 212, 186), (230, 188, 156), (202, 152, 114), (156, 106, 74), (104, 68, 48))

_UPPER_COLOURS = {
  "black": 16, "white": 12, "grey": 10, "navy": 7, "blue": 8, "sky blue": 5, "teal": 4, "green": 6,
  "dark green": 4, "yellow": 6, "orange": 5, "red": 9, "maroon": 4, "pink": 6, "purple": 5,
  "brown": 5, "beige": 5,
}  # fmt: skip
_LOWER_COLOURS = {
  "black": 22, "navy": 12, "grey": 13, "beige": 11, "brown": 8, "white": 9, "blue": 8,
  "dark green": 6, "maroon": 4, "red": 5, "pink": 5, "sky blue": 5,
}  # fmt: skip
_JEANS_COLOURS = {"blue": 35, "navy": 30, "sky blue": 18, "black": 17}
_SHOE_COLOURS = {"black": 34, "white": 28, "brown": 12, "grey": 10, "red": 6, "blue": 6, "pink": 4}
_BAG_COLOURS = {
  "black": 30, "brown": 13, "grey": 9, "red": 9, "blue": 8, "navy": 7, "beige": 7, "pink": 6,
  "dark green": 6, "yellow": 5,
}  # fmt: skip
_ITEM_COLOURS = {
  "red": 18, "blue": 16, "yellow": 14, "black": 14, "white": 14, "green": 12, "pink": 12,
}  # fmt: skip

# Attribute -> values it can take -> how common they are. Pairs are (among men, among women).
# An attribute can also be absent ("" below): no hat, no bag.
VOCABULARY = {
  "gender": {"man": 50, "woman": 50},
  "build": {"": 60, "slim": 20, "heavy": 20},
  "hair.style": {
    "short": (68, 14), "long": (5, 38), "ponytail": (3, 18), "bun": (3, 14), "curly": (9, 14),
    "bald": (12, 2),
  },
  "hair.colour": {"black": 40, "brown": 28, "blonde": 15, "grey": 10, "red": 7},
  "face.type": {"": (58, 70), "glasses": 15, "mask": 15, "beard": (16, 0)},
  "hat.type": {"": 72, "cap": (16, 8), "beanie": 8, "sun hat": (4, 12)},
  "hat.colour": _UPPER_COLOURS,
  "scarf.colour": {"": 300, "red": 9, "grey": 8, "white": 6, "blue": 6, "yellow": 5, "green": 5},
  "upper.type": {
    "t-shirt": 20, "shirt": (17, 13), "sweater": 13, "hoodie": 13, "jacket": 19, "coat": (11, 13),
    "tank top": (4, 7), "dress": (0, 13),
  },
  "upper.colour": _UPPER_COLOURS,
  "upper.pattern": {
    "": 52, "striped": 15, "checked": 10, "dotted": 7, "printed": 10, "two-tone": 8,
  },
  "upper.accent": _UPPER_COLOURS,
  "inner.colour": {
    "": 30, "white": 26, "black": 16, "grey": 12, "red": 6, "yellow": 5, "sky blue": 5,
  },
  "lower.type": {
    "trousers": (46, 24), "jeans": (34, 28), "shorts": (20, 12), "skirt": (0, 14),
    "long skirt": (0, 8), "leggings": (0, 14),
  },
  "lower.colour": _LOWER_COLOURS,
  "lower.pattern": {"": 78, "side-striped": 22},
  "shoes.type": {"sneakers": 52, "boots": 22, "sandals": 12, "leather shoes": 14},
  "shoes.colour": _SHOE_COLOURS,
  "bag.type": {"": 38, "backpack": (30, 18), "handbag": (5, 24), "shoulder bag": 17},
  "bag.colour": _BAG_COLOURS,
  "item.type": {
    "": 50, "shopping bag": 11, "phone": 9, "umbrella": 8, "suitcase": 8, "cup": 6, "book": 5,
    "ball": 5,
  },
  "item.colour": _ITEM_COLOURS,
}  # fmt: skip
_COLOURED_ITEMS = ("shopping bag", "umbrella", "suitcase", "book", "ball")  # not phones and cups


@dataclasses.dataclass(frozen=True)
class Person:
  """One identity.

  Attributes:
    number: the person's number, unique over all splits.
    attributes: name -> value for what the person has; a missing name means "has none".
    shades: name of a colour attribute -> the person's own RGB shade of it; also "skin".
    looks: unnamed traits: shoulder, hip, leg, girth (factors near 1); side and hand (+1 or -1: left
      or right, where the bag hangs and which hand holds the item); pitch (of stripes, in body
      heights); style (0..1, small variations).
  """

  number: int
  attributes: Mapping[str, str]
  shades: Mapping[str, tuple[int, int, int]]
  looks: Mapping[str, float]


def sample_person(seed, number, variety=1.0):
  """The person with this number. Pure: the same arguments give an equal `Person`."""
  rng = np.random.default_rng([seed, number, 0])
  drawn = {}
  for name, values in VOCABULARY.items():
    # Everything is drawn, needed or not: one attribute's choice must not shift the next one's.
    column = 1 if drawn.get("gender") == "woman" else 0
    weights = [w[column] if isinstance(w, tuple) else w for w in values.values()]
    drawn[name] = _pick(rng, list(values), weights, variety)
  jeans_colour = _pick(rng, list(_JEANS_COLOURS), list(_JEANS_COLOURS.values()), variety)
  shades = {name: _shade(rng, value) for name, value in _rgb(drawn, jeans_colour).items()}
  skin = _SKINS[_pick(rng, range(len(_SKINS)), (30, 26, 20, 14, 10), variety)]
  shades["skin"] = _shade(rng, skin, 8)
  looks = {
    "shoulder": rng.uniform(0.93, 1.07),
    "hip": rng.uniform(0.93, 1.07),
    "leg": rng.uniform(0.95, 1.05),
    "girth": {"slim": 0.8, "": 1.0, "heavy": 1.28}[drawn["build"]] * rng.uniform(0.96, 1.04),
    "side": 1 if rng.random() < 0.5 else -1,
    "hand": 1 if rng.random() < 0.5 else -1,
    "pitch": rng.uniform(0.035, 0.06),
    "style": rng.random(),
  }
  attributes = _keep_sensible(drawn, jeans_colour)
  shades = {name: rgb for name, rgb in shades.items() if name == "skin" or name in attributes}
  return Person(number, attributes, shades, looks)


def values_of(attribute):
  """All values a caption may give this attribute, absence excluded."""
  values = dict.fromkeys(v for v in VOCABULARY[attribute] if v)
  if attribute == "lower.colour":
    values |= dict.fromkeys(_JEANS_COLOURS)
  return list(values)


def _keep_sensible(drawn, jeans_colour):
  """Drops what cannot be: colours of things that are not there, two garments in one place."""
  kept = {name: value for name, value in drawn.items() if value}
  if kept["lower.type"] == "jeans":
    kept["lower.colour"] = jeans_colour
  if kept["lower.type"] not in ("trousers", "shorts", "leggings"):
    kept.pop("lower.pattern", None)
  if kept["upper.type"] == "dress":
    kept = {name: value for name, value in kept.items() if not name.startswith("lower.")}
  if kept["upper.type"] not in ("jacket", "coat"):
    kept.pop("inner.colour", None)
  if "inner.colour" in kept and kept.get("upper.pattern") == "printed":
    kept.pop("upper.pattern")  # an open jacket has no chest to print on
  if "upper.pattern" not in kept or kept["upper.accent"] == kept["upper.colour"]:
    kept.pop("upper.pattern", None)
    kept.pop("upper.accent")
  for part in ("hat", "bag", "item"):
    if f"{part}.type" not in kept:
      kept.pop(f"{part}.colour")
  if kept.get("item.type") not in _COLOURED_ITEMS:
    kept.pop("item.colour", None)
  if kept["hair.style"] == "bald":
    kept.pop("hair.colour")
  return kept


def _rgb(drawn, jeans_colour):
  """The RGB of every colour drawn, before the person's own shade."""
  rgb = {}
  for name, value in drawn.items():
    if name == "hair.colour":
      rgb[name] = HAIR_COLOURS[value]
    elif value in COLOURS:
      rgb[name] = COLOURS[value]
  if drawn["lower.type"] == "jeans":
    rgb["lower.colour"] = COLOURS[jeans_colour]
  return rgb


def _shade(rng, rgb, spread=14):
  """A person's own shade: the same name, another cloth."""
  lightness, tints = rng.normal(0, spread * 0.6), rng.normal(0, spread * 0.35, 3)
  return tuple(int(np.clip(c + lightness + t, 8, 250)) for c, t in zip(rgb, tints, strict=True))


def _pick(rng, values, weights, variety):
  """One of `values`, by weight; `variety` flattens (above 1) or sharpens (below 1) the weights."""
  powered = np.power(np.asarray(weights, np.float64), 1 / variety)
  edges = np.cumsum(powered)
  index = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
  return values[min(index, len(values) - 1)]
