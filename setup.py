"""Packaging: `pip install -e .` for the core, extras for accelerators and tools.

The top level keeps `configs/`; the wheel carries it as `dgia_jax.configs`, so that configs are
found by name wherever the package is installed.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "dgia_jax" / "__init__.py").read_text())[1]

setup(
  name="dgia_jax",
  version=VERSION,
  description="Weakly supervised text-to-person image retrieval in JAX and Flax",
  long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  author="dgia_jax developers",
  license="Apache-2.0",
  license_files=["LICENSE"],
  keywords=["JAX", "Flax", "person search", "text-to-image retrieval", "weak supervision", "CLIP"],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
  packages=[*find_packages(include=["dgia_jax", "dgia_jax.*"]), "dgia_jax.configs"],
  package_dir={"dgia_jax.configs": "configs"},
  package_data={"dgia_jax": ["*.md", "*/*.md", "py.typed", "models/shipped/*/*", "*/*.json"]},
  entry_points={"console_scripts": ["dgia = dgia_jax.__main__:main"]},
  python_requires=">=3.11",
  install_requires=[
    "absl-py>=2.1",
    "array_record>=0.5",
    "clu>=0.0.12",
    "etils[epath]>=1.12",
    "flax>=0.12.6,<0.14",
    "ftfy>=6.1",
    "grain>=0.2.10,<0.4",
    "huggingface_hub>=0.30",
    "jax>=0.10,<0.13",
    "jaxtyping>=0.3",
    "ml_collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.5,<0.4",
    "orbax-checkpoint>=0.11.20,<0.14",
    "pillow>=10",
    "psutil>=5.9",
    "rich>=13",
    "safetensors>=0.4.3",
    "tensorboardX>=2.6",
    "tensorstore>=0.1.71",
    "tensorflow-datasets>=4.9.9,<5",
    "tokenizers>=0.21",
    "tqdm>=4.66",
    "transformers>=4.51,<6",
  ],
  extras_require={
    "test": [
      "beartype>=0.20",
      "flatbuffers>=24",
      "gcsfs>=2025.5",
      "matplotlib>=3.8",
      "pytest>=8",
      "pytest-timeout>=2.3",
      "pytest-xdist>=3.5",
      "ruff>=0.9",
      "setuptools>=70.1",
    ],
    "gpu": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "gcs": ["gcsfs>=2025.5", "google-cloud-storage>=2.18"],  # folders in Google Cloud buckets
    "serve": ["gradio>=6,<7"],  # the web page of `dgia search serve`
    "parquet": ["pyarrow>=15"],  # `dgia search export --format parquet`
    "faiss": ["faiss-cpu>=1.8"],  # `dgia search export --format faiss`
    "wandb": ["wandb>=0.18"],  # config.wandb.project
    "tensorboard": ["tensorboard>=2.16"],  # to look at a run's events
    "stablehlo": ["flatbuffers>=24"],  # `dgia convert --format stablehlo`
    "onnx": ["jax2onnx>=0.17"],  # `dgia convert --format onnx`
    "experiments": ["matplotlib>=3.8", "scikit-learn>=1.5"],  # plots, and the supplement's t-SNE
    "notebook": ["ipykernel>=6.29", "matplotlib>=3.8", "nbclient>=0.10"],
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
    "siglip": ["protobuf>=4", "sentencepiece>=0.2"],  # the tokenizer of SigLIP (not of SigLIP 2)
    "torch": ["torch>=2.6"],  # for live parity tests with PyTorch models
  },
)
