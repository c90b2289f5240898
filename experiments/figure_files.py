"""Writes figures to files: a PNG for the screen and a PDF, with embedded fonts, for a paper."""

import pathlib

import matplotlib
from matplotlib.figure import Figure

from dgia_jax import files


def save(figure: Figure, path: pathlib.Path, dpi: int = 130) -> None:
  """Writes a PNG, and a PDF of the same name beside it, each atomically.

  Args:
    figure: to write.
    path: of the PNG.
    dpi: resolution of the PNG, pixels per inch.
  """
  # Without the date, equal figures are equal files.
  for suffix, metadata in ((".pdf", {"CreationDate": None}), (".png", None)):
    with (
      files.replacing(path.with_suffix(suffix)) as partial,
      matplotlib.rc_context({"pdf.fonttype": 42}),
    ):
      figure.savefig(partial, format=suffix[1:], dpi=dpi, metadata=metadata)
