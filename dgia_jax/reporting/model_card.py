"""The model card of a converted run: what it is, how good, what for, and what its user owes people.

The text, model_card.md, is filled from the run's config and results; nothing in it is guessed.
"""

import pathlib

_SCORES = (("R1", "R@1"), ("R5", "R@5"), ("R10", "R@10"), ("mAP", "mAP"), ("mINP", "mINP"))
_DIRECTIONS = (("t2i", "text to image"), ("i2t", "image to text"))

_TEMPLATE = pathlib.Path(__file__).with_suffix(".md")


def make_card(title, config, step, parameters, feature_width, context_length, results=None):
  """The text of a model card.

  Args:
    title: of the card.
    config: the run's config as a plain dict.
    step: of the checkpoint.
    parameters: number of parameters.
    feature_width: D.
    context_length: L, in tokens.
    results: what results.json holds, or None when the run was not evaluated.

  Returns:
    Markdown with the header that the Hugging Face hub reads.
  """
  height, width = config["dataset"]["image_size"]
  return _TEMPLATE.read_text(encoding="utf-8").format(
    title=title,
    dataset=config["dataset"]["name"],
    model=config["model"]["name"],
    parameters=parameters,
    height=height,
    width=width,
    context_length=context_length,
    feature_width=feature_width,
    pretrained=_start(config["pretrained"]),
    epochs=config["num_epochs"],
    batch=config["batch_size"],
    seed=config["seed"],
    step=step,
    results=_results(results, step),
  )


def _start(pretrained):
  """Where weights started from; of a local file or folder only its name, as cards are passed on."""
  if not pretrained:
    return "random weights"
  path = pathlib.Path(pretrained)
  # The hub's names are `owner/name`.
  local = path.is_absolute() or path.exists() or len(path.parts) > 2
  return f"`{path.name if local else pretrained}`"


def _results(results, step):
  """The scores of the checkpoint as a table, with the protocol that chose it."""
  found = [
    (name, results[name])
    for name in ("best", "last")
    if results and results.get(name, {}).get("step") == step
  ]
  if not found:
    return "This checkpoint was not evaluated. Measure it before you use it."
  name, scores = found[0]
  chosen = f"chosen on {scores['selected_on']}" if "selected_on" in scores else "the last epoch"
  lines = [
    f"On the {results['split']} split of `{results['dataset']}` ({results['queries']:,} captions, "
    f"{results['gallery']:,} images), epoch {scores['epoch']}, {chosen}, percent:",
    "",
    "| |" + "|".join(f" {said} " for _, said in _SCORES) + "|",
    "|---" * (1 + len(_SCORES)) + "|",
  ]
  for direction, said in _DIRECTIONS:
    cells = "|".join(f" {scores[direction][key]:.2f} " for key, _ in _SCORES)
    lines.append(f"| {said} |{cells}|")
  return "\n".join(lines)
