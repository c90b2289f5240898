"""The ids of vocabularies, of ours and CLIP's above all.

The text tower of CLIP finds the end of a caption as the highest id in it. V is the size of the
embedding table:

    0            padding (in CLIP's vocabulary also "!" before another sign; it is never masked)
    1 ... V-4    ordinary tokens, which the distorted view may mask
    V-3          the mask; in CLIP's vocabulary its last token, "jekyll", gives up this id, and the
                 word is spelled from smaller tokens instead
    V-2, V-1     start and end of a caption
"""

import typing

NUM_SPECIAL = 3  # at the end of the table: mask, start and end


@typing.runtime_checkable
class Vocabulary(typing.Protocol):
  """What training needs to know about a tokenizer.

  Attributes:
    vocab_size: V, number of rows of an embedding table.
    mask_id: id of the mask.
    word_ids: the ids of ordinary tokens, which may be masked.
    first_word: position of a caption's first word.
  """

  vocab_size: int
  mask_id: int
  word_ids: range
  first_word: int


class TokenIds:
  """The ids of a vocabulary of our own, or CLIP's.

  Attributes:
    vocab_size, mask_id, word_ids, first_word: as in `Vocabulary`.
    pad_id, start_id, end_id: the other special ids.
  """

  first_word = 1  # after the start

  def __init__(self, vocab_size: int):
    self.vocab_size = vocab_size
    self.pad_id = 0
    self.mask_id, self.start_id, self.end_id = range(vocab_size - NUM_SPECIAL, vocab_size)
    self.word_ids = range(1, self.mask_id)
