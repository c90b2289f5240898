"""Words that a copied vocabulary spells in pieces get tokens of their own."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from dgia_jax.data import new_words
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from tests.helpers import vocabularies

_KNOWN = ["a man in a red coat", "a woman in a red hat", "a man in a hat"] * 3
_NEW = ["a man in a Crimson coat", "crimson hat, crimson-red coat", "a crimsons khaki hat"]


@pytest.fixture(params=["own", "clip"])
def vocabulary(request, tmp_path):
  if request.param == "clip":
    return tokenizer_lib.clip_tokenizer(vocabularies.write("clip", tmp_path / "clip"), 32)
  return tokenizer_lib.train_tokenizer(_KNOWN, 32, 300)


def ordinary(vocabulary, caption):
  """Ids between start and end."""
  row = vocabulary.encode([caption])[0].tolist()
  return row[1 : row.index(vocabulary.end_id)]


def test_a_frequent_new_word_is_one_token_after_the_known_ones(vocabulary):
  larger = new_words.add_new_words(vocabulary, _NEW, 3)
  first = vocabulary.vocab_size - 3
  assert larger.vocab_size == vocabulary.vocab_size + 1
  assert (larger.mask_id, larger.start_id, larger.end_id) == (first + 1, first + 2, first + 3)
  assert larger.word_ids == range(1, first + 1)
  assert ordinary(larger, "crimson") == [first] == ordinary(larger, "CRIMSON ")
  # It also stands before a sign, but not inside another word.
  assert ordinary(larger, "crimson-red") == [first, *ordinary(vocabulary, "-red")]
  assert ordinary(larger, "crimsons") == ordinary(vocabulary, "crimsons")
  # What occurs less often is spelled as before.
  assert len(ordinary(larger, "khaki")) > 1
  assert ordinary(larger, "khaki") == ordinary(vocabulary, "khaki")


def test_known_words_keep_their_ids(vocabulary):
  larger = new_words.add_new_words(vocabulary, _NEW, 1)
  words = {word for caption in [*_KNOWN, *_NEW] for word in vocabulary.words(caption)}
  known = [word for word in words if len(vocabulary.pieces(word)) == 1]
  assert known
  for word in known:
    assert ordinary(larger, word) == ordinary(vocabulary, word)
  # All others have tokens now.
  assert new_words.add_new_words(larger, _NEW, 1).vocab_size == larger.vocab_size


def test_a_word_with_the_letters_of_an_inner_piece_stays_in_pieces():
  vocabulary = tokenizer_lib.train_tokenizer(["knapsack backsack rucksack"] * 5, 32, 300)
  assert vocabulary.is_token("sack") and len(vocabulary.pieces("sack")) > 1
  larger = new_words.add_new_words(vocabulary, ["a crimson sack"] * 3, 3)
  assert larger.added_words(vocabulary.vocab_size) == ["crimson"]
  assert larger.vocab_size == vocabulary.vocab_size + 1
  assert ordinary(larger, "sack") == ordinary(vocabulary, "sack")


@pytest.mark.parametrize(
  "splitter", [pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Metaspace(), None]
)
def test_a_vocabulary_that_does_not_cut_words_is_refused(splitter, tmp_path):
  tokenizer_lib.train_tokenizer(_KNOWN, 32, 300).save(tmp_path)
  content = json.loads((tmp_path / tokenizer_lib.FILE).read_text()) | {"pre_tokenizer": None}
  backend = tokenizers.Tokenizer.from_str(json.dumps(content))
  if splitter:
    backend.pre_tokenizer = splitter
  with pytest.raises(UserError, match="config.tokenizer.new_words=3: .* set it to 0"):
    new_words.add_new_words(tokenizer_lib.Tokenizer(backend), _NEW, 3)


def test_the_order_of_captions_does_not_matter(vocabulary):
  captions = [*_NEW, *_KNOWN]
  forwards, backwards = (
    new_words.add_new_words(vocabulary, some, 1) for some in (captions, captions[::-1])
  )
  np.testing.assert_array_equal(forwards.encode(captions), backwards.encode(captions))


def test_pieces_are_those_of_the_original_vocabulary(vocabulary):
  larger = new_words.add_new_words(vocabulary, _NEW, 1)
  pieces = new_words.pieces_of_new_words(vocabulary, larger)
  words = larger.added_words(vocabulary.vocab_size)
  assert words[0] == "crimson" and {"crimsons", "khaki"} <= set(words)  # the most frequent first
  assert pieces == [ordinary(vocabulary, word) for word in words]
  assert [ordinary(larger, word) for word in words] == [
    [vocabulary.vocab_size - 3 + number] for number in range(len(words))
  ]


def test_saved_words_are_loaded(vocabulary, tmp_path):
  larger = new_words.add_new_words(vocabulary, _NEW, 1)
  larger.save(tmp_path / "run")
  loaded = tokenizer_lib.load_tokenizer(tmp_path / "run")
  captions = [*_NEW, *_KNOWN, "", "<|endoftext|>", "crimson中"]
  np.testing.assert_array_equal(loaded.encode(captions), larger.encode(captions))
  assert loaded.added_words(vocabulary.vocab_size) == larger.added_words(vocabulary.vocab_size)
  assert vocabulary.added_words(vocabulary.vocab_size) == []


def test_signs_and_digits_are_no_words(vocabulary):
  assert vocabulary.words("A man's t-shirt, no. 12 (größe XL)…") == [
    "a", "man", "t", "shirt", "no", "größe", "xl"
  ]  # fmt: skip
  larger = new_words.add_new_words(vocabulary, ["12 ... ?! 34"] * 3, 1)
  assert larger.vocab_size == vocabulary.vocab_size


@pytest.mark.parametrize(
  "joined", ["crimson_coat", "crimson5", "3crimson", "crimson\u200dx", "_crimson"]
)
def test_only_words_that_become_the_token_are_counted(vocabulary, joined):
  captions = [f"{joined}.", "crimson"]
  assert vocabulary.words(joined)[0] == "crimson" or vocabulary.words(joined)[-1] == "crimson"
  assert new_words.add_new_words(vocabulary, captions, 2).vocab_size == vocabulary.vocab_size
  larger = new_words.add_new_words(vocabulary, [*captions, "crimson."], 2)
  first = vocabulary.vocab_size
  assert larger.added_words(first) == ["crimson"]
  ids = larger.encode([*captions, "crimson."])
  assert np.count_nonzero(ids == first - 3) == 2 == larger.count_added(captions, first)[0] + 1


def test_words_beyond_the_context_are_counted(vocabulary):
  captions = ["a " * 40 + "crimson"] * 2
  larger = new_words.add_new_words(vocabulary, captions, 2)
  assert larger.added_words(vocabulary.vocab_size) == ["crimson"]
