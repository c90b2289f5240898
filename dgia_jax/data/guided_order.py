"""An epoch's order of pairs in which probable mates stand together. Pure; not in the paper.

In a random batch of 64 out of tens of thousands two images of one person hardly ever meet, so local
association finds nothing and the losses see easy negatives only. Here each pair is followed by
those of its neighbours that are still free, and these small groups, not pairs, are shuffled. Every
pair is still seen exactly once an epoch, and identities are not read.
"""

import numpy as np


def guided_order(neighbours_NxK, group, seed, epoch):
  """A permutation of all pairs, groups of probable mates together.

  Args:
    neighbours_NxK: int32 (N, K) pairs alike each pair, best first; -1 in empty slots.
    group: most pairs of a group, its first included.
    seed: of the run, not negative.
    epoch: counted from 0, so that epochs differ although neighbours may not.

  Returns:
    int32 (N,). Equal arguments give equal orders everywhere.
  """
  num_pairs = len(neighbours_NxK)
  # Raw bits, sorted: what numpy promises never to change.
  bits = np.random.PCG64([seed, epoch, 1]).random_raw(2 * num_pairs)
  visits_N = np.argsort(bits[:num_pairs], kind="stable")
  free_N = np.ones(num_pairs, bool)
  group_of_pair_N = np.empty(num_pairs, np.int64)
  place_N = np.empty(num_pairs, np.int64)
  for number, first in enumerate(visits_N):
    if not free_N[first]:
      continue
    free_N[first] = False
    candidates = neighbours_NxK[first]
    candidates = candidates[candidates >= 0]
    chosen = candidates[free_N[candidates]][: group - 1]
    members = np.concatenate([[first], chosen])
    free_N[chosen] = False
    group_of_pair_N[members] = number
    place_N[members] = np.arange(len(members))
  # A group's turn is a random number of its own.
  turn_N = bits[num_pairs:][group_of_pair_N]
  return np.lexsort((place_N, group_of_pair_N, turn_N)).astype(np.int32)
