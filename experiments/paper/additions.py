"""Tables that are not in the paper: what identities are worth, and ideas beyond the method."""

from experiments.paper.settings import (
  BASELINE,
  LOCAL_IS_ON,
  WHOLE,
  Experiment,
  Setting,
  only,
)

# `dgia_jax.method.strict_mining`.
RECIPROCAL = {"strict_mining.reciprocal": True}
TEXT_MATCH = {"strict_mining.require_text_match": True}
RAISED = {
  "strict_mining.local_threshold_num_stds": 2.5,
  "strict_mining.global_threshold_num_stds": 2.5,
}
OTHER_IMAGES = {"global_association.exclude_same_image": True}
EXCHANGE = {"caption_exchange.prob": 0.7}
NO_LOCAL = {"loss.weights.local": 0.0, "local_association.modality": "none"}
PATCH_DROP = {"augment.patch_drop_ratio": 0.5}
NEW_WORDS = {"tokenizer.new_words": 3}
INITIAL = {"ema.initial_share": 0.4, "eval.weights": "ema"}
PLUS = EXCHANGE | NO_LOCAL | PATCH_DROP | NEW_WORDS  # `recipes.plus` without pretrained weights
MASKED_CLEAN = {"augment.clean_mask_ratio": 0.15}
ONE_VIEW = {"loss.weights.consistency": 0.0}
# Epochs of one view cost half as much as those of two.
TWICE_AS_LONG = {"num_epochs": 2, "eval_every_epochs": 2}
LIGHT_CLEAN = {"augment.clean_flip_prob": 0.5, "augment.clean_padding": 3}

ADDITIONS = (
  Experiment(
    name="reference",
    title="Gain from true identities",
    printed_in="",
    form="ablation",
    settings=(
      Setting("baseline", BASELINE, description="contrastive loss only"),
      Setting(
        "augmented",
        only("consistency", local_association__modality="none"),
        description="baseline with the distorted view, without mined relations",
      ),
      Setting("method", {}, description="the whole method, mined relations"),
      Setting(
        "oracle_relations",
        {},
        oracle="relations",
        description="ORACLE: the whole method, true relations",
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
    name="strict_mining",
    title="Stricter mining",
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
        description="DGIA; both filters",
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
      Setting("no-local", NO_LOCAL, description="DGIA; no relations are mined inside a batch"),
      Setting("exchange", EXCHANGE, description="DGIA; images take captions of mined neighbours"),
      Setting("exchange+no-local", EXCHANGE | NO_LOCAL, description="DGIA; both"),
      Setting(
        "patch-drop", PATCH_DROP, description="DGIA; half of the distorted image's patches left out"
      ),
      Setting("new-words", NEW_WORDS, description="DGIA; new words get tokens of their own"),
      Setting(
        "plus",
        PLUS,
        description="DGIA; no local relations, exchange, left-out patches, new words",
      ),
      Setting(
        "initial", INITIAL, description="DGIA; weights averaged with the initial ones (WiSE-FT)"
      ),
      Setting("plus+initial", PLUS | INITIAL, description="DGIA; all of these: `:plus`"),
      Setting(
        "new-words+initial",
        NEW_WORDS | INITIAL,
        description="DGIA; new words, averaged with the initial weights",
      ),
      Setting(
        "B+new-words",
        BASELINE | NEW_WORDS,
        description="contrastive loss only; new words get tokens of their own",
      ),
      Setting(
        "B+new-words+initial",
        BASELINE | NEW_WORDS | INITIAL,
        description="contrastive loss only; new words, averaged with the initial weights",
      ),
      Setting(
        "exchange+no-local+masked-clean",
        EXCHANGE | NO_LOCAL | MASKED_CLEAN,
        description="15 % of the words of the undistorted caption masked",
      ),
      Setting(
        "exchange+no-local+masked-clean+one-view",
        EXCHANGE | NO_LOCAL | MASKED_CLEAN | ONE_VIEW,
        description="the same without the distorted view, in twice the epochs",
        factors=TWICE_AS_LONG,
      ),
      Setting(
        "masked-clean",
        MASKED_CLEAN,
        description="DGIA; 15 % of the words of the undistorted caption masked",
      ),
      Setting(
        "light-clean",
        LIGHT_CLEAN,
        description="DGIA; the undistorted image mirrored and shifted",
      ),
      Setting("smoothing", {"loss.label_smoothing": 0.1}, description="DGIA; label smoothing 0.1"),
    ),
  ),
  Experiment(
    name="loss_weights",
    title="Weights of the losses",
    printed_in="",
    form="beyond",
    settings=(
      WHOLE,
      *(
        Setting(
          f"{loss}-x{weight:g}",
          {f"loss.weights.{loss}": weight},
          description=f"DGIA; {name} loss with weight {weight:g}",
          needs=LOCAL_IS_ON if loss == "local" else {},
        )
        for loss, name, weights in (
          ("itc", "contrastive", (3.0, 10.0)),
          ("local", "local association", (0.1,)),
          ("global", "global association", (3.0,)),
        )
        for weight in weights
      ),
    ),
  ),
  Experiment(
    name="loss_sizes",
    title="Sizes of the losses and of their gradients",
    printed_in="",
    form="loss_sizes",
    settings=(WHOLE,),
    measure="loss_gradients",
  ),
)
