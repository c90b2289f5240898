"""synth_pedes: an embedded dataset of drawn pedestrians, hard enough to compare methods on.

`generate(Settings(...), split)` yields records and needs NumPy and Pillow only; the TFDS builder
over the same records is in `builder.py`, imported only by those who have TFDS.
"""

from dgia_jax.data.synth_pedes.generate import generate
from dgia_jax.data.synth_pedes.settings import PRESETS, Settings

__all__ = ["PRESETS", "Settings", "generate"]
