"""Weakly supervised text-to-person image retrieval in JAX and Flax.

    from dgia_jax import Retriever

    retriever = Retriever.from_pretrained("runs/demo")
    gallery = retriever.embed_images(paths)
    scores, rows = retriever.rank(retriever.embed_texts("a woman in a red coat"), gallery, top=10)

Array names end in their shape, `features_BxD`. Every letter has one meaning in the whole package;
a lower-case letter is the part of that dimension that one device or process holds.

    B  pairs of the global batch             Q  queries
    D  feature width                         G  gallery items
    N  training pairs, captions of a split   R  rows scored at once (a block)
    M  images of a split                     S  shards
    L  tokens of a caption                   P  parts of gradient accumulation
    H  height in pixels                      T  tokens of a transformer sequence
    W  width in pixels                       U  width of a transformer
    V  views                                 A  attention heads
    K  neighbours kept                       Y  layers
    C  candidates to choose from             E  rows of the extended batch, B(1+K)
    Z  patches of an image that are read
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from dgia_jax.search.retriever import Retriever

__version__ = "0.2.0"  # setup.py reads it from here
__all__ = ["Retriever", "__version__"]


def __getattr__(name: str) -> Any:
  # Imported on first use: the method itself needs neither image decoders nor tokenizers.
  if name == "Retriever":
    from dgia_jax.search.retriever import Retriever

    return Retriever
  raise AttributeError(f"module 'dgia_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
