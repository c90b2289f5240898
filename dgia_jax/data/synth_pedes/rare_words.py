"""Rarer words for the attribute values of captions, none of which `wording` uses.

The pretrained model `mini` has never read them, so that a dataset whose annotators use them is as
new to it as a person dataset is to CLIP.
"""

_COLOURS = {
  "black": ("jet", "coal"),
  "white": ("snow", "chalk"),
  "grey": ("ash", "slate"),
  "navy": ("indigo", "midnight"),
  "blue": ("cobalt", "royal"),
  "sky blue": ("azure", "ice"),
  "teal": ("aqua", "petrol"),
  "green": ("emerald", "leaf"),
  "dark green": ("olive", "moss"),
  "yellow": ("lemon", "gold"),
  "orange": ("amber", "rust"),
  "red": ("ruby", "crimson"),
  "maroon": ("wine", "plum"),
  "pink": ("rose", "salmon"),
  "purple": ("violet", "lilac"),
  "brown": ("cocoa", "walnut"),
  "beige": ("sand", "cream"),
}
_HAIR = {
  "black": ("raven",),
  "brown": ("hazel",),
  "blonde": ("fair", "golden"),
  "red": ("ginger",),
  "grey": ("silver",),
}
_KINDS = {
  "gender": {"man": ("chap", "lad", "bloke"), "woman": ("lass", "miss", "dame")},
  "build": {"slim": ("lean", "skinny"), "heavy": ("stout", "bulky")},
  "hair.style": {
    "short": ("cropped", "trimmed"),
    "long": ("loose", "flowing"),
    "ponytail": ("pulled back",),
    "bun": ("knotted",),
    "curly": ("wavy", "fluffy"),
    "bald": ("hairless",),
  },
  "face.type": {
    "glasses": ("specs", "shades"),
    "mask": ("a veil", "a covered mouth"),
    "beard": ("whiskers", "stubble"),
  },
  "hat.type": {
    "cap": ("visor", "snapback"),
    "beanie": ("bobble", "toque"),
    "sun hat": ("boater", "fedora"),
  },
  "upper.type": {
    "t-shirt": ("jersey", "polo"),
    "shirt": ("blouse", "oxford"),
    "sweater": ("cardigan", "fleece"),
    "hoodie": ("zip-up",),
    "jacket": ("bomber", "anorak"),
    "coat": ("parka", "trench"),
    "tank top": ("singlet", "cami"),
    "dress": ("frock", "robe"),
  },
  "upper.pattern": {
    "striped": ("banded", "lined"),
    "checked": ("tartan", "gingham"),
    "dotted": ("polka", "speckled"),
    "printed": ("graphic", "branded"),
    "two-tone": ("split", "halved"),
  },
  "lower.type": {
    "trousers": ("chinos", "khakis"),
    "jeans": ("denims", "dungarees"),
    "shorts": ("trunks", "bermudas"),
    "skirt": ("kilt", "miniskirt"),
    "long skirt": ("sarong", "petticoat"),
    "leggings": ("hose", "joggers"),
  },
  "lower.pattern": {"side-striped": ("piped",)},
  "shoes.type": {
    "sneakers": ("kicks", "plimsolls"),
    "boots": ("wellies", "hikers"),
    "sandals": ("slides", "flip-flops"),
    "leather shoes": ("loafers", "brogues"),
  },
  "bag.type": {
    "backpack": ("knapsack", "satchel"),
    "handbag": ("clutch", "tote"),
    "shoulder bag": ("sling", "pouch"),
  },
  "item.type": {
    "shopping bag": ("sack", "carrier"),
    "phone": ("handset", "cell"),
    "umbrella": ("brolly", "parasol"),
    "suitcase": ("trunk", "luggage"),
    "cup": ("mug", "beaker"),
    "book": ("novel", "diary"),
    "ball": ("football", "orb"),
  },
}


def options(attribute: str, value: str) -> tuple[str, ...]:
  """Returns the rarer words for a value of an attribute of `people.VOCABULARY`."""
  if attribute == "hair.colour":
    return _HAIR[value]
  if attribute.endswith((".colour", ".accent")):
    return _COLOURS[value]
  return _KINDS[attribute][value]
