"""synth_pedes: a built-in dataset of synthetic pedestrians, hard enough to compare methods on.

`generate(Settings(...), split)` yields records and needs only NumPy and Pillow. `builder.py` stores
the same records with TFDS.
"""

from dgia_jax.data.synth_pedes.generate import generate
from dgia_jax.data.synth_pedes.settings import PRESETS, Settings

__all__ = ["PRESETS", "Settings", "generate"]
