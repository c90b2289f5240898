"""Cleaning of captions, and what tokenizer.json can express of it."""

import pytest

from dgia_jax.data import text_cleaning
from tests.helpers.odd_captions import odd_captions


def test_tokenizers_cleans_as_we_do():
  exportable = text_cleaning.exportable_cleaning()
  captions = odd_captions(seed=0, count=2000)
  different = [
    caption
    for caption in captions
    if exportable.normalize_str(caption) != text_cleaning.clean_caption(caption)
  ]
  # By chance, signs that stand side by side look like one that was decoded wrongly.
  assert len(different) <= 4, different


def test_quotes_written_as_html():
  clean = text_cleaning.exportable_cleaning().normalize_str
  for caption in ("he&rsquo;s", "&ldquo;red&rdquo; &amp;amp; &#39;blue&#39;"):
    assert clean(caption) == text_cleaning.clean_caption(caption)


@pytest.mark.parametrize(
  ("written", "ours", "exported"),
  [
    ("caf&eacute;", "café", "caf&eacute;"),
    ("caf&#233;", "café", "caf&#233;"),
    ("caf\u00c3\u00a9", "café", "caf\u00e3\u00a9"),  # UTF-8 read as Latin-1
    ("<b> he&rsquo;s", "<b> he’s", "<b> he's"),  # ftfy leaves HTML alone beside a tag
  ],
)
def test_what_tokenizers_cannot_express(written, ours, exported):
  """The model card names these limits."""
  assert text_cleaning.clean_caption(written) == ours
  assert text_cleaning.exportable_cleaning().normalize_str(written) == exported
