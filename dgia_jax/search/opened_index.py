"""An index opened for searching."""

import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dgia_jax.errors import UserError
from dgia_jax.search import coded_gallery, exact, index_files
from dgia_jax.search import codes as codes_lib
from dgia_jax.search import matches as matches_lib
from dgia_jax.search.gallery import Gallery
from dgia_jax.search.identities import Identities
from dgia_jax.search.index_paths import Paths
from dgia_jax.search.matches import Match

QUERIES = 64  # searched at once, so that the scores of many queries need no more memory


class SearchIndex:
  """An index opened for searching.

  Attributes:
    about: the content of index.json.
    name: of the index, which is that of its folder.
    images: the folder of images.
    paths: path of every row, relative to the folder.
    rows: those that can be results, ascending.
  """

  def __init__(self, folder: pathlib.Path | str, mesh: Any, *, use_codes: bool = True):
    """Opens an index, verifies what searches will read, and makes it searchable on a mesh.

    Args:
      folder: the index.
      mesh: the mesh.
      use_codes: if the index has codes and the mesh profits; the results are the same.

    Raises:
      UserError: the folder holds no index, or an empty or damaged one.
    """
    self.name = pathlib.Path(folder).absolute().name
    # Scanning all paths takes a second for a million; several queries often share one pattern.
    self._matching = functools.lru_cache(4)(self._matching)
    while True:
      self.about, failure = index_files.read_about(folder), None
      try:
        self._open(folder, mesh, use_codes)
      except (UserError, OSError) as error:
        failure = error
      if index_files.read_about(folder) == self.about:
        break
      # It was compacted meanwhile: some files may have been removed before they were opened.
      if failure is None and isinstance(self._read, codes_lib.VerifiedFeatures):
        self._read.close()
    if failure is not None:
      raise failure

  def _open(self, folder: pathlib.Path | str, mesh: Any, use_codes: bool) -> None:
    """Opens the data that `about` names."""
    self._data = index_files.data_folder(folder, self.about)
    self.images = pathlib.Path(self.about["images"])
    (parts, gone), width = index_files.read_rows(self._data), self.about["feature_width"]
    usable = index_files.usable_rows(parts, gone)
    use_codes = use_codes and coded_gallery.serves(mesh)
    codes = codes_lib.open_codes(self._data, parts, width) if use_codes else None
    features = index_files.open_features(self._data, parts, width, verify=codes is None)
    self.rows = np.flatnonzero(usable)
    if not len(self.rows):
      raise UserError(f"--index={folder}: holds no image; was {self.images} empty?")
    self.paths, self._usable_N = Paths(self._data, parts), usable
    if codes is None:
      self._read = lambda rows: np.array(features[rows])
      self._gallery = exact.ExactGallery(Gallery(features, mesh, usable), self._read)
    else:
      self._read = codes_lib.VerifiedFeatures(self._data, features, codes)
      self._gallery = coded_gallery.CodedGallery(codes, usable, self._read)

  def __len__(self) -> int:
    return len(self.rows)

  @functools.cached_property
  def identities(self) -> Identities:
    """Who is on the images, as far as it is known; read from disk when asked for.

    Raises:
      UserError: the index was compacted since it was opened, or its annotations are damaged.
    """
    if not (self._data / index_files.GONE).exists():
      raise UserError(f"--index: {self._data} was removed by a compaction; open the index again")
    return Identities(index_files.read_annotated(self._data), self.images)

  @property
  def num_rescored(self) -> int:
    """Features that searches by codes have read so far; 0 if they read all features."""
    return getattr(self._gallery, "num_rescored", 0)

  def search(self, queries_QxD: Any, top: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, K) cosines, best first, and (Q, K) rows; see `exact`, and `Gallery.search` for errors."""
    return self._gallery.search(queries_QxD, top)

  def matches(
    self,
    query_D: Float[np.ndarray, " D"],
    top: int,
    without: Iterable[str | os.PathLike] = (),
    only: str = "",
    fold: bool = False,
    rerank: bool = False,
  ) -> list[Match]:
    """The images that fit a query best, best first; see `matches_of_all` for `without`."""
    options = dict(only=only, fold=fold, rerank=rerank)
    return self.matches_of_all(query_D[None], top, [without], **options)[0]

  def matches_of_all(
    self,
    queries_QxD: Float[np.ndarray, "Q D"],
    top: int,
    without: Sequence[Iterable[str | os.PathLike]],
    *,
    only: str = "",
    fold: bool = False,
    rerank: bool = False,
  ) -> list[list[Match]]:
    """The images that fit each of several queries best, best first.

    Args:
      queries_QxD: features of the queries.
      top: number of images per query.
      without: per query, image files that are left out of its results, such as the query itself.
      only: glob that results' paths match, from the folder of images on; "" for all.
      fold: show a picture that is stored several times once, with its copies.
      rerank: order the best by `matches.reranked_order`; their scores stay cosines.
    """
    among_M = self._matching(only) if only.strip() else None
    without = [{os.path.realpath(path) for path in paths} for paths in without]
    # A power of two: each number compiles its own search, and every page asks for another.
    least = matches_lib.CANDIDATES if rerank else 1
    largest = top + max(map(len, without), default=0)
    wanted = 1 << (max(largest, least) - 1).bit_length()
    results: list[list[Match]] = [[] for _ in without]
    unfinished = list(range(len(without)))
    while unfinished:
      still_unfinished = []
      for start in range(0, len(unfinished), QUERIES):
        numbers = unfinished[start : start + QUERIES]
        found = self._gallery.search(queries_QxD[numbers], wanted, among_M)
        for number, scores, rows in zip(numbers, *found, strict=True):
          results[number] = self._matches(scores, rows, without[number], fold, rerank)[:top]
          if len(results[number]) < top and len(rows) == wanted:
            still_unfinished.append(number)
      unfinished, wanted = still_unfinished, 4 * wanted  # many of the best were copies
    return results

  def _matches(
    self,
    scores_K: Float[np.ndarray, " K"],
    rows_K: Int[np.ndarray, " K"],
    without: set[str],
    fold: bool,
    rerank: bool,
  ) -> list[Match]:
    """The results of a search as `matches_of_all` gives them, though fewer if some are copies."""
    if rerank:
      candidates_CxD = self.features(rows_K[: matches_lib.CANDIDATES])
      order = matches_lib.reranked_order(scores_K, candidates_CxD)
      scores_K, rows_K = scores_K[order], rows_K[order]
    matches = [
      Match(self.images / self.paths[row], float(score), int(row))
      for score, row in zip(scores_K, rows_K, strict=True)
    ]
    if without:
      matches = [match for match in matches if os.path.realpath(match.path) not in without]
    if fold and matches:
      matches = matches_lib.folded(matches, self.features([match.row for match in matches]))
    return matches

  def _matching(self, pattern: str) -> Bool[np.ndarray, " N"]:
    """The rows that can be results and whose paths match a glob."""
    return self.paths.matching(pattern) & self._usable_N

  def histogram(self, query_D: Float[np.ndarray, " D"]) -> Float[np.ndarray, " _"]:
    """Numbers of images by their cosine similarity to a query; see `Gallery.histogram`."""
    return self._gallery.histogram(query_D)

  def features(self, rows: Sequence[int] | np.ndarray) -> Float[np.ndarray, "n D"]:
    """A copy of the features of some rows, for example to search for similar images."""
    return self._read(np.asarray(rows))
