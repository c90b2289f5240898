"""The words of captions: the usual and the vague names of every attribute value."""

from collections.abc import Collection

from dgia_jax.data.synth_pedes import rare_words
from dgia_jax.data.synth_pedes.people import COLOURS

# --- colours: usual words, and the one word of a hurried annotator --------------------------------
_COLOUR_WORDS = {
  "grey": ("grey", "gray"),
  "navy": ("navy", "navy blue", "dark blue"),
  "sky blue": ("sky blue", "light blue"),
  "maroon": ("maroon", "dark red"),
  "teal": ("teal", "turquoise"),
  "beige": ("beige", "tan"),
}
_VAGUE_COLOURS = {
  "dark": ("black", "navy", "dark green", "maroon", "brown"),
  "light": ("white", "sky blue", "beige", "pink"),
  "bright": ("yellow", "orange", "red", "green"),
  "coloured": ("blue", "teal", "purple"),
  "dull": ("grey",),
}
COLOUR_WORDS = {name: _COLOUR_WORDS.get(name, (name,)) for name in COLOURS}
VAGUE_COLOUR = {name: vague for vague, names in _VAGUE_COLOURS.items() for name in names}
_VAGUE_HAIR = {
  "black": "dark", "brown": "dark", "blonde": "light", "red": "coloured", "grey": "light",
}  # fmt: skip

# --- kinds: attribute -> value -> (usual words, vague words); "" omits the attribute --------------
KIND_WORDS = {
  "gender": {
    "man": (("man", "guy", "male", "gentleman"), ("person", "pedestrian", "individual")),
    "woman": (("woman", "lady", "female", "girl"), ("person", "pedestrian", "individual")),
  },
  "build": {
    "slim": (("slim", "thin", "slender"), ("",)),
    "heavy": (("heavy", "stocky", "large"), ("",)),
  },
  "hair.style": {
    "short": (("short",), ("",)),
    "long": (("long", "shoulder-length"), ("",)),
    "ponytail": (("in a ponytail", "tied back"), ("",)),
    "bun": (("in a bun", "pinned up"), ("",)),
    "curly": (("curly", "frizzy"), ("",)),
    "bald": (("bald", "shaved"), ("",)),
  },
  "face.type": {
    "glasses": (("glasses", "sunglasses"), ("something on the face",)),
    "mask": (("a face mask", "a mask"), ("something on the face",)),
    "beard": (("a beard", "facial hair"), ("something on the face",)),
  },
  "hat.type": {
    "cap": (("cap", "baseball cap"), ("hat",)),
    "beanie": (("beanie", "knit hat"), ("hat",)),
    "sun hat": (("sun hat", "wide-brimmed hat"), ("hat",)),
  },
  "upper.type": {
    "t-shirt": (("t-shirt", "tee", "short-sleeved shirt"), ("top",)),
    "shirt": (("shirt", "button-up", "long-sleeved shirt"), ("top",)),
    "sweater": (("sweater", "jumper", "pullover"), ("top",)),
    "hoodie": (("hoodie", "hooded sweatshirt"), ("top",)),
    "jacket": (("jacket",), ("top",)),
    "coat": (("coat", "long coat", "overcoat"), ("top",)),
    "tank top": (("tank top", "sleeveless top", "vest"), ("top",)),
    "dress": (("dress", "gown"), ("outfit",)),
  },
  "upper.pattern": {
    "striped": (("striped", "stripy"), ("patterned",)),
    "checked": (("checked", "plaid"), ("patterned",)),
    "dotted": (("dotted", "spotted"), ("patterned",)),
    "printed": (("printed", "logo"), ("patterned",)),
    "two-tone": (("two-tone", "two-coloured"), ("patterned",)),
  },
  "lower.type": {
    "trousers": (("trousers", "pants", "slacks"), ("bottoms",)),
    "jeans": (("jeans", "denim pants"), ("bottoms",)),
    "shorts": (("shorts", "short pants"), ("bottoms",)),
    "skirt": (("skirt", "short skirt"), ("bottoms",)),
    "long skirt": (("long skirt", "maxi skirt"), ("bottoms",)),
    "leggings": (("leggings", "tights"), ("bottoms",)),
  },
  "lower.pattern": {"side-striped": (("side-striped", "sporty"), ("patterned",))},
  "shoes.type": {
    "sneakers": (("sneakers", "trainers", "running shoes"), ("shoes",)),
    "boots": (("boots", "ankle boots"), ("shoes",)),
    "sandals": (("sandals", "open shoes"), ("shoes",)),
    "leather shoes": (("leather shoes", "dress shoes"), ("shoes",)),
  },
  "bag.type": {
    "backpack": (("backpack", "rucksack"), ("bag",)),
    "handbag": (("handbag", "purse"), ("bag",)),
    "shoulder bag": (("shoulder bag", "crossbody bag"), ("bag",)),
  },
  "item.type": {
    "shopping bag": (("shopping bag", "paper bag"), ("object",)),
    "phone": (("phone", "mobile phone"), ("object",)),
    "umbrella": (("umbrella", "open umbrella"), ("object",)),
    "suitcase": (("suitcase", "trolley case"), ("object",)),
    "cup": (("cup", "coffee cup"), ("object",)),
    "book": (("book", "notebook"), ("object",)),
    "ball": (("ball", "sports ball"), ("object",)),
  },
}

# The noun of a part whose colour or pattern a caption names, but not its kind.
BROAD_NOUN = {
  "hat": "hat", "upper": "top", "lower": "bottoms", "shoes": "shoes", "bag": "bag",
  "item": "object",
}  # fmt: skip


def options(attribute: str, value: str, vague: bool = False, rare: bool = False) -> tuple[str, ...]:
  """Returns the words or short phrases for a value; "" omits the attribute.

  Args:
    attribute: a key of `people.VOCABULARY`.
    value: one of its values.
    vague: whether to return the broad words instead of the usual ones.
    rare: whether to return the rarer words of `rare_words`; `vague` takes precedence.
  """
  if rare and not vague:
    return rare_words.options(attribute, value)
  if attribute == "hair.colour":
    return (_VAGUE_HAIR[value],) if vague else (value,)
  if attribute.endswith((".colour", ".accent")):
    return (VAGUE_COLOUR[value],) if vague else COLOUR_WORDS[value]
  usual, broad = KIND_WORDS[attribute][value]
  return broad if vague else usual


def _every_option(attribute: str, values: Collection[str]) -> frozenset[str]:
  """All words for some values of an attribute."""
  kinds = ({}, {"vague": True}, {"rare": True})
  return frozenset(
    w for value in values for kind in kinds for w in options(attribute, value, **kind)
  )


BALD = _every_option("hair.style", ["bald"]) - {""}
# Hair styles that follow the word "hair": "black hair in a bun".
HAIR_SUFFIXES = _every_option("hair.style", ["ponytail", "bun"]) - {""}
PLURAL_NOUNS = _every_option("shoes.type", KIND_WORDS["shoes.type"]) | _every_option(
  "lower.type", [kind for kind in KIND_WORDS["lower.type"] if "skirt" not in kind]
)
