"""Corrections of a text-to-image ranking at test time, without labels or training.

None of them is in the paper. Each needs memory for a block of similarities, not for all:

- `smooth` moves every gallery feature towards its own nearest neighbours.
- `hubness` measures which gallery items are near to every text, to be subtracted.
- `rerank` prefers images that share their k-reciprocal neighbours with the best ones.

`Correction` combines them in this order.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgia_jax.method import losses

BLOCK = 256  # gallery items compared with all others at a time
RERANK_BLOCK = 64  # queries re-ranked at a time: 13 MB of features of 100 candidates, 512 wide
POWER = 3  # of the cosines that weigh the neighbours of `smooth`
HUBNESS_NEIGHBOURS = 64  # reference texts in the mean of `hubness`
EXPANSION = 3  # candidates, the own one first, whose neighbourhoods are averaged
# Of re-ranking, chosen on val (docs/findings.md); the latter two are defaults of the config, too.
CANDIDATES, NEIGHBOURS, WEIGHT = 100, 6, 2.0

Features = Float[Array | np.ndarray, "G D"]


@dataclasses.dataclass(frozen=True)
class Correction:
  """Which corrections a ranking gets, and how strong they are; 0 switches one off.

  Attributes:
    smooth_neighbours: K of `smooth`.
    hubness_weight: what `hubness` is multiplied by before it is subtracted.
    rerank_candidates, rerank_neighbours, rerank_weight: of `rerank`.
  """

  smooth_neighbours: int = 0
  hubness_weight: float = 0.0
  rerank_candidates: int = 0
  rerank_neighbours: int = NEIGHBOURS
  rerank_weight: float = WEIGHT

  def parts(self) -> dict[str, "Correction"]:
    """Each correction that is on by itself, and all "together" if there are several."""
    off = dataclasses.replace(self, smooth_neighbours=0, hubness_weight=0.0, rerank_candidates=0)
    switches = {
      "smoothed": "smooth_neighbours",
      "hubs_corrected": "hubness_weight",
      "reranked": "rerank_candidates",
    }
    parts = {
      name: dataclasses.replace(off, **{field: getattr(self, field)})
      for name, field in switches.items()
      if getattr(self, field)
    }
    return parts | ({"together": self} if len(parts) > 1 else {})

  def prepare(
    self, gallery_GxD: Features, references_NxD: Float[Array | np.ndarray, "N D"] | None
  ) -> tuple[Float[np.ndarray, "G D"], jax.tree_util.Partial]:
    """The gallery to rank, and `adjust` of `retrieval_metrics.retrieval_metrics_from_features`.

    Args:
      gallery_GxD: need not be normalised.
      references_NxD: the reference texts of `hubness`; needed if it is on.
    """
    penalty_G = None
    if self.smooth_neighbours:
      gallery_GxD = smooth(gallery_GxD, self.smooth_neighbours)
    if self.hubness_weight:
      penalty_G = self.hubness_weight * hubness(gallery_GxD, references_NxD, HUBNESS_NEIGHBOURS)
    return np.asarray(gallery_GxD), jax.tree_util.Partial(self._adjust, penalty_G)

  def _adjust(
    self, penalty_G: jax.Array | None, similarity_RxG: jax.Array, gallery_GxD: jax.Array
  ) -> jax.Array:
    if penalty_G is not None:
      similarity_RxG = similarity_RxG - penalty_G[None, :]
    if self.rerank_candidates:
      similarity_RxG = rerank(
        similarity_RxG,
        gallery_GxD,
        self.rerank_candidates,
        self.rerank_neighbours,
        self.rerank_weight,
      )
    return similarity_RxG


def smooth(
  features_GxD: Features, num_neighbours: int, block: int = BLOCK
) -> Float[np.ndarray, "G D"]:
  """Replaces every feature by a weighted mean of itself and its nearest neighbours.

  The alpha query expansion of Radenovic et al. (2018), of the gallery:

    g_i' = normalize(g_i + sum over the K nearest j of max(g_i . g_j, 0)^POWER g_j)

  Args:
    features_GxD: need not be normalised; the result is.
    num_neighbours: K, without the feature itself; fewer if the gallery is smaller.
    block: features compared with all others at a time; bounds the memory and changes no result.
  """
  unit_GxD = losses.normalize(jnp.asarray(features_GxD))
  count = min(num_neighbours, len(unit_GxD) - 1)

  @jax.jit
  def smooth_all(unit_GxD):
    def smooth_one(row):
      index, feature_D = row
      cosine_G = _dot(unit_GxD, feature_D).at[index].set(-jnp.inf)
      cosine_K, nearest_K = jax.lax.top_k(cosine_G, count)
      weight_K = jnp.maximum(cosine_K, 0.0) ** POWER
      return losses.normalize(feature_D + _dot(weight_K, unit_GxD[nearest_K]))

    rows = jnp.arange(len(unit_GxD)), unit_GxD
    return jax.lax.map(smooth_one, rows, batch_size=min(block, len(unit_GxD)))

  return np.asarray(smooth_all(unit_GxD))


def hubness(
  gallery_GxD: Features,
  references_NxD: Float[Array | np.ndarray, "N D"],
  num_neighbours: int,
  block: int = BLOCK,
) -> Float[np.ndarray, " G"]:
  """How near every gallery item is to texts that are not searched for.

  Nearest neighbour normalization (Chowdhury et al., EMNLP 2024) subtracts a multiple of it from the
  similarity of the item to any query:

    b_i = mean of the K largest cosines of g_i and the reference texts

  Args:
    gallery_GxD: need not be normalised.
    references_NxD: features of texts, such as the training captions; need not be normalised.
    num_neighbours: K; fewer if there are fewer references.
    block: gallery items compared with all references at a time; bounds the memory and changes no
      result.
  """
  count = min(num_neighbours, len(references_NxD))

  @jax.jit
  def measure_all(unit_GxD, references_NxD):
    def measure(feature_D):
      return jnp.mean(jax.lax.top_k(_dot(references_NxD, feature_D), count)[0])

    return jax.lax.map(measure, unit_GxD, batch_size=min(block, len(unit_GxD)))

  unit_GxD, references_NxD = (
    losses.normalize(jnp.asarray(features)) for features in (gallery_GxD, references_NxD)
  )
  return np.asarray(measure_all(unit_GxD, references_NxD))


def rerank(
  similarity_RxG: Float[Array | np.ndarray, "R G"],
  gallery_GxD: Features,
  candidates: int = CANDIDATES,
  neighbours: int = NEIGHBOURS,
  weight: float = WEIGHT,
) -> Float[Array, "R G"]:
  """Adds `weight` times `neighbourhood_overlap` to the best candidates of every query.

  The similarities of other items stay as they are, so candidates stay before them. Needs R times C
  features and R times C^2 cosines.

  Args:
    similarity_RxG: of queries to the gallery; larger is better.
    gallery_GxD: unit norm.
    candidates: C, of every query; ties go to the lowest gallery index.
    neighbours: K of `neighbourhood_overlap`.
    weight: 0 changes nothing.
  """
  gallery_GxD, count = jnp.asarray(gallery_GxD), min(candidates, len(gallery_GxD))
  best_RxC = jax.lax.top_k(similarity_RxG, count)[1]

  def rerank_one(similarity_G, best_C):
    overlap_C = neighbourhood_overlap(gallery_GxD[best_C], neighbours)
    return similarity_G.at[best_C].add(weight * overlap_C)

  return jax.vmap(rerank_one)(similarity_RxG, best_RxC)


def neighbourhood_overlap(
  candidates_CxD: Float[Array | np.ndarray, "C D"], neighbours: int = NEIGHBOURS
) -> Float[Array, " C"]:
  """Jaccard similarity of the neighbourhoods of a query and of each of its candidates, in [0, 1].

  k-reciprocal re-ranking (Zhong et al., CVPR 2017) for a query of another modality, whose cosines
  to images cannot be compared with those among images. So the neighbourhood of the query is its
  ranking, and those of the candidates are their own, among the candidates:

    N(i) = i and the K candidates nearest to it,  R(i) = {j in N(i): i in N(j)}
    v_i = mean over j among i and its EXPANSION - 1 nearest of [R(j)] / |R(j)|
    v_q = [the K best candidates] / K
    overlap_i = sum min(v_q, v_i) / sum max(v_q, v_i)

  Args:
    candidates_CxD: features of norm 1, the best candidate first.
    neighbours: K; fewer if there are fewer candidates.
  """
  num_candidates = len(candidates_CxD)
  neighbours = min(neighbours, num_candidates)
  rows_C = jnp.arange(num_candidates)
  # A copy of an image is as near as the image itself, which must come first.
  cosine_CxC = _dot(candidates_CxD, candidates_CxD.T).at[rows_C, rows_C].set(jnp.inf)
  nearest_CxK = jax.lax.top_k(cosine_CxC, min(neighbours + 1, num_candidates))[1]
  is_near_CxC = jnp.zeros((num_candidates, num_candidates), bool)
  is_near_CxC = is_near_CxC.at[rows_C[:, None], nearest_CxK].set(True)
  reciprocal_CxC = (is_near_CxC & is_near_CxC.T).astype(jnp.float32)
  own_CxC = reciprocal_CxC / jnp.sum(reciprocal_CxC, axis=1, keepdims=True)
  expanded_CxC = jnp.mean(own_CxC[nearest_CxK[:, :EXPANSION]], axis=1)
  query_C = (rows_C < neighbours) / neighbours
  shared_C = jnp.sum(jnp.minimum(expanded_CxC, query_C[None, :]), axis=1)
  return shared_C / (2.0 - shared_C)  # both vectors have the sum 1


def _dot(a: Float[Array | np.ndarray, "..."], b: Float[Array | np.ndarray, "..."]) -> Array:
  return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)
