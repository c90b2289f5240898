"""Weakly supervised text-to-person image retrieval in JAX and Flax."""


def __getattr__(name):
  # Imported on use: the core must be importable without what reads images and words.
  if name == "Retriever":
    from dgia_jax.search.retriever import Retriever

    return Retriever
  raise AttributeError(f"module 'dgia_jax' has no attribute {name!r}")
