"""Reading the reference numbers in tests/golden (measured from the released implementation)."""

import json

import numpy as np

from tests.helpers.paths import GOLDEN

FOLDER = GOLDEN


def arrays(name):
  """All arrays of tests/golden/`name`.npz as a dict."""
  with np.load(FOLDER / f"{name}.npz") as data:
    return {key: data[key] for key in data.files}


def description(name):
  """tests/golden/`name`.json."""
  return json.loads((FOLDER / f"{name}.json").read_text())


def cases(name):
  """The numbered cases of a file: (number, {array name: array}) in order."""
  data = arrays(name)
  for prefix in sorted({key.split("_", 1)[0] for key in data if key[0] == "c"}):
    yield (
      int(prefix[1:]),
      {key.split("_", 1)[1]: value for key, value in data.items() if key.startswith(prefix + "_")},
    )


def assert_loss(actual, expected):
  """Relative 2e-6 plus absolute 5e-6: what float32 reaches (reference computed in float64)."""
  np.testing.assert_allclose(float(actual), float(expected), rtol=2e-6, atol=5e-6)


def assert_gradient(actual, expected):
  """1e-5 of the largest reference entry; below 1e-7 a gradient is rounding."""
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, rtol=0, atol=max(1e-5 * scale, 1e-7))
