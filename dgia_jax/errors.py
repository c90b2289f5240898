"""The exception for mistakes that the user can correct, and how text from files is printed."""


class UserError(Exception):
  """A mistake in a flag, a config field, a file or a folder.

  The message is one line that names the culprit and says what to do. `dgia_jax.cli` prints it
  without a traceback and exits with code 2.
  """


def printable(text: str) -> str:
  r"""The text with everything that does not print as a character escaped, such as \x1b or \n.

  For text from the user's files: an escape sequence in a caption could change the terminal, and a
  file name that is not UTF-8 holds lone surrogates, which no terminal can be sent.
  """
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
