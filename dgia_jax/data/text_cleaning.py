"""How the text of captions is cleaned before it becomes tokens."""

import html

from tokenizers import Regex, Tokenizer, normalizers

# The HTML entities that people's captions contain; html.unescape knows 2,231 names and all numbers.
_ENTITIES = {
  "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#34;": '"', "&apos;": "'", "&#39;": "'",
  "&#x27;": "'", "&nbsp;": " ", "&lsquo;": "'", "&rsquo;": "'", "&ldquo;": '"', "&rdquo;": '"',
  "&amp;": "&",  # last, so that one round resolves one level, as html.unescape does
}  # fmt: skip
_ROUNDS = 2  # captions are sometimes escaped twice


def clean_caption(caption: str) -> str:
  """Repairs broken characters, resolves HTML (also when escaped twice), one space, lower case."""
  import ftfy  # compiles its tables when imported: not for programs that read no caption

  text = html.unescape(html.unescape(ftfy.fix_text(caption)))
  return " ".join(text.split()).lower()


def exportable_cleaning() -> normalizers.Normalizer:
  """`clean_caption` as `tokenizers` can express it, for programs that have only tokenizer.json.

  Two things are missing: HTML entities other than the usual ones, and the repair of text that was
  decoded with a wrong encoding.
  """
  from ftfy import chardata, fixes

  control_characters = "".join(map(chr, chardata.CONTROL_CHARS))
  steps = [normalizers.Replace(*entity) for entity in _ENTITIES.items()] * _ROUNDS
  c1_controls = {code: fixes.fix_c1_controls(chr(code)) for code in range(0x80, 0xA0)}
  steps += [
    normalizers.Replace(chr(code), text)
    for table in (c1_controls, chardata.LIGATURES, chardata.WIDTH_MAP)
    for code, text in table.items()
    if text != chr(code)
  ]
  steps += [
    normalizers.Replace(Regex(chardata.SINGLE_QUOTE_RE.pattern), "'"),
    normalizers.Replace(Regex(chardata.DOUBLE_QUOTE_RE.pattern), '"'),
    normalizers.Replace(Regex(fixes.ANSI_RE.pattern), ""),
    normalizers.Replace(Regex(f"[{control_characters}]"), ""),
    normalizers.NFC(),
    normalizers.Replace(Regex(r"\s+"), " "),
    normalizers.Strip(),
    normalizers.Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"),  # Python knows the final sigma
    normalizers.Lowercase(),
  ]
  return normalizers.Sequence(steps)


def clean_first(backend: Tokenizer) -> None:
  """Lets a tokenizer clean captions itself, before its own normalizer, for other programs."""
  own = [backend.normalizer] if backend.normalizer else []
  backend.normalizer = normalizers.Sequence([exportable_cleaning(), *own])
