"""Flags read, every mistake turned into one line. Programs define them, `config` among them."""

import keyword
import sys

from absl import app, flags
from ml_collections import ConfigDict

from dgia_jax.errors import UserError

FLAGS = flags.FLAGS


def parse(arguments):
  """absl's parser, with every mistake in flags and config files turned into one line."""
  app.define_help_flags()
  arguments = list(map(with_keywords_quoted, arguments))
  sys.argv = arguments  # where config_flags looks for fields that are set
  try:
    rest = FLAGS(arguments)
    (FLAGS.config or ConfigDict()).to_dict()  # says only now that a file could not be read
    return rest
  except (flags.Error, UserError) as error:
    raise UserError(str(error)) from error
  except (AttributeError, KeyError) as error:
    words = str(error.args[0]).replace("\\n", "; ").replace("\\", "").replace("'", "")
    raise UserError(f"--config: unknown name: {words}") from error
  except Exception as error:  # a config file is Python and can fail in any way
    last_line = str(error).strip().rsplit("\n", 1)[-1]
    raise UserError(f"--config: {type(error).__name__}: {last_line}") from error


def with_keywords_quoted(argument):
  """An argument as config_flags can read it.

  It parses names as Python, where `global` is a word of the language:
  --config.loss.weights.global=0 becomes --config.loss.weights["global"]=0.
  """
  name, equals, value = argument.partition("=")
  if not name.startswith("--config."):
    return argument
  quoted = (f'["{part}"]' if keyword.iskeyword(part) else f".{part}" for part in name.split("."))
  return "".join(quoted)[1:] + equals + value
