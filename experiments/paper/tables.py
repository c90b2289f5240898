"""Every table and figure of the paper as data: which config fields each setting changes.

A setting is a label and the fields that differ from the dataset's config; `{}` is the whole
method. Nothing here says how runs are made or reported: `run` trains what a declaration asks for,
and settings that come to the same config are one run, whichever tables they stand in.
"""

import dataclasses

# Fields of every run: no picture and no spare checkpoint for each of dozens of runs.
COMMON = {"eval.contact_sheet": False, "checkpoint.keep": 1}


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How long runs are, and what they start from.

  Attributes:
    fields: {config field: value} of every run.
    start: fields of a contrastive run from scratch that is made first, once a seed, and whose
      weights and vocabulary all other runs start from, as the paper's start from CLIP. Then
      relations are mined from features that mean something, and settings that are compared differ
      in nothing but themselves. None: every run starts as the config says.
  """

  fields: dict
  start: dict | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Where a dataset's runs start from.

  Attributes:
    name: as in the config.
    title: as the paper prints it; the paper's numbers are found by it.
    config: name of the file in configs/.
    protocol: which epoch's test scores are tabulated unless told otherwise.
    schedules: {name: Schedule} that replace the config's own.
    schedule: the one that is used unless told otherwise; "" is the config's own.
  """

  name: str
  title: str
  config: str
  protocol: str = "val"
  schedules: dict = dataclasses.field(default_factory=dict)
  schedule: str = ""


def _only(*losses, **fields):
  """Fields that switch off the losses not named; the contrastive one stays."""
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

# For tiny towers on a CPU core. The start is made once a seed; then the recipe's own start epochs.
WARM = Schedule(
  fields={
    "num_epochs": 4,
    "optimizer.learning_rate": 1e-3,
    "local_association.start_epoch": 1,
    "global_association.start_epoch": 2,
  },
  start=BASELINE | {"num_epochs": 10},
)
# Two thirds of the embedded dataset's people, so that dozens of runs fit into an hour.
FEWER = {"dataset.options.train_people": 1800}
WARM_FEWER = Schedule(WARM.fields | FEWER, WARM.start | FEWER)

EMBEDDED = "synth_pedes"  # drawn by the package: needs no files
DATASETS = {
  dataset.name: dataset
  for dataset in (
    Dataset("cuhk_pedes", "CUHK-PEDES", "cuhk_pedes", protocol="test_best"),
    Dataset("icfg_pedes", "ICFG-PEDES", "icfg_pedes", protocol="test_best"),
    Dataset("rstp_reid", "RSTPReid", "rstp_reid", protocol="test_best"),
    Dataset(EMBEDDED, "synth_pedes", "synth_pedes", "val", {"warm": WARM_FEWER}, "warm"),
    Dataset("custom", "custom", "custom", "val", {"warm": WARM}),
  )
}
BENCHMARKS = ("cuhk_pedes", "icfg_pedes", "rstp_reid")

# Which epoch's test scores a table shows.
PROTOCOLS = {
  "last": "the last epoch",
  "val": "the epoch that was best on val",
  "test_best": "the epoch that was best on test itself, as the paper's numbers are made",
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """A row of a table, or a point of a figure.

  Attributes:
    label: as the paper prints it.
    fields: {config field: value}; {} is the whole method.
    oracle: "" or the oracle of `experiments.oracle` that the run is trained with.
    description: what it is, where the label does not say it.
  """

  label: str
  fields: dict
  oracle: str = ""
  description: str = ""


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A table or figure.

  Attributes:
    name: on the command line.
    title: what it shows.
    source: where the paper has it; "" for what the paper does not have.
    form: the function of `experiments.paper.render` that reports it.
    settings: in the paper's order.
    paper_table: key of `paper.ablation`, "" where the form knows where to look.
    measure: "" when a run's own results suffice, else a module of `experiments.paper.measures`.
    datasets: it exists for these only; () = for all.
  """

  name: str
  title: str
  source: str
  form: str
  settings: tuple
  paper_table: str = ""
  measure: str = ""
  datasets: tuple = ()


WHOLE = Setting("DGIA", {})

EXPERIMENTS = {
  experiment.name: experiment
  for experiment in (
    Experiment(
      name="main",
      title="DGIA beside published methods",
      source="Tables 1-3",
      form="main",
      settings=(WHOLE,),
    ),
    Experiment(
      name="modules",
      title="What each module adds",
      source="Table 4",
      form="ablation",
      settings=(
        Setting("B", BASELINE, description="contrastive loss alone"),
        Setting("B+LRC", LOCAL, description="with local association"),
        Setting("B+GSRC-FR", _only("global"), description="with global association"),
        Setting("B+LRC+GSRC-FR", LOCAL_AND_GLOBAL, description="with both"),
        Setting("B+LRC+GSRC-FR+IASC-CL", {}, description="with consistency too: DGIA"),
      ),
      paper_table="table4_modules_R1",
    ),
    Experiment(
      name="local",
      title="Which similarity local relations are mined by",
      source="Table 5",
      form="ablation",
      settings=(
        Setting("B", BASELINE, description="contrastive loss alone"),
        Setting(
          "B+LRC-I", _only("local", local_association__modality="image"), description="images alone"
        ),
        Setting(
          "B+LRC-T", _only("local", local_association__modality="text"), description="texts alone"
        ),
        Setting("B+LRC", LOCAL, description="both must agree"),
      ),
      paper_table="table5_local_R1",
    ),
    Experiment(
      name="global",
      title="Which similarity anchors are searched by",
      source="Table 6",
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
      source="Figure 3",
      form="mask_ratio",
      settings=tuple(
        Setting(str(ratio), {"augment.mask_ratio": ratio})
        for ratio in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
      ),
    ),
    Experiment(
      name="relation_accuracy",
      title="Precision of mined relations over training",
      source="Figure 4",
      form="relation_accuracy",
      settings=(WHOLE,),
    ),
    Experiment(
      name="cross_dataset",
      title="Trained on one dataset, tested on another",
      source="Supplement, Table 1",
      form="cross_dataset",
      settings=(WHOLE,),
      measure="cross_dataset",
    ),
    Experiment(
      name="masked_queries",
      title="Queries with masked words",
      source="Supplement, Table 2",
      form="masked_queries",
      settings=(WHOLE,),
      measure="masked_queries",
    ),
    Experiment(
      name="complexity",
      title="Parameters, arithmetic and time",
      source="Supplement, Table 3",
      form="complexity",
      settings=(WHOLE,),
      measure="complexity",
    ),
    Experiment(
      name="tsne",
      title="Features of test people",
      source="Supplement, Figure 1",
      form="tsne",
      settings=(Setting("B", BASELINE), WHOLE),
      measure="tsne",
    ),
    Experiment(
      name="attention",
      title="Words and the image regions that speak for them",
      source="Figure 2",
      form="attention",
      settings=(WHOLE,),
      measure="attention",
    ),
    Experiment(
      name="reference",
      title="What knowing identities is worth",
      source="",
      form="ablation",
      settings=(
        Setting("baseline", BASELINE, description="contrastive loss alone"),
        Setting(
          "augmented",
          _only("consistency", local_association__modality="none"),
          description="baseline + the distorted view, matched to itself alone",
        ),
        Setting("method", {}, description="all four losses, relations mined without identities"),
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
          description="ORACLE: baseline, each image with a caption of its person",
        ),
      ),
    ),
    Experiment(
      name="plus",
      title="Beyond the paper",
      source="",
      form="beyond",
      settings=(
        WHOLE,
        Setting(
          "reciprocal",
          RECIPROCAL,
          description="DGIA; neighbours must retrieve the anchor in return",
        ),
        Setting(
          "text-match", TEXT_MATCH, description="DGIA; neighbours' captions must be similar, too"
        ),
        Setting(
          "reciprocal+text-match", RECIPROCAL | TEXT_MATCH, description="DGIA; both: `:plus`"
        ),
        Setting("raised", RAISED, description="DGIA; thresholds follow the batch"),
        Setting(
          "raised+reciprocal+text-match",
          RAISED | RECIPROCAL | TEXT_MATCH,
          description="DGIA; all three",
        ),
        Setting(
          "other-images", OTHER_IMAGES, description="DGIA; an image's other captions take no slot"
        ),
        Setting(
          "raised+reciprocal+text-match+other-images",
          RAISED | RECIPROCAL | TEXT_MATCH | OTHER_IMAGES,
          description="DGIA; all four",
        ),
      ),
    ),
  )
}
