"""Words that a pretrained model's vocabulary spells in pieces, as tokens of their own.

A model knows the words of its own captions. A word of other captions, such as "crimson", is spelled
from two or more pieces, which mean something else in other words and fill the context. If the
training captions use the word often enough to learn it, a token of its own is better. It starts
from the mean of the embeddings of its pieces. The only exceptions are words with the letters of a
token that other words are spelled with, such as "sack" in "knapsack": they stay in pieces.
"""

import collections
from collections.abc import Sequence

from dgia_jax.data.tokenizer import Tokenizer
from dgia_jax.errors import UserError


def add_new_words(vocabulary: Tokenizer, captions: Sequence[str], min_count: int) -> Tokenizer:
  """A vocabulary with a token for each word that the given one spells in pieces.

  The ids of ordinary tokens stay, new words follow them, and the three special ids come last again.

  Args:
    vocabulary: of the pretrained model.
    captions: the training captions.
    min_count: a word counts if it occurs at least so often in them.

  Raises:
    UserError: the vocabulary does not cut captions into words, or has gaps.
  """
  if vocabulary.words("red coat") != ["red", "coat"]:
    raise UserError(
      f"config.tokenizer.new_words={min_count}: the vocabulary of config.pretrained does not cut"
      " captions into words; set it to 0"
    )
  if vocabulary.has_gaps:
    raise UserError(
      f"config.tokenizer.new_words={min_count}: the ids of the vocabulary of config.pretrained have"
      " gaps; set it to 0"
    )
  counts = collections.Counter(word for caption in captions for word in vocabulary.words(caption))
  frequent = [
    word
    for word, count in counts.items()
    if count >= min_count and len(vocabulary.pieces(word)) > 1 and not vocabulary.is_token(word)
  ]
  # A word beside a digit or "_" (red_coat, 3xl) stays in pieces, so it does not count.
  larger = vocabulary.with_words(frequent)
  counts = dict(zip(frequent, larger.count_added(captions, vocabulary.vocab_size), strict=True))
  new = [word for word in frequent if counts[word] >= min_count]
  # Equal captions in any order give equal ids.
  return vocabulary.with_words(sorted(new, key=lambda word: (-counts[word], word)))


def pieces_of_new_words(vocabulary: Tokenizer, larger: Tokenizer) -> list[list[int]]:
  """The ids, in the original vocabulary, of the pieces of each word that `add_new_words` added.

  Args:
    vocabulary: the original one.
    larger: made of it by `add_new_words`.
  """
  return [vocabulary.pieces(word) for word in larger.added_words(vocabulary.vocab_size)]
