"""What a table or figure consists of: settings, each with the config fields that it changes."""

import dataclasses
from typing import Any

Fields = dict[str, Any]  # config field -> value


@dataclasses.dataclass(frozen=True)
class Setting:
  """A row of a table, or a point of a figure.

  Attributes:
    label: as printed in the paper.
    fields: config fields; {} is the whole method.
    oracle: name of the oracle in `experiments.oracle` that provides relations or captions.
    description: for labels that do not explain themselves.
    factors: numbers that multiply config fields, whatever these are in the dataset's config.
    needs: config fields without which the label would be untrue, for variants that change them;
      `--set` takes precedence.
  """

  label: str
  fields: Fields
  oracle: str = ""
  description: str = ""
  factors: Fields = dataclasses.field(default_factory=dict)
  needs: Fields = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A table or figure.

  Attributes:
    name: on the command line.
    title: heading of the report.
    printed_in: table or figure of the paper; "" for additions of ours.
    form: function of `experiments.paper.render` that makes the report.
    settings: in the paper's order.
    paper_table: argument of `paper_numbers.ablation`; "" for other forms.
    measure: module of `experiments.paper.measures`; "" if results.json is enough.
  """

  name: str
  title: str
  printed_in: str
  form: str
  settings: tuple[Setting, ...]
  paper_table: str = ""
  measure: str = ""


def only(*losses: str, **fields: Any) -> Fields:
  """Config fields that keep the contrastive loss and the named ones, and switch off the others.

  Captions of global neighbours are exchanged only beside the global loss. `__` in the name of
  another field stands for a dot.
  """
  off = {
    f"loss.weights.{name}": 0.0 for name in ("local", "global", "consistency") if name not in losses
  }
  if "global" not in losses:
    off["caption_exchange.prob"] = 0.0
  return off | {name.replace("__", "."): value for name, value in fields.items()}


BASELINE = only()
LOCAL = only("local")
LOCAL_AND_GLOBAL = only("local", "global")
LOCAL_IS_ON = {"loss.weights.local": 1.0, "local_association.modality": "both"}  # not in `:plus`
WHOLE = Setting("DGIA", {})
