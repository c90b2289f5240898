"""The line about tensors that are not used stays short."""

from dgia_jax.training import initial_weights


def test_few_names_are_listed():
  assert initial_weights.summary(["logit_scale", "model.bank"]) == "logit_scale, model.bank"
  assert initial_weights.summary([]) == "none"


def test_many_names_are_counted_by_module():
  heads = ["model.classifier.weight", "model.mlm_head.fc.bias", "model.mlm_head.fc.weight"]
  state = [f"optimizer.state.{number}.exp_avg" for number in range(300)]
  assert initial_weights.summary(heads + state) == (
    "model.classifier (1), model.mlm_head (2), optimizer.state (300)"
  )
  others = [f"part{number}.x" for number in range(40)]
  assert initial_weights.summary(others).endswith("and 28 more")
