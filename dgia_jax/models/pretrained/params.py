"""Parameters to the tensors of a checkpoint and back, by the tables in `names`.

Strict both ways: every tensor is used, every parameter filled, and what does not fit is listed.
"""

import jax
import numpy as np

from dgia_jax.models.pretrained.tensor_names import Rule


def read_params(tensors: dict, template: dict, table: dict) -> tuple[dict, list[str]]:
  """Checkpoint tensors to parameters.

  Args:
    tensors: name -> array, all of which must be used.
    template: path -> array or `jax.ShapeDtypeStruct`, all of which must be filled.
    table: `names.OPENAI` or `names.HUGGING_FACE`.

  Returns:
    Nested dict of float32 arrays, and a list of what is wrong (empty: all is well).
  """
  problems, used, flat = [], set(), {}
  for path, parameter in template.items():
    layers = []
    for rule, shape in _rules(table[path], path, parameter.shape):
      parts = []
      for name in rule.names:
        used.add(name)
        first, *rest = rule.checkpoint_shape(shape)
        needed = (first // len(rule.names), *rest)
        if name not in tensors:
          problems.append(f"{name} {needed} is missing")
        elif tensors[name].shape != needed:
          problems.append(f"{name} is {tensors[name].shape}, the model needs {needed}")
        else:
          parts.append(np.asarray(tensors[name], np.float32))
      if len(parts) == len(rule.names):
        layers.append(rule.read(np.concatenate(parts) if len(parts) > 1 else parts[0], shape))
    if not problems:
      flat[path] = np.stack(layers) if _stacked(path) else np.ascontiguousarray(layers[0])
  problems += [f"{name} has no place in the model" for name in sorted(tensors.keys() - used)]
  return _nest(flat), problems


def write_tensors(params: dict, table: dict) -> dict[str, np.ndarray]:
  """Parameters to checkpoint tensors, the exact inverse of `read_params`.

  Args:
    params: nested dict of arrays.
    table: `names.OPENAI` or `names.HUGGING_FACE`.

  Returns:
    name -> contiguous float32 array.
  """
  tensors = {}
  for path, parameter in flatten(params).items():
    parameter = np.asarray(parameter, np.float32)
    layers = parameter if _stacked(path) else [parameter]
    for (rule, _), value in zip(_rules(table[path], path, parameter.shape), layers, strict=True):
      tensors |= {name: np.ascontiguousarray(part) for name, part in rule.write(value).items()}
  return tensors


def flatten(params: dict) -> dict:
  """Nested dict to {"image/blocks/mlp/up/kernel": leaf, ...}."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def _nest(flat: dict) -> dict:
  nested = {}
  for path, leaf in flat.items():
    *parents, last = path.split("/")
    inner = nested
    for parent in parents:
      inner = inner.setdefault(parent, {})
    inner[last] = leaf
  return nested


def _stacked(path: str) -> bool:
  return "/blocks/" in path


def _rules(rule: Rule, path: str, shape: tuple[int, ...]) -> list[tuple[Rule, tuple]]:
  """(rule, shape) of each layer of a stacked parameter, or the one of any other."""
  if not _stacked(path):
    return [(rule, shape)]
  return [(rule.for_layer(layer), shape[1:]) for layer in range(shape[0])]
