"""Packaging: `pip install -e .` for the core, extras for tests and accelerators."""

from setuptools import find_packages, setup

setup(
  name="dgia_jax",
  version="0.1.0",
  description="Weakly supervised text-to-person image retrieval in JAX and Flax",
  packages=find_packages(include=["dgia_jax", "dgia_jax.*"]),
  package_data={"dgia_jax": ["*.md"]},
  python_requires=">=3.11",
  install_requires=[
    "absl-py>=2.1",
    "array_record>=0.5",
    "clu>=0.0.12",
    "flax>=0.12.6,<0.14",
    "ftfy>=6.1",
    "grain>=0.2.10,<0.4",
    "huggingface_hub>=0.30",
    "jax>=0.10,<0.13",
    "jaxtyping>=0.3",
    "matplotlib>=3.8",
    "ml_collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.5,<0.4",
    "orbax-checkpoint>=0.11.20,<0.14",
    "pillow>=10",
    "psutil>=5.9",
    "rich>=13",
    "safetensors>=0.4.3",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.9,<5",
    "tokenizers>=0.21",
    "tqdm>=4.66",
    "transformers>=4.51,<6",
  ],
  extras_require={
    "test": ["beartype>=0.20", "pytest>=8", "pytest-timeout>=2.3", "ruff>=0.9"],
    "gpu": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "serve": ["gradio>=5,<7"],  # the web page of `dgia_jax.search serve`
    "experiments": ["scikit-learn>=1.5"],  # t-SNE of the paper's supplement
    "torch": ["torch>=2.6"],  # for live parity tests with PyTorch models
  },
)
