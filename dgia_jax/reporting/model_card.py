"""The model card of a converted run: its data, scores, limits, and the duties of its users.

The text, model_card.md, is filled in from the run's config and results. Nothing in it is guessed.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dgia_jax import hub
from dgia_jax.method import scored_weights
from dgia_jax.models import dual_encoder
from dgia_jax.models.pretrained import is_shipped
from dgia_jax.reporting.score_labels import DIRECTIONS, SCORES, percents

_TEMPLATE = pathlib.Path(__file__).with_suffix(".md")
_TAG, _SENTENCE = "text-to-person-retrieval", "It was trained with `dgia_jax`"  # in every card
_PIPELINE = """\
In a pipeline, which does not cut captions to {context_length} tokens{flag}:

```python
{imports}
pipeline = transformers.pipeline("zero-shot-image-classification", model=FOLDER)
{patch}pipeline(image, candidate_labels=captions, hypothesis_template="{{}}")
```"""
_PIPELINE_PATCH = """\
model = pipeline.model
model.forward = functools.partial(model.forward, interpolate_pos_encoding=True)
"""
_HUB_METRICS = {  # names of the scores on the hub
  "R1": "recall_at_1",
  "R5": "recall_at_5",
  "R10": "recall_at_10",
  "mAP": "mean_average_precision",
  "mINP": "mean_inverse_negative_penalty",
}
_DRAWN_DATASET = "synth_pedes"  # a program draws its images and composes its captions

_UNLABELLED = "**without identity labels**"
_LABELLED = "**with identity labels** ({use}): an upper bound to compare with, not a method"
_UNLABELLED_LIMIT = (
  "It was trained without knowing which pairs show the same person, so it confuses people in"
  " similar clothes."
)
_LABELLED_LIMIT = "Its scores say nothing about training without identity labels."
_OWN_TOKENIZER = (
  "The tokenizer cleans captions as training did, except for rare HTML entities (`&eacute;`,"
  " `&#233;`) and for text\nthat was decoded with a wrong encoding."
)
_PUBLISHED_TOKENIZER = (
  "The tokenizer is SigLIP's own. As in training, it makes captions lower case and pads them to"
  " their longest length: padding\nchanges the features. Training also resolved HTML entities and"
  " repaired wrongly decoded text. SigLIP 2's tokenizer does so as well; SigLIP's does not."
)


def create(
  config: Mapping[str, Any],
  *,
  run: pathlib.Path,
  step: int,
  num_parameters: int,
  feature_width: int,
  context_length: int,
  weights: str = "raw",
  results: Mapping[str, Any] | None = None,
  identity_labels: str = "",
  form: str = "transformers",
  notes: str = "",
) -> ModelCard:
  """Creates the model card of a checkpoint.

  Args:
    config: of the run.
    run: its folder.
    step: of the checkpoint.
    num_parameters: of both towers.
    feature_width: D.
    context_length: L, longest text in tokens.
    weights: "raw", or "ema" for their average.
    results: content of results.json; None if the run was not evaluated.
    identity_labels: how the training used identity labels; "" if it did not.
    form: format of the model, a key of `convert.FORMATS`.
    notes: Markdown by the author of the run, placed after the facts.
  """
  dataset, start = config["dataset"]["name"], config["pretrained"]
  is_local = _is_local(start, run)
  source = _source(start, is_local)
  family = dual_encoder.named(config["model"]["name"]).family
  published = family.is_siglip and config["tokenizer"]["name"]
  title = f"{config['model']['name']} on {dataset}"
  results = results or {}
  name, scores = _scores(results, step, weights)
  height, width = config["dataset"]["image_size"]
  usage = _TEMPLATE.with_name(f"{_TEMPLATE.stem}_{form}.md").read_text(encoding="utf-8")
  usage = usage.rstrip().format(
    tokenizer=_PUBLISHED_TOKENIZER if published else _OWN_TOKENIZER,
    pipeline=_pipeline(context_length, is_square=height == width),
    resize=config["dataset"]["resize"].upper(),
    height=height,
    width=width,
    context_length=context_length,
    feature_width=feature_width,
  )
  # Our licence covers only weights made without the weights or data of others.
  is_ours = dataset == _DRAWN_DATASET and (not start or is_shipped(start))
  text = _TEMPLATE.read_text(encoding="utf-8").format(
    title=title,
    dataset=dataset,
    supervision=_LABELLED.format(use=identity_labels) if identity_labels else _UNLABELLED,
    options=_options_text(config["dataset"].get("options") or {}),
    notes=f"\n{notes.strip()}\n" if notes else "",
    family=family.name,
    usage=usage,
    licence="Apache-2.0" if is_ours else _foreign_licence(dataset, source),
    model=config["model"]["name"],
    num_parameters=num_parameters,
    height=height,
    width=width,
    context_length=context_length,
    feature_width=feature_width,
    start=source or "random weights",
    num_epochs=config["num_epochs"],
    batch_size=config["batch_size"],
    seed=config["seed"],
    step=step,
    scores=_scores_text(name, scores, results),
    limits="\n".join(f"- {limit}" for limit in _limits(dataset, source, scores, results)),
    last_limit=_LABELLED_LIMIT if identity_labels else _UNLABELLED_LIMIT,
  )
  data = ModelCardData(
    language="en",
    license="apache-2.0" if is_ours else "other",
    license_name=None if is_ours else "terms-of-data-and-initial-weights",
    library_name="transformers" if form == "transformers" else form,
    # What transformers' pipeline of that name reads without a flag.
    pipeline_tag=(
      "zero-shot-image-classification"
      if form == "transformers" and height == width
      else "feature-extraction"
    ),
    tags=["siglip" if family.is_siglip else "clip", _TAG],
    base_model=start if start and not is_local else None,
    datasets=None if dataset == "custom" else dataset,
    model_name=title,
    eval_results=_eval_results(scores, results) or None,
  )
  return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def is_ours(path: pathlib.Path) -> bool:
  """Whether a file is a card that `create` has made."""
  try:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
  except (OSError, ValueError):  # ValueError: no UTF-8
    return False
  return text.startswith("---") and f"\n- {_TAG}\n" in text and _SENTENCE in text


def _options_text(options: Mapping[str, Any]) -> str:
  """The settings of a dataset's builder, in brackets; "" if there are none."""
  listed = ", ".join(f"{name}={value}" for name, value in sorted(options.items()))
  return f" (`{listed}`)" if listed else ""


def _pipeline(context_length: int, *, is_square: bool) -> str:
  """How transformers' pipeline is used. It passes no flags on to the model."""
  flag = "" if is_square else ", and whose model needs a flag for oblong images"
  return _PIPELINE.format(
    context_length=context_length,
    flag=flag,
    imports="import transformers\n" if is_square else "import functools\n\nimport transformers\n",
    patch="" if is_square else _PIPELINE_PATCH,
  )


def _foreign_licence(dataset: str, source: str) -> str:
  """Whose terms hold for weights that depend on data or weights of others."""
  data = "the training data" if dataset == "custom" else f"`{dataset}`"
  sources = ([] if dataset == _DRAWN_DATASET else [data]) + ([source] if source else [])
  return f"the terms of {' and of '.join(sources)}; read them before you pass the weights on"


def _is_local(pretrained: str, run: pathlib.Path) -> bool:
  """Whether weights came from this machine; models on the hub are `owner/name`.

  The path of a run can have that form, too. Seen from another folder than the one where training
  started, it is found from the folders around the run that started from it.
  """
  if is_shipped(pretrained) or not hub.is_name(pretrained):
    return True
  around = run.absolute().parents
  return os.path.exists(pretrained) or any((folder / pretrained).exists() for folder in around)


def _source(pretrained: str, is_local: bool) -> str:
  """The initial weights, "" for random ones.

  Of a local path only the last part, because cards are passed on.
  """
  return f"`{pathlib.Path(pretrained).name if is_local else pretrained}`" if pretrained else ""


def _scores(results: Mapping[str, Any], step: int, weights: str) -> tuple[str, Mapping[str, Any]]:
  """ "best" or "last", whichever was measured at this step, and its scores; else empty ones.

  Earlier releases scored the weights as trained and did not say so.
  """
  raw, average = scored_weights.KINDS
  for scored, kind in ((results, raw), (results.get(average) or {}, average)):
    for name in ("best", "last"):
      scores = scored.get(name) or {}
      if scores.get("step") == step and scores.get(scored_weights.RECORDED, kind) == weights:
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
  dataset: str, source: str, scores: Mapping[str, Any], results: Mapping[str, Any] | None
) -> Sequence[str]:
  """What this model cannot do, or what is not known about it."""
  measured = f"on `{results['dataset']}` only" if scores and results else "on no dataset"
  limits = [
    f"It was measured {measured}. Other cameras, places, seasons, clothes, languages and styles of"
    " description usually lower the scores. Measure before you rely on it."
  ]
  if dataset == _DRAWN_DATASET:
    text = "A program drew the figures it was trained on and composed their captions."
    if not source:  # initial weights may have learned from either
      text += " It has learned neither from photographs nor from descriptions by people."
    limits.append(text)
  else:
    limits.append(
      f"Its notions of gender, age and looks come from the captions of `{dataset}`, with their"
      " errors and prejudices."
    )
  if source:
    limits.append(f"It also inherits the errors and prejudices of {source}.")
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
