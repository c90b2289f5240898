"""The one exception that means "the user can fix this": main prints it as a single line."""


class UserError(Exception):
  """A mistake in a flag, a config field, a file or a folder.

  The message is one line that names the culprit and says what to do. `dgia_jax.main` prints it
  without a traceback and exits with code 2.
  """
