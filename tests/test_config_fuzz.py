"""Random values for every setting: each is accepted and passes the check, or ends in one line."""

import random

import pytest

from dgia_jax import config as config_lib
from dgia_jax import main, run_flags
from dgia_jax.errors import UserError
from tests.helpers.settings import leaves

pytestmark = pytest.mark.fuzz

VALUES = [
  "", "0", "-1", "1", "3", "0.5", "-0.5", "1e400", "nan", "inf", "-inf", "1e-300", str(2**32),
  str(2**70), "9" * 5000, "True", "None", "text", "both", "mean", "()", "(1,)", "(1, 2)",
  "(2, 1)", "(0.1, 0.2)", "[1, 2]", "{}", "(nan, 1)", "a\nb", "\x1b[31m", "é", "gs://bucket/x",
  "~", "../..", "__import__('os')", "(" * 200, "1 2", "0x10", "1_000",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_values_are_accepted_or_refused_in_one_line(seed):
  draw = random.Random(seed)
  names = sorted(leaves(config_lib.base()))
  outcomes = {"accepted": 0, "refused": 0}
  for _ in range(250):
    name, value = draw.choice(names), draw.choice(VALUES)
    try:
      run_flags.parse(["main", "--config=cuhk_pedes", f"--config.{name}={value}"])
      config_lib.check(main.FLAGS.config)
      outcomes["accepted"] += 1
    except UserError as error:
      assert "\n" not in " ".join(str(error).split()) and str(error), (name, value)
      outcomes["refused"] += 1
    except Exception as error:
      raise AssertionError(f"--config.{name}={value[:40]!r}: {error!r}") from error
    finally:
      main.FLAGS.unparse_flags()
      for flag in [flag for flag in main.FLAGS if flag.startswith("config.")]:
        delattr(main.FLAGS, flag)  # config_flags defines one for each setting that is given
  assert outcomes["accepted"] > 20 and outcomes["refused"] > 20, outcomes
