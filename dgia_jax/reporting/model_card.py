"""The model card of a converted run: its data, scores, limits, and the duties of its users.

The text, model_card.md, is filled in from the run's config and results. Nothing in it is guessed.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dgia_jax.models import dual_encoder
from dgia_jax.reporting.score_labels import DIRECTIONS, SCORES, percents

_TEMPLATE = pathlib.Path(__file__).with_suffix(".md")
_HUB_METRICS = {  # names of the scores on the hub
  "R1": "recall_at_1",
  "R5": "recall_at_5",
  "R10": "recall_at_10",
  "mAP": "mean_average_precision",
  "mINP": "mean_inverse_negative_penalty",
}
_DRAWN_DATASET = "synth_pedes"  # a program draws its images and composes its captions

_OWN_TOKENIZER = (
  "The tokenizer cleans captions as training did, except for rare HTML entities (`&eacute;`,"
  " `&#233;`) and for text\nthat was decoded with a wrong encoding."
)
_PUBLISHED_TOKENIZER = (
  "The tokenizer is SigLIP's own. Training gave it captions in lower case, padded to their longest"
  " length: padding changes\nthe features."
)


def create(
  config: Mapping[str, Any],
  *,
  step: int,
  num_parameters: int,
  feature_width: int,
  context_length: int,
  weights: str = "raw",
  results: Mapping[str, Any] | None = None,
) -> ModelCard:
  """Creates the model card of a checkpoint.

  Args:
    config: of the run.
    step: of the checkpoint.
    num_parameters: of both towers.
    feature_width: D.
    context_length: L, longest text in tokens.
    weights: "raw", or "ema" for their moving average.
    results: content of results.json; None if the run was not evaluated.
  """
  dataset, start = config["dataset"]["name"], config["pretrained"]
  family = dual_encoder.named(config["model"]["name"]).family
  published = family.is_siglip and config["tokenizer"]["name"]
  title = f"{config['model']['name']} on {dataset}"
  measured = results if weights == "raw" else (results or {}).get(weights)
  name, scores = _scores(measured, step)
  height, width = config["dataset"]["image_size"]
  text = _TEMPLATE.read_text(encoding="utf-8").format(
    title=title,
    dataset=dataset,
    family=family.name,
    tokenizer=_PUBLISHED_TOKENIZER if published else _OWN_TOKENIZER,
    model=config["model"]["name"],
    num_parameters=num_parameters,
    height=height,
    width=width,
    context_length=context_length,
    feature_width=feature_width,
    start=_start(start),
    num_epochs=config["num_epochs"],
    batch_size=config["batch_size"],
    seed=config["seed"],
    step=step,
    scores=_scores_text(name, scores, results),
    limits="\n".join(f"- {limit}" for limit in _limits(dataset, start, scores, results)),
  )
  data = ModelCardData(
    language="en",
    # Our licence covers only weights made without the weights or data of others.
    license="apache-2.0" if not start and dataset == _DRAWN_DATASET else None,
    library_name="transformers",
    pipeline_tag="zero-shot-image-classification",
    tags=["clip", "text-to-person-retrieval"],
    base_model=start if start and not _is_local(start) else None,
    datasets=None if dataset == "custom" else dataset,
    model_name=title,
    eval_results=_eval_results(scores, results) or None,
  )
  return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _is_local(pretrained: str) -> bool:
  """Whether weights came from a file or folder; names on the hub are `owner/name`."""
  path = pathlib.Path(pretrained)
  return path.is_absolute() or path.exists() or len(path.parts) > 2


def _start(pretrained: str) -> str:
  """The initial weights; of a local path only the last part, because cards are passed on."""
  if not pretrained:
    return "random weights"
  return f"`{pathlib.Path(pretrained).name if _is_local(pretrained) else pretrained}`"


def _scores(results: Mapping[str, Any] | None, step: int) -> tuple[str, Mapping[str, Any]]:
  """ "best" or "last", whichever was measured at this step, and its scores; else empty ones."""
  for name in ("best", "last"):
    scores = (results or {}).get(name) or {}
    if scores.get("step") == step:
      return name, scores
  return "", {}


def _scores_text(name: str, scores: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
  """A table of the scores, introduced by the evaluation protocol."""
  if not scores or results is None:
    return "This checkpoint was not evaluated. Measure it before you use it."
  chosen = f"chosen on {scores['selected_on']}" if "selected_on" in scores else "the last epoch"
  lines = [
    f"On the {results['split']} split of `{results['dataset']}` ({results['queries']:,} captions, "
    f"{results['gallery']:,} images), epoch {scores['epoch']}, {chosen}, in percent:",
    "",
    "| |" + "|".join(f" {column} " for column in SCORES.values()) + "|",
    "|---" * (1 + len(SCORES)) + "|",
  ]
  for direction, title in DIRECTIONS.items():
    cells = "|".join(f" {score} " for score in percents(scores[direction]))
    lines.append(f"| {title} |{cells}|")
  return "\n".join(lines)


def _limits(
  dataset: str, start: str, scores: Mapping[str, Any], results: Mapping[str, Any] | None
) -> Sequence[str]:
  """What this model cannot do, or what is not known about it."""
  measured = f"on `{results['dataset']}` only" if scores and results else "on no dataset"
  limits = [
    f"It was measured {measured}. Other cameras, places, seasons, clothes, languages and styles of"
    " description usually lower the scores. Measure before you rely on it."
  ]
  if dataset == _DRAWN_DATASET:
    limits.append(
      "A program drew the figures it was trained on and composed their captions. It has learned"
      " neither from photographs nor from descriptions by people."
    )
  else:
    limits.append(
      f"Its notions of gender, age and looks come from the captions of `{dataset}`, with their"
      " errors and prejudices."
    )
  if start:
    limits.append(f"It also inherits the errors and prejudices of {_start(start)}.")
  return limits


def _eval_results(scores: Mapping[str, Any], results: Mapping[str, Any] | None) -> list[EvalResult]:
  """The scores as the hub lists them."""
  if not scores or results is None:
    return []
  return [
    EvalResult(
      task_type=title.replace(" ", "-") + "-retrieval",
      task_name=f"{title} retrieval",
      dataset_type=results["dataset"],
      dataset_name=results["dataset"],
      dataset_split=results["split"],
      metric_type=_HUB_METRICS[key],
      metric_name=column,
      metric_value=round(scores[direction][key], 2),
    )
    for direction, title in DIRECTIONS.items()
    for key, column in SCORES.items()
  ]
