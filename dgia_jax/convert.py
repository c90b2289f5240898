"""A trained run as a Hugging Face CLIP folder, for use with transformers:

  python -m dgia_jax.convert --run runs/demo --out FOLDER

The folder holds config.json, model.safetensors, preprocessor_config.json, the tokenizer's files and
a model card, README.md:

  model = transformers.CLIPModel.from_pretrained(FOLDER)
  images = transformers.CLIPImageProcessor.from_pretrained(FOLDER)(pictures, return_tensors="pt")
  model.get_image_features(**images, interpolate_pos_encoding=True)  # the flag: for oblong images
  words = transformers.AutoTokenizer.from_pretrained(FOLDER)
  model.get_text_features(**words(captions, padding=True, truncation=True, return_tensors="pt"))

The way back is `--config.pretrained=FOLDER`.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

import jax
import tokenizers

from dgia_jax.data import tokenizer as tokenizer_lib
from dgia_jax.errors import UserError
from dgia_jax.models.pretrained import hugging_face
from dgia_jax.reporting import model_card
from dgia_jax.training import checkpoint
from dgia_jax.training import workdir as workdir_lib

CARD = "README.md"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def convert(run, out, choice="best") -> str:
  """Writes a run's weights, sizes and tokenizer to a folder.

  Args:
    run: the run's folder; nothing is written there.
    out: the new folder; its files are replaced when it holds some.
    choice: "best" or "last" checkpoint.

  Returns:
    What was done, for the user.

  Raises:
    UserError: the folder is no run, has no complete checkpoint, or `out` cannot be written.
  """
  run, out = pathlib.Path(run), pathlib.Path(out)
  config = workdir_lib.read_config(run)
  step, params = checkpoint.restore_params(run, choice)
  image_size = tuple(config["dataset"]["image_size"])
  try:
    hugging_face.write_folder(
      out, params, image_size=image_size, temperature=config["loss"]["temperature"]
    )
    said = _write_tokenizer(run, config["tokenizer"], out)
    (out / CARD).write_text(_card(run, config, step, params), encoding="utf-8")
  except OSError as error:
    raise UserError(f"--out={out}: cannot be written ({error}); choose another") from error
  lines = [f"wrote step {step:,} of {run} to {out}", said]
  if image_size[0] != image_size[1]:
    lines.append("its images are oblong: pass interpolate_pos_encoding=True to get_image_features")
  return "\n".join(lines)


def _card(run: pathlib.Path, config: dict, step: int, params: dict) -> str:
  """The model card, with the run's scores when it has been evaluated."""
  path = run / workdir_lib.RESULTS
  results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
  return model_card.make_card(
    f"{config['model']['name']} on {config['dataset']['name']}",
    config,
    step,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    feature_width=params["image"]["projection"].shape[1],
    context_length=params["text"]["position_embedding"].shape[0],
    results=results,
  )


def _write_tokenizer(run: pathlib.Path, settings: dict, out: pathlib.Path) -> str:
  """Writes the run's tokenizer as transformers reads it, when its vocabulary can be found."""
  try:
    if settings["name"]:
      words = tokenizer_lib.clip_tokenizer(settings["name"], settings["context_length"])
    else:
      words = tokenizer_lib.load_tokenizer(run / workdir_lib.TOKENIZER)
  except UserError as error:
    for name in _TOKENIZER_FILES:  # of an earlier conversion to the same folder
      (out / name).unlink(missing_ok=True)
    return f"without a tokenizer: {error}"
  words.save(out)
  path, config_path = (out / name for name in _TOKENIZER_FILES)
  backend = tokenizers.Tokenizer.from_file(str(path))
  # Our encoder lower-cases before it asks the backend; transformers knows the backend alone.
  backend.normalizer = tokenizers.normalizers.Lowercase()
  backend.save(str(path))
  content = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "model_max_length": words.context_length,
    "pad_token": backend.id_to_token(words.pad_id),
    "model_input_names": ["input_ids"],  # causal attention hides the padding by itself
  }
  config_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
  return "with its tokenizer"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line and returns its exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m dgia_jax.convert", description=__doc__.split("\n")[0]
  )
  parser.add_argument("--run", required=True, help="folder of a run, the --workdir it was made in")
  parser.add_argument("--out", required=True, help="folder to write")
  parser.add_argument(
    "--checkpoint", choices=("best", "last"), default="best", help="which one (default: best)"
  )
  arguments = parser.parse_args(argv)
  try:
    print(convert(arguments.run, arguments.out, arguments.checkpoint))
  except UserError as error:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
