"""Weakly supervised text-to-person image retrieval in JAX and Flax."""
