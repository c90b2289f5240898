"""CLIP checkpoints in and out.

- `load_pretrained` (`load`): weights of OpenAI, of Hugging Face or of the released program become
  the parameters of a model.
- `write_folder` (`hugging_face`): parameters become a folder that transformers loads.
- `read_config`, `read_resize` (`clip_config`): the model a Hugging Face folder describes, and the
  filter its images are resized with.
- `flatten`, `read_params`, `write_tensors` (`params`): between parameters and named tensors, by
  the tables in `tensor_names`.

Behind them: `checkpoint_files` finds and opens a checkpoint, `torch_file` reads torch's format
without torch, `position_embedding` resizes position tables.
"""

from dgia_jax.models.pretrained.checkpoint_files import HUB_FILES
from dgia_jax.models.pretrained.clip_config import PREPROCESSOR_FILE, ClipConfig, read_resize
from dgia_jax.models.pretrained.clip_config import read as read_config
from dgia_jax.models.pretrained.hugging_face import write_folder
from dgia_jax.models.pretrained.load import Pretrained, load_pretrained
from dgia_jax.models.pretrained.params import flatten, read_params, write_tensors

__all__ = [
  "HUB_FILES", "PREPROCESSOR_FILE", "ClipConfig", "Pretrained", "flatten", "load_pretrained",
  "read_config", "read_params", "read_resize", "write_folder", "write_tensors",
]  # fmt: skip
