"""Declares every table and figure: its settings and the config fields that each setting changes.

A setting is a label with the fields that differ from the dataset's config; `{}` is the whole
method. `experiments.run` trains and reports the declared settings. Settings with the same resolved
config are trained once, even if they appear in several tables.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Fields = dict[str, Any]  # config field -> value

# Fields of every run; they save disk space and time over dozens of runs.
COMMON: Fields = {
  "eval.contact_sheet": False, "eval.before_training": False, "checkpoint.keep": 1,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Length and initial weights of the runs.

  Attributes:
    fields: config fields of every run.
    start: config fields of a contrastive run from scratch, trained first, once per seed. All other
      runs take its weights and vocabulary, as the paper's runs take those of CLIP. Relations are
      then mined from meaningful features, and the compared settings share their initial weights.
      None: every run starts as its config says.
  """

  fields: Fields
  start: Fields | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Defaults of a dataset's runs.

  Attributes:
    name: as in the config; also of the file in configs/.
    title: as printed in the paper; the key of the paper's numbers.
    protocol: default of `--protocol`.
    schedules: alternatives to the config's own schedule, by name.
    schedule: default of `--schedule`; "" is the config's own.
  """

  name: str
  title: str
  protocol: str = "val"
  schedules: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
  schedule: str = ""


def _only(*losses: str, **fields: Any) -> Fields:
  """Fields that keep the contrastive loss and the named ones, and switch off the others.

  `__` in the name of another field stands for a dot.
  """
  off = {
    f"loss.weights.{name}": 0.0 for name in ("local", "global", "consistency") if name not in losses
  }
  return off | {name.replace("__", "."): value for name, value in fields.items()}


BASELINE = _only()
LOCAL = _only("local")
LOCAL_AND_GLOBAL = _only("local", "global")

# Beyond the paper: `dgia_jax.method.strict_mining`.
RECIPROCAL = {"strict_mining.reciprocal": True}
TEXT_MATCH = {"strict_mining.require_text_match": True}
RAISED = {
  "strict_mining.local_threshold_num_stds": 2.5,
  "strict_mining.global_threshold_num_stds": 2.5,
}
OTHER_IMAGES = {"global_association.exclude_same_image": True}

# For tiny towers on one CPU core; relations are mined from the same epochs on as in the paper.
WARM = Schedule(
  fields={
    "num_epochs": 4,
    "optimizer.learning_rate": 1e-3,
    "local_association.start_epoch": 1,
    "global_association.start_epoch": 2,
  },
  start=BASELINE | {"num_epochs": 10},
)
# For `--variant scratch`: two thirds of its people, dozens of runs then take about an hour.
FEWER = {"dataset.options.train_people": 1800}
WARM_FEWER = Schedule(WARM.fields | FEWER, WARM.start | FEWER)

EMBEDDED = "synth_pedes"  # drawn by the package, needs no files
DATASETS: Mapping[str, Dataset] = {
  dataset.name: dataset
  for dataset in (
    Dataset("cuhk_pedes", "CUHK-PEDES", protocol="test_best"),
    Dataset("icfg_pedes", "ICFG-PEDES", protocol="test_best"),
    Dataset("rstp_reid", "RSTPReid", protocol="test_best"),
    Dataset(EMBEDDED, "synth_pedes", "val", {"warm": WARM_FEWER}),
    Dataset("custom", "custom", "val", {"warm": WARM}),
  )
}
BENCHMARKS = ("cuhk_pedes", "icfg_pedes", "rstp_reid")

# The epoch whose test scores a table shows.
PROTOCOLS = {
  "last": "the last epoch",
  "val": "the epoch with the best R@1 on val",
  "test_best": "the epoch with the best R@1 on test itself, the paper's protocol",
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """A row of a table, or a point of a figure.

  Attributes:
    label: as printed in the paper.
    fields: config fields; {} is the whole method.
    oracle: name of the oracle in `experiments.oracle` that provides relations or captions.
    description: for labels that do not explain themselves.
  """

  label: str
  fields: Fields
  oracle: str = ""
  description: str = ""


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


WHOLE = Setting("DGIA", {})

EXPERIMENTS: Mapping[str, Experiment] = {
  experiment.name: experiment
  for experiment in (
    Experiment(
      name="main",
      title="DGIA and published methods",
      printed_in="Tables 1-3",
      form="main",
      settings=(WHOLE,),
    ),
    Experiment(
      name="modules",
      title="Contribution of each module",
      printed_in="Table 4",
      form="ablation",
      settings=(
        Setting("B", BASELINE, description="contrastive loss only"),
        Setting("B+LRC", LOCAL, description="with local association"),
        Setting("B+GSRC-FR", _only("global"), description="with global association"),
        Setting("B+LRC+GSRC-FR", LOCAL_AND_GLOBAL, description="with both"),
        Setting("B+LRC+GSRC-FR+IASC-CL", {}, description="with both and consistency: DGIA"),
      ),
      paper_table="table4_modules_R1",
    ),
    Experiment(
      name="local",
      title="Similarity used for local relations",
      printed_in="Table 5",
      form="ablation",
      settings=(
        Setting("B", BASELINE, description="contrastive loss only"),
        Setting(
          "B+LRC-I",
          _only("local", local_association__modality="image"),
          description="image similarity",
        ),
        Setting(
          "B+LRC-T",
          _only("local", local_association__modality="text"),
          description="text similarity",
        ),
        Setting("B+LRC", LOCAL, description="both must exceed the threshold"),
      ),
      paper_table="table5_local_R1",
    ),
    Experiment(
      name="global",
      title="Similarity used for global relations",
      printed_in="Table 6",
      form="ablation",
      settings=(
        Setting("BFE", LOCAL, description="B+LRC of Table 4"),
        Setting(
          "BFE+GSRC-T",
          _only("local", "global", global_association__anchor="text"),
          description="text anchors",
        ),
        Setting(
          "BFE+GSRC-IT",
          _only("local", "global", global_association__anchor="both"),
          description="mean of both",
        ),
        Setting("BFE+GSRC-FR", LOCAL_AND_GLOBAL, description="image anchors"),
      ),
      paper_table="table6_global_R1",
    ),
    Experiment(
      name="mask_ratio",
      title="R@1 over the share of masked words in training",
      printed_in="Figure 3",
      form="mask_ratio",
      settings=tuple(
        Setting(str(ratio), {"augment.mask_ratio": ratio})
        for ratio in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
      ),
    ),
    Experiment(
      name="relation_accuracy",
      title="Precision of mined relations over training",
      printed_in="Figure 4",
      form="relation_accuracy",
      settings=(WHOLE,),
    ),
    Experiment(
      name="cross_dataset",
      title="Trained on one dataset, tested on another",
      printed_in="Supplement, Table 1",
      form="cross_dataset",
      settings=(WHOLE,),
      measure="cross_dataset",
    ),
    Experiment(
      name="masked_queries",
      title="Queries with masked words",
      printed_in="Supplement, Table 2",
      form="masked_queries",
      settings=(WHOLE,),
      measure="masked_queries",
    ),
    Experiment(
      name="complexity",
      title="Parameters, FLOPs and time",
      printed_in="Supplement, Table 3",
      form="complexity",
      settings=(WHOLE,),
      measure="complexity",
    ),
    Experiment(
      name="tsne",
      title="Features of test people",
      printed_in="Supplement, Figure 1",
      form="tsne",
      settings=(Setting("B", BASELINE), WHOLE),
      measure="tsne",
    ),
    Experiment(
      name="attention",
      title="Image regions that support single words",
      printed_in="Figure 2",
      form="attention",
      settings=(WHOLE,),
      measure="attention",
    ),
    Experiment(
      name="reference",
      title="Gain from true identities",
      printed_in="",
      form="ablation",
      settings=(
        Setting("baseline", BASELINE, description="contrastive loss only"),
        Setting(
          "augmented",
          _only("consistency", local_association__modality="none"),
          description="baseline with the distorted view, without mined relations",
        ),
        Setting("method", {}, description="all four losses, mined relations"),
        Setting(
          "oracle_relations",
          {},
          oracle="relations",
          description="ORACLE: all four losses, true relations",
        ),
        Setting(
          "oracle_captions",
          BASELINE,
          oracle="captions",
          description="ORACLE: baseline, captions swapped within each person",
        ),
      ),
    ),
    Experiment(
      name="plus",
      title="Beyond the paper",
      printed_in="",
      form="beyond",
      settings=(
        WHOLE,
        Setting(
          "reciprocal",
          RECIPROCAL,
          description="DGIA; neighbours must retrieve the anchor in return",
        ),
        Setting(
          "text-match", TEXT_MATCH, description="DGIA; neighbours' captions must also be similar"
        ),
        Setting(
          "reciprocal+text-match",
          RECIPROCAL | TEXT_MATCH,
          description="DGIA; both filters: `:plus`",
        ),
        Setting("raised", RAISED, description="DGIA; thresholds follow the batch"),
        Setting(
          "raised+reciprocal+text-match",
          RAISED | RECIPROCAL | TEXT_MATCH,
          description="DGIA; all three",
        ),
        Setting(
          "other-images",
          OTHER_IMAGES,
          description="DGIA; the image's other captions are not neighbours",
        ),
        Setting(
          "raised+reciprocal+text-match+other-images",
          RAISED | RECIPROCAL | TEXT_MATCH | OTHER_IMAGES,
          description="DGIA; all four",
        ),
      ),
    ),
    Experiment(
      name="gates",
      title="Confidence gates on updates of the memory bank",
      printed_in="",
      form="beyond",
      settings=(
        WHOLE,
        *(
          Setting(f"gate-{gate}", {"bank.gate": gate}, description=f"DGIA; {description}")
          for gate, description in (
            ("pair", "cosine of the pair's own features"),
            ("rank", "rank of its caption among the bank's for its image"),
            ("neighbours", "agreement of its mined neighbours"),
            ("running", "running mean of the cosine of each row"),
          )
        ),
        Setting(
          "half-rate",
          {"bank.update_rate": 0.5},
          description="DGIA; no gate, slower updates: a gate slows them, too",
        ),
      ),
    ),
    Experiment(
      name="ideas",
      title="Published ideas, added to the method",
      printed_in="",
      form="beyond",
      settings=(
        WHOLE,
        Setting(
          "masked-clean",
          {"augment.clean_mask_ratio": 0.15},
          description="DGIA; 15 % of the words of the undistorted caption masked",
        ),
        Setting(
          "light-clean",
          {"augment.clean_flip_prob": 0.5, "augment.clean_padding": 3},
          description="DGIA; the undistorted image mirrored and shifted",
        ),
        Setting(
          "masked+light-clean",
          {
            "augment.clean_mask_ratio": 0.15,
            "augment.clean_flip_prob": 0.5,
            "augment.clean_padding": 3,
          },
          description="DGIA; both",
        ),
        Setting(
          "smoothing", {"loss.label_smoothing": 0.1}, description="DGIA; label smoothing 0.1"
        ),
        Setting(
          "teacher",
          {"ema.decay": 0.99, "bank.features": "ema"},
          description="DGIA; averaged weights fill the bank, one more forward pass",
        ),
        Setting(
          "calibrated",
          {"global_association.weights": "calibrated"},
          description="DGIA; neighbours weighted by their probability of being right",
        ),
      ),
    ),
  )
}
