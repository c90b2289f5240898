"""Parameters to the tensors of a checkpoint and back, by the tables of `tensor_names`.

Both directions are strict: every tensor is used, every parameter is filled, and what does not fit
is listed.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgia_jax.models import dual_encoder
from dgia_jax.models.families import Family
from dgia_jax.models.pretrained.tensor_names import Rule
from dgia_jax.models.transformer import BLOCKS, LAST_BLOCK

# In the path of a parameter: one of all blocks but the last, whose first axis is their layers, and
# the one of the last block, whose path is otherwise the same.
STACKED, LAST = f"/{BLOCKS}/", f"/{LAST_BLOCK}/"


def read_params(
  tensors: Mapping[str, np.ndarray], template: Mapping[str, Any], table: Mapping[str, Rule]
) -> tuple[dict[str, Any], list[str]]:
  """Turns checkpoint tensors into parameters.

  Args:
    tensors: name -> array; all must be used.
    template: path -> array or `jax.ShapeDtypeStruct`; all must be filled.
    table: `OPENAI`, `HUGGING_FACE` or `SIGLIP` of `tensor_names`.

  Returns:
    Nested dict of float32 arrays, and one short text for each tensor that does not fit.
  """
  problems, used, flat = [], set(), {}
  for path, parameter in template.items():
    layers = []
    for rule, shape in _rules(table, path, template):
      parts = []
      for name in rule.names:
        used.add(name)
        first, *rest = rule.checkpoint_shape(shape)
        needed = (first // len(rule.names), *rest)
        part, problem = _checked(name, tensors.get(name), needed)
        if problem:
          problems.append(problem)
        else:
          parts.append(part)
      if len(parts) == len(rule.names):
        layers.append(rule.read(np.concatenate(parts) if len(parts) > 1 else parts[0], shape))
    if not problems:
      flat[path] = np.ascontiguousarray(layers, np.float32).reshape(parameter.shape)
  problems += [f"{name} has no place in the model" for name in sorted(tensors.keys() - used)]
  return _nest(flat), problems


def _checked(
  name: str, tensor: np.ndarray | None, shape: tuple[int, ...]
) -> tuple[np.ndarray, str]:
  """The tensor in float32, and what is wrong with it: "" if nothing is."""
  if tensor is None:
    return np.empty(0), f"{name} {shape} is missing"
  if tensor.shape != shape:
    return tensor, f"{name} is {tensor.shape}, the model needs {shape}"
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    return tensor, f"{name} has dtype {tensor.dtype.name}, not a floating-point one"
  with np.errstate(over="ignore"):  # float64 that float32 cannot hold becomes infinity
    values = np.asarray(tensor, np.float32)
  if not np.isfinite(values).all():
    return tensor, f"{name} holds NaN or infinity"
  return values, ""


def write_tensors(params: Mapping[str, Any], table: Mapping[str, Rule]) -> dict[str, np.ndarray]:
  """Turns parameters into contiguous float32 tensors, the exact inverse of `read_params`."""
  tensors = {}
  flat = flatten(params)
  for path, parameter in flat.items():
    parameter = np.asarray(parameter, np.float32)
    layers = parameter if STACKED in path else [parameter]
    for (rule, _), value in zip(_rules(table, path, flat), layers, strict=True):
      tensors |= {name: np.ascontiguousarray(part) for name, part in rule.write(value).items()}
  return tensors


def size_of(flat: Mapping[str, Any], family: Family) -> dual_encoder.Size:
  """The size of the model that has these parameters, as `flatten` gives them."""

  def tower(name: str) -> dual_encoder.TowerSize:
    num_stacked, width, mlp_width = flat[f"{name}/blocks/mlp/up/kernel"].shape
    heads = flat[f"{name}/blocks/attention/qkv/kernel"].shape[3]
    mlp_width = 0 if mlp_width == 4 * width else mlp_width
    return dual_encoder.TowerSize(width, num_stacked + 1, heads, mlp_width)

  return dual_encoder.Size(
    image=tower("image"),
    text=tower("text"),
    feature_width=flat["text/projection"].shape[1],
    patch_size=flat["image/patch_embedding"].shape[0],
    family=family,
  )


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
  """Turns a nested dict into {"image/blocks/mlp/up/kernel": leaf, ...}."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  nested: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, last = path.split("/")
    inner = nested
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[last] = leaf
  return nested


def _rules(
  table: Mapping[str, Rule], path: str, flat: Mapping[str, Any]
) -> list[tuple[Rule, tuple[int, ...]]]:
  """The rule and shape of each layer of a stacked parameter, or the one pair of any other."""
  shape, twin = flat[path].shape, path.replace(LAST, STACKED)
  if path != twin:
    return [(table[twin].for_layer(flat[twin].shape[0]), shape)]
  if STACKED in path:
    return [(table[path].for_layer(layer), shape[1:]) for layer in range(shape[0])]
  return [(table[path], shape)]
