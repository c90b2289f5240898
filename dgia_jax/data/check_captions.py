"""The part of `data check` that looks at captions: lengths, copies and unusual characters."""

import collections
import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

from dgia_jax.data.annotations import Annotations, ImageRecord
from dgia_jax.data.data_report import DataReport, first_items

CONTEXT_TOKENS = 77
SHORT_WORDS = 3
_WORD = re.compile(r"[^\W\d_]+|\d|[^\s\w]+")
_CODE = re.compile(r"[{}<>\\|]|https?://|&\w+;|\w\(\)|==|;\s*$")
_SHOWN_CHARACTERS = 70


def check_captions(report: DataReport, annotations: Annotations, show: int) -> None:
  """Adds the section on captions to a report; `show` limits the examples of each kind."""
  report.add_section("captions")
  captions = [caption for record in annotations.records for caption in record.captions]
  if not captions:
    return
  lengths = [len(_WORD.findall(caption)) for caption in captions]
  report.add_line(
    f"{len(captions)} captions of {min(lengths)} to {max(lengths)} words and marks, mean "
    f"{sum(lengths) / len(lengths):.1f}"
  )
  if annotations.identities != "unknown":
    _check_copies(report, annotations.records, show)
  kinds: tuple[tuple[str, Callable[[str, int], object]], ...] = (
    (
      f"longer than about {CONTEXT_TOKENS} tokens, cut at the end",
      lambda caption, length: length + 2 > CONTEXT_TOKENS,
    ),
    (f"shorter than {SHORT_WORDS} words", lambda caption, length: length < SHORT_WORDS),
    (
      "that are a list written as text (write a JSON list of captions)",
      lambda caption, length: _is_list(caption),
    ),
    ("with letters that are not Latin", lambda caption, length: _has_foreign_letter(caption)),
    ("with characters that look like code", lambda caption, length: _CODE.search(caption)),
  )
  for kind, applies in kinds:
    examples = [
      caption for caption, length in zip(captions, lengths, strict=True) if applies(caption, length)
    ]
    if examples:
      report.add_note(
        f"{len(examples)} captions {kind}",
        first_items(_shown(examples), show),
      )


def _shown(captions: Sequence[str]) -> list[str]:
  """Captions as examples, the most frequent first and each once, with its number if repeated."""
  return [
    repr(caption[:_SHOWN_CHARACTERS]) + (f" ({count} times)" if count > 1 else "")
    for caption, count in collections.Counter(captions).most_common()
  ]


def _check_copies(report: DataReport, records: Sequence[ImageRecord], show: int) -> None:
  people_of, uses = collections.defaultdict(set), collections.Counter()
  for record in records:
    for caption in record.captions:
      text = " ".join(caption.casefold().split())
      people_of[text].add(record.person)
      uses[text] += 1
  copied = sorted(
    (text for text, people in people_of.items() if len(people) > 1),
    key=lambda text: -len(people_of[text]),
  )
  if copied:
    examples = [f"{len(people_of[t])} people: {t[:_SHOWN_CHARACTERS]!r}" for t in copied]
    report.add_note(
      f"{len(copied)} captions are used for several people, by {sum(uses[t] for t in copied)} "
      "pairs: such queries have right answers that count as wrong",
      first_items(examples, show),
    )


def _is_list(caption: str) -> bool:
  inner = caption.strip()
  if inner[:1] + inner[-1:] not in ("[]", "()"):
    return False
  inner = inner[1:-1].strip()
  return len(inner) > 1 and inner[0] == inner[-1] and inner[0] in "'\""


def _has_foreign_letter(caption: str) -> bool:
  return not caption.isascii() and any(map(_is_foreign, caption))


@functools.cache
def _is_foreign(character: str) -> bool:
  return character.isalpha() and not unicodedata.name(character, "").startswith("LATIN")
