"""Captions as people, web pages and word processors write them."""

import random

_WORDS = "a man woman red coat wearing jeans the with and t-shirt cafe jekyll".split()
_ODD = (
  "“hat”", "‘cap’", "he’s", "she's", "ʼ", "‛x", "‟", "‚", "„", "«»", "``", "´", "'", '"', "&amp;",
  "&quot;bag&quot;", "&#39;", "&nbsp;", "&lt;b&gt;", "&amp;amp;", "&amp;quot;", "&",
  "&c",  "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\f", "\x85", "café",
  "cafe\u0301", "naïve", "Å", "ÅNGSTRÖM", "STRASSE", "ß", "İstanbul", "ΟΔΟΣ", "Σ", "ﬁt", "ﬂat",
  "ﬅ", "ĳ", "ŉ", "Ｒｅｄ", "ＣＯＡＴ！", "東京", "ｶﾞ", "ﾊﾟ", "\0", "\x1b[31mred\x1b[0m", "\ufeff",
  "\u200b", "\u00ad", "\u202e", "…", "—", "–", "!", "!!", "?", "½", "№", "10%", "🙂", "👩🏽",
  "<", ">", "<b>", "<pad>", "<start>", "<end>", "<|startoftext|>", "<|endoftext|>", "[SEP]",
  "[PAD]", "[MASK]",
)  # fmt: skip


def odd_captions(seed: int, count: int) -> list[str]:
  """Draws captions of 0 to 20 words and oddities, some of them without a space between."""
  draw = random.Random(seed)

  def word() -> str:
    text = draw.choice(_WORDS if draw.random() < 0.6 else _ODD)
    return text + " " * (draw.random() < 0.8)

  return ["".join(word() for _ in range(draw.randrange(21))) for _ in range(count)]
