"""Exports a trained run as a folder for transformers, or as StableHLO or ONNX programs.

  python -m dgia_jax.convert --run runs/demo --out FOLDER

The folder holds config.json, model.safetensors, preprocessor_config.json, the tokenizer's files and
a model card, README.md:

  model = transformers.AutoModel.from_pretrained(FOLDER)  # CLIPModel or SiglipModel
  processor = transformers.AutoProcessor.from_pretrained(FOLDER)
  inputs = processor(
    text=captions, images=images, padding="max_length", truncation=True, return_tensors="pt"
  )
  model(**inputs, interpolate_pos_encoding=True)  # oblong images need the flag

`--config.pretrained=FOLDER` starts a new run from it.

`--format stablehlo` and `--format onnx` write the towers as programs that run without Flax or
transformers (see `search.standalone`). `--dtype float16` halves the file of the weights.
`--push_to_hub USER/NAME` uploads the folder.
"""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from dgia_jax import cli, files, hub, remote, user_files
from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from dgia_jax.method import scored_weights
from dgia_jax.models import dual_encoder, pretrained
from dgia_jax.models.pretrained import checkpoint_files
from dgia_jax.reporting import model_card
from dgia_jax.search import standalone
from dgia_jax.training import checkpoint, run_weights
from dgia_jax.training import workdir as workdir_lib

CARD = "README.md"
_UNFINISHED = ".converting-"  # how folders begin that hold the files of a conversion until its end
# What a folder of each format holds besides the tokenizer, card and checksums.
FORMATS = {
  "transformers": (
    checkpoint_files.WEIGHTS_FILE,
    workdir_lib.CONFIG,
    pretrained.PREPROCESSOR_FILE,
  ),
  **{form: standalone.file_names(form) for form in standalone.FORMATS},
}


def convert(
  run: pathlib.Path | str,
  out: pathlib.Path | str,
  choice: str = "best",
  weights: str = "",
  *,
  form: str = "transformers",
  dtype: str = "float32",
  notes: pathlib.Path | str = "",
  push_to_hub: str = "",
  private: bool = False,
) -> str:
  """Writes the weights, sizes and tokenizer of a run to a folder, and uploads it on request.

  Args:
    run: the folder of the run, or its address in a bucket; nothing changes there.
    out: the folder to write, or its address; files of an earlier conversion are replaced, others
      never.
    choice: "best" or "last" checkpoint.
    weights: "raw", "ema" for their average, or "" for those that the run's scores are of.
    form: a key of `FORMATS`.
    dtype: of the stored weights, one of `pretrained.DTYPES`; only for "transformers".
    notes: file with Markdown for the model card; "" for none.
    push_to_hub: USER/NAME of the model on the Hugging Face hub to upload to; "" uploads nothing.
    private: only the owner sees that model.

  Returns:
    A summary for the user.

  Raises:
    UserError: `run` is no run, has no complete checkpoint or no average of its weights, `notes`
      cannot be read, or `out` cannot be written, holds files of a run or others that would be
      replaced; or it cannot be uploaded, and is complete.
  """
  if form != "transformers" and dtype != "float32":
    raise UserError(f"--dtype={dtype}: --format={form} holds float32 only; leave --dtype out")
  if push_to_hub:
    hub.check_name(push_to_hub, "--push_to_hub")
  text = user_files.read_text(notes, "--notes") if notes else ""
  run = remote.local_copy(run, "--run")
  with remote.mirrored(out, "--out", claims=False, deletes=True) as folder:
    summary = _convert(run, folder, choice, weights, form, dtype, text)
    if push_to_hub:
      url = hub.push(
        folder, push_to_hub, _all_files(form), private=private, setting="--push_to_hub"
      )
      summary += f"\nuploaded it to {url}"
  return summary


def _convert(
  run: pathlib.Path,
  out: pathlib.Path,
  choice: str,
  weights: str,
  form: str,
  dtype: str,
  notes: str,
) -> str:
  config = workdir_lib.read_config(run, "--run")
  _check_out(out, form)
  loaded = run_weights.load(run, choice, weights, setting="--run")
  step, params = loaded.step, loaded.params
  image_size = tuple(config["dataset"]["image_size"])
  size = dual_encoder.named(config["model"]["name"])
  details = {
    "image_size": image_size,
    "temperature": loaded.temperature,
    "resize": config["dataset"]["resize"],
  }
  try:
    with _written_aside(out) as new:
      # The oldest file reaches a bucket first, and the card says that the others may be replaced.
      card = _card(run, config, loaded, form, notes)
      files.write_text(new / CARD, str(card))
      tokenizer_summary = _write_tokenizer(run, config["tokenizer"], new, size.family.is_siglip)
      vocabulary = [name for name in tokenizer_lib.VOCABULARIES if (new / name).exists()]
      if form == "transformers":
        pretrained.write_folder(new, params, family=size.family, dtype=dtype, **details)
      else:
        details["tokenizer"] = vocabulary[0] if vocabulary else None
        standalone.write_folder(new, form, params, size, **details)
      files.write_checksums(new, [*_weights_files(form), *vocabulary])
      _replace(out, new, form)
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written ({error}); choose another") from error
  lines = [
    f"wrote step {step:,} of {remote.origin(run)} to {remote.origin(out)}",
    tokenizer_summary,
  ]
  if form == "transformers" and image_size[0] != image_size[1]:
    lines.append("its images are oblong: pass interpolate_pos_encoding=True to get_image_features")
  return "\n".join(lines)


@contextlib.contextmanager
def _written_aside(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields an empty folder for the files of a conversion, which keeps `out` as it is if it fails.

  The folder is inside `out`, which is created, and is removed at the end; so are those of
  conversions that were killed.
  """
  is_new = not out.exists()
  out.mkdir(parents=True, exist_ok=True)
  try:
    for unfinished in out.glob(f"{_UNFINISHED}*"):
      shutil.rmtree(unfinished, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=out) as folder:
      yield pathlib.Path(folder)
  except BaseException:
    if is_new:
      with contextlib.suppress(OSError):  # no longer empty
        out.rmdir()
    raise


def _weights_files(form: str) -> list[str]:
  """The files of a format that hold weights."""
  return [name for name in FORMATS[form] if not name.endswith(".json")]


def _all_files(form: str) -> tuple[str, ...]:
  """The files that a folder of a format can hold."""
  return (*FORMATS[form], *tokenizer_lib.EXPORTED_FILES, CARD, files.CHECKSUMS)


def _replace(out: pathlib.Path, new: pathlib.Path, form: str) -> None:
  """Moves the files of a conversion to their folder, and removes what is left of an earlier one."""
  (out / files.CHECKSUMS).unlink(missing_ok=True)  # no longer those of the files
  # The card first: it tells that the other files may be replaced, also if this is interrupted.
  for name in (CARD, *_all_files(form)):
    if (new / name).exists():
      os.replace(new / name, out / name)
    elif name != CARD:
      (out / name).unlink(missing_ok=True)


def _check_out(out: pathlib.Path, form: str) -> None:
  """Raises UserError if files would mix with another format's, or replace those of anything else.

  An earlier conversion is recognised by its card.
  """
  try:
    for other in FORMATS.keys() - {form}:
      if any((out / name).exists() for name in _weights_files(other)):
        raise UserError(f"--out={out} holds a model with --format={other}; choose a new folder")
    resolved = out.resolve()
    if _is_run(resolved):
      raise UserError(f"--out={out} holds a run, whose files would be replaced; choose another")
    for folder in resolved.parents:
      if _is_run(folder):
        part = folder / resolved.relative_to(folder).parts[0]
        if part.exists() and not any((part / name).exists() for name in _weights_files(form)):
          raise UserError(f"--out={out} is a part of the run {folder}; choose a new folder")
    others = [name for name in _all_files(form) if os.path.lexists(out / name)]
    if others and not model_card.is_ours(out / CARD):
      raise UserError(
        f"--out={out} holds {', '.join(others)}, not written by a conversion, which would be"
        " replaced; choose a new folder"
      )
    if folders := [name for name in others if (out / name).is_dir()]:
      raise UserError(f"--out={out}: {folders[0]} is a folder there; choose a new folder")
  except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
    raise UserError(f"--out={out}: cannot be read ({error}); choose another") from error


def _is_run(folder: pathlib.Path) -> bool:
  """Whether a folder is a run's, also if its config.json is damaged."""
  has_both = workdir_lib.is_claimed(folder) and (folder / checkpoint.FOLDER).exists()
  return has_both or workdir_lib.is_run(folder)


def _card(
  run: pathlib.Path,
  config: Mapping[str, Any],
  loaded: run_weights.RunWeights,
  form: str,
  notes: str,
) -> model_card.ModelCard:
  """Creates the model card, with the scores of the run if it has been evaluated."""
  path = run / workdir_lib.RESULTS
  results = user_files.read_json(path, "--run") if path.exists() else None
  return model_card.create(
    config,
    run=run,
    step=loaded.step,
    weights=loaded.kind,
    num_parameters=sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
    feature_width=loaded.params["text"]["projection"].shape[1],
    context_length=loaded.params["text"]["position_embedding"].shape[0],
    results=results,
    identity_labels=workdir_lib.identity_labels(run),
    form=form,
    notes=notes,
  )


def _write_tokenizer(
  run: pathlib.Path, settings: Mapping[str, Any], out: pathlib.Path, is_siglip: bool
) -> str:
  """Writes the tokenizer for transformers if its vocabulary can be found; returns a summary."""
  try:
    if settings["name"]:
      tokenizer = tokenizer_lib.pretrained_tokenizer(
        settings["name"], settings["context_length"], is_siglip
      )
    else:
      tokenizer = tokenizer_lib.load_tokenizer(run / workdir_lib.TOKENIZER)
  except UserError as error:
    return f"without a tokenizer: {error}"
  tokenizer.export(out)
  return "with its tokenizer"


def _run(argv: Sequence[str] | None) -> None:
  parser = cli.ArgumentParser(
    prog=cli.program("convert"), description=(__doc__ or "").split("\n")[0]
  )
  parser.add_argument("--run", required=True, help="folder of the run, its --workdir")
  parser.add_argument(
    "--out", required=True, help="folder to write, new or of an earlier conversion"
  )
  parser.add_argument(
    "--checkpoint",
    choices=("best", "last"),
    default="best",
    help="checkpoint to convert (default: best)",
  )
  parser.add_argument(
    "--weights",
    choices=scored_weights.KINDS,
    default="",
    help="raw weights, or their average (default: those that the run's scores are of)",
  )
  parser.add_argument(
    "--format",
    choices=tuple(FORMATS),
    default="transformers",
    help="transformers (default), or towers that run without a model's code",
  )
  parser.add_argument(
    "--dtype",
    choices=pretrained.DTYPES,
    default="float32",
    help="of the stored weights, for --format transformers (default: float32)",
  )
  parser.add_argument(
    "--notes", default="", metavar="FILE", help="Markdown for the model card, after its facts"
  )
  parser.add_argument(
    "--push_to_hub",
    default="",
    metavar="USER/NAME",
    help="upload the folder to this model on the Hugging Face hub, after `hf auth login`",
  )
  parser.add_argument("--private", action="store_true", help="only you see the uploaded model")
  arguments = parser.parse_args(argv)
  if arguments.private and not arguments.push_to_hub:
    raise UserError("--private is about an upload: give --push_to_hub=USER/NAME as well")
  summary = convert(
    arguments.run,
    arguments.out,
    arguments.checkpoint,
    arguments.weights,
    form=arguments.format,
    dtype=arguments.dtype,
    notes=arguments.notes,
    push_to_hub=arguments.push_to_hub,
    private=arguments.private,
  )
  print(summary)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line and returns its exit code."""
  return cli.run(_run, argv)


if __name__ == "__main__":
  sys.exit(main())
