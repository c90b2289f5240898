"""The paper, in pure JAX: arrays in, arrays out. From its sections to the functions:

| section | part | function |
|---|---|---|
| 3.1 contrastive baseline | loss, Eq. 1-2 | `losses.itc` |
| 3.2 local association | mining | `local_association.local_relations` |
| | targets | `local_association.relation_targets` |
| | loss | `losses.similarity_distribution_matching` |
| | mining and targets in one call | `local_association.local_targets` |
| 3.3 global association | banks | `memory_bank.Bank`, `memory_bank.update` |
| | mining | `bank_search.search`, `mining.mine_global` |
| | weights | `global_association.confidence_weights` |
| | targets | `global_association.extended_labels` |
| | loss, Eq. 13-17 | `global_association.global_association_loss` |
| | all of it, with banks as plain arrays | `global_association.global_loss` |
| 3.4 information asymmetry | views | `augment`, `views.two_views` |
| | loss | that of 3.2, on the distorted view |
| 4.1 recipe | learning rate | `optimizer.learning_rate` |
| | Adam | `optimizer.create` |

`train_step` puts them together: start reading there. Around the paper: `gradient_cache` (large
batches in little memory), `random_streams`, `compilation`, `train_state`, and additions that are
off by default: `strict_mining`, `caption_exchange`, `confidence_gate` with `caption_ranks`;
`trainable` (frozen blocks), `lora`, `learnable_temperature`, and `ema` with `scored_weights`.
"""

from dgia_jax.method.global_association import global_loss
from dgia_jax.method.local_association import local_relations, local_targets
from dgia_jax.method.losses import itc, similarity_distribution_matching
from dgia_jax.method.optimizer import learning_rate

__all__ = [
  "global_loss",
  "itc",
  "learning_rate",
  "local_relations",
  "local_targets",
  "similarity_distribution_matching",
]
