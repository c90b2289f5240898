"""transformers without its advice."""

import contextlib
import os
import types
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_transformers() -> Iterator[types.ModuleType]:
  """Yields transformers without its advice: on missing PyTorch, on fields that we leave out.

  It is imported on use: that takes seconds, and training with CLIP's tokenizer does without it.
  """
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  verbosity = transformers.logging.get_verbosity()
  transformers.logging.set_verbosity_error()
  try:
    yield transformers
  finally:
    transformers.logging.set_verbosity(verbosity)
