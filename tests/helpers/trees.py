"""Trees of parameters by name."""

import jax

from dgia_jax.sharding import path_name


def by_name(tree):
  """{path: leaf} of a tree."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
