"""CLIP and SigLIP checkpoints in and out.

- `load_pretrained` (`load`): weights of OpenAI, of Hugging Face, of open_clip or of the released
  program become the parameters of a model.
- `write_folder` (`hugging_face`): parameters become a folder that transformers loads.
- `read_config` (`config_json`, `open_clip_config`): the model that a folder describes, a
  `CheckpointConfig` (`checkpoint_config`).
- `read_resize` (`preprocessor_config`, `open_clip_config`): the filter that its images are
  resized with.
- `local_copy`, `is_shipped` (`shipped`): the models that the package carries, by name.
- `flatten`, `read_params`, `write_tensors` (`params`): between parameters and named tensors, by
  the tables in `tensor_names`.

Behind them: `checkpoint_files` finds and opens a checkpoint, `torch_file` reads torch's format
without torch, `position_fit` finds the grid of a position table, `position_embedding` resizes it.
"""

from dgia_jax.models.pretrained.checkpoint_config import CheckpointConfig
from dgia_jax.models.pretrained.checkpoint_files import (
  HUB_FILES,
  PREPROCESSING_FILES,
  read_config,
  read_resize,
)
from dgia_jax.models.pretrained.hugging_face import DTYPES, write_folder
from dgia_jax.models.pretrained.load import Pretrained, load_pretrained
from dgia_jax.models.pretrained.open_clip_config import FILE as OPEN_CLIP_CONFIG
from dgia_jax.models.pretrained.params import flatten, read_params, write_tensors
from dgia_jax.models.pretrained.preprocessor_config import FILE as PREPROCESSOR_FILE
from dgia_jax.models.pretrained.shipped import is_shipped, local_copy

__all__ = [
  "DTYPES", "HUB_FILES", "OPEN_CLIP_CONFIG", "PREPROCESSING_FILES", "PREPROCESSOR_FILE",
  "CheckpointConfig", "Pretrained", "flatten", "is_shipped", "load_pretrained", "local_copy",
  "read_config", "read_params", "read_resize", "write_folder", "write_tensors",
]  # fmt: skip
