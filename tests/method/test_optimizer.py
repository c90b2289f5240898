import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dgia_jax import sharding
from dgia_jax.method import optimizer, trainable
from dgia_jax.models import dual_encoder
from tests.helpers import recipe, tiny_run
from tests.helpers.golden_data import arrays, cases, description
from tests.helpers.trees import by_name

ADAM_CASES = dict(cases("p08_adam"))
FACTS = {case["case"]: case for case in description("p08_adam")}
HALF_CASES = [number for number, facts in FACTS.items() if facts["dtype"] == "torch.float16"]
FULL_CASES = [number for number in FACTS if number not in HALF_CASES]
HALF_STEP = 2.0**-24  # between neighbouring float16 numbers below 6e-5
STEPS = 5
# The released code also raises the rate of layers that this method does not have.
FOREIGN = ("cross", "mlm_head", "classifier")


def schedules():
  """(epochs, rate of weights by epoch, rate of biases by epoch) of the reference."""
  data = arrays("p07_lr")
  for name in sorted(data):
    if name.startswith("lr_T"):
      yield int(name.removeprefix("lr_T")), data[name], data[name.replace("lr_", "lr_bias_")]


def rates(tx, steps, params):
  """The rate every parameter moved with in each step: gradients of 1 make Adam's direction 1."""
  gradients = jax.tree.map(jnp.ones_like, params)
  update = jax.jit(tx.update)
  state, found = tx.init(params), []
  for _ in range(steps):
    updates, state = update(gradients, state, params)
    found.append({name: -float(value[0]) for name, value in updates.items()})
  return found


def plain(**options):
  """A chain without decay whose direction for gradients of 1 is 1."""
  return recipe.create_optimizer(**dict(epsilon=1e-12, weight_decay=0.0) | options)


PAIR = {"kernel": jnp.ones(1), "bias": jnp.ones(1)}


@pytest.mark.parametrize("epochs, weights, biases", schedules())
def test_learning_rate_equals_reference(epochs, weights, biases):
  ours = optimizer.learning_rate(jnp.arange(epochs + 1), epochs)
  np.testing.assert_allclose(ours, weights, rtol=1e-5, atol=1e-12)
  steps_per_epoch = 2
  found = rates(plain(num_epochs=epochs, steps_per_epoch=2), steps_per_epoch * epochs, PAIR)
  for name, expected in (("kernel", weights), ("bias", biases)):
    actual = [rate[name] for rate in found]
    # 5e-5: Adam's own bias correction is a float32 number close to 0.
    np.testing.assert_allclose(
      actual, np.repeat(expected[:-1], steps_per_epoch), rtol=5e-5, atol=1e-12
    )


def test_reference_holds_several_schedules():
  assert {epochs for epochs, *_ in schedules()} == {16, 40}


def test_learning_rate_without_warmup_and_beyond_the_end():
  assert optimizer.learning_rate(0, 4, base=2.0, warmup_epochs=0) == 2.0
  assert optimizer.learning_rate(2, 4, base=2.0, warmup_epochs=0) == pytest.approx(1.0)
  assert optimizer.learning_rate(9, 4, base=2.0, warmup_epochs=0) == 0.0
  # A run that is all warm-up ends at the base rate and divides by no zero.
  assert optimizer.learning_rate(5, 5, base=2.0, warmup_epochs=5) == 2.0
  assert optimizer.learning_rate(4, 5, base=2.0, warmup_epochs=5) == pytest.approx(1.64)


def test_rate_per_step_moves_between_the_epochs():
  settings = dict(num_epochs=8, steps_per_epoch=4, base=1.0, warmup_epochs=2)
  per_step = [r["kernel"] for r in rates(plain(lr_update="step", **settings), 32, PAIR)]
  per_epoch = [r["kernel"] for r in rates(plain(lr_update="epoch", **settings), 32, PAIR)]
  expected = [float(optimizer.learning_rate(step / 4, 8, 1.0, 2)) for step in range(32)]
  np.testing.assert_allclose(per_step, expected, rtol=5e-5)
  np.testing.assert_allclose(per_step[::4], per_epoch[::4], rtol=1e-6)
  assert len(np.unique(np.round(per_step, 4))) == 32
  assert len(np.unique(np.round(per_epoch, 4))) == 8


def test_bias_rate():
  for factor in (1.0, 2.0, 5.0):
    tx = plain(num_epochs=8, steps_per_epoch=1, bias_lr_multiplier=factor)
    (found,) = rates(tx, 1, PAIR)
    assert found["bias"] == pytest.approx(factor * found["kernel"], rel=1e-6)


def chain(facts, **options):
  """Our chain at the constant rate of a reference case."""
  return recipe.create_optimizer(
    num_epochs=10**9,  # the cosine stands still
    steps_per_epoch=1,
    base=facts["base_lr"],
    warmup_epochs=0,
    betas=tuple(facts["betas"]),
    epsilon=facts["eps"],
    weight_decay=facts["weight_decay"],
    **options,
  )


def adam_state(state):
  """Adam's averages inside a chain's state."""
  return next(part for part in state if hasattr(part, "nu"))


def own_names(facts):
  """Names in a case whose rates our method shares."""
  return [name for name in facts["names"] if not any(word in name for word in FOREIGN)]


@pytest.mark.parametrize("number", FULL_CASES)
def test_adam_equals_reference(number):
  case, facts = ADAM_CASES[number], FACTS[number]
  names, tx = own_names(facts), chain(facts)
  tree = lambda prefix: {name: case[f"{prefix}_{name}"] for name in names}
  params = tree("p0")
  state = tx.init(params)
  for step in range(STEPS):
    updates, state = jax.jit(tx.update)(tree(f"g{step}"), state, params)
    params = optax.apply_updates(params, updates)
    for name in names:
      expected = case[f"p{step + 1}_{name}"]
      np.testing.assert_allclose(params[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
      # Parameters hardly move at rate 1e-5, so what moved is compared too.
      moved, expected = params[name] - case[f"p0_{name}"], expected - case[f"p0_{name}"]
      rounding = 2e-7 * np.abs(case[f"p0_{name}"]).max()
      np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=rounding, err_msg=name)
  moments = adam_state(state)
  for name in names:
    np.testing.assert_allclose(moments.mu[name], case[f"m5_{name}"], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(moments.nu[name], case[f"v5_{name}"], rtol=1e-5, atol=1e-12)


def test_reference_cases_cover_biases_weights_and_precisions():
  assert {bool("bias" in name) for n in FULL_CASES for name in own_names(FACTS[n])} == {True, False}
  assert FULL_CASES and HALF_CASES


@pytest.mark.parametrize("number", HALF_CASES)
def test_half_second_moment_follows_the_released_precision(number):
  """The reference's parameters and first moment were float16 as well, ours are float32."""
  case, facts = ADAM_CASES[number], FACTS[number]
  tx = chain(facts, second_moment="float16")
  tree = lambda prefix: {name: case[f"{prefix}_{name}"] for name in facts["names"]}
  state = tx.init(tree("p0"))
  assert {leaf.dtype for leaf in adam_state(state).nu.values()} == {np.dtype(np.float16)}
  for step in range(STEPS):
    _, state = jax.jit(tx.update)(tree(f"g{step}"), state, tree(f"p{step}"))
  moments, vanished = adam_state(state), 0
  for name in facts["names"]:
    assert moments.nu[name].dtype == jnp.float16
    expected = case[f"v5_{name}"]
    # One unit each step where a term falls on the other side of a rounding boundary.
    np.testing.assert_allclose(moments.nu[name], expected, rtol=2e-3, atol=2 * HALF_STEP)
    np.testing.assert_allclose(moments.mu[name], case[f"m5_{name}"], rtol=5e-3, atol=2e-6)
    same = np.mean(np.asarray(moments.nu[name], np.float32) == expected)
    assert same >= 0.75, name
    vanished += np.sum((np.asarray(moments.nu[name]) == 0) & (expected == 0))
  assert vanished > 10


def test_scaled_learning_rate():
  assert optimizer.scaled_learning_rate(1e-5, 64) == pytest.approx(1e-5)
  assert optimizer.scaled_learning_rate(1e-5, 4096) == pytest.approx(64e-5)
  assert optimizer.scaled_learning_rate(1e-5, 4096, rule="sqrt") == pytest.approx(8e-5)
  assert optimizer.scaled_learning_rate(1e-5, 32, reference_batch=128) == pytest.approx(0.25e-5)
  with pytest.raises(ValueError, match="'log'"):
    optimizer.scaled_learning_rate(1e-5, 128, rule="log")


def test_linear_rule_keeps_what_an_epoch_moves_while_epsilon_is_large():
  """Four small batches at the base rate against one batch of all at four times the rate."""
  gradient = {"kernel": jnp.array([3e-6, -2e-5])}
  params = jax.tree.map(jnp.zeros_like, gradient)
  settings = dict(num_epochs=10**9, steps_per_epoch=1, warmup_epochs=0, weight_decay=0.0)

  def moved(steps, rate, epsilon):
    tx = recipe.create_optimizer(base=rate, epsilon=epsilon, **settings)
    state, total = tx.init(params), params
    for _ in range(steps):
      updates, state = tx.update(gradient, state, params)
      total = jax.tree.map(jnp.add, total, updates)
    return total["kernel"]

  rate = optimizer.scaled_learning_rate(1.0, 4, reference_batch=1)
  np.testing.assert_allclose(moved(1, rate, 1e-3), moved(4, 1.0, 1e-3), rtol=1e-5)
  # One epsilon-free step has the length of its rate, whatever the gradient.
  np.testing.assert_allclose(np.abs(moved(1, rate, 0.0)), 4.0, rtol=1e-5)


def test_half_second_moment_vanishes_for_small_gradients():
  """Below about 5e-3 the update is the corrected first moment / eps: momentum SGD."""
  settings = dict(num_epochs=10**9, steps_per_epoch=1, base=1.0, warmup_epochs=0, weight_decay=0.0)
  gradients = {"kernel": jnp.array([1e-3, -4e-3, 5e-3, 6e-3, 0.5])}
  params = jax.tree.map(jnp.zeros_like, gradients)
  half = recipe.create_optimizer(second_moment="float16", **settings)
  full = recipe.create_optimizer(second_moment="float32", **settings)
  half_state, full_state = half.init(params), full.init(params)
  for step in range(3):
    half_updates, half_state = half.update(gradients, half_state, params)
    full_updates, full_state = full.update(gradients, full_state, params)
    assert (np.asarray(adam_state(half_state).nu["kernel"]) == 0).tolist() == [
      True, True, True, False, False
    ]  # fmt: skip
    small = slice(0, 3)
    # A constant gradient is its own corrected mean.
    np.testing.assert_allclose(
      half_updates["kernel"][small], -gradients["kernel"][small] / 1e-3, rtol=1e-5
    )
    g = np.abs(gradients["kernel"])
    ratio = half_updates["kernel"] / full_updates["kernel"]
    # (|g| + eps) / eps times what float32 makes of it.
    np.testing.assert_allclose(ratio[small], ((g + 1e-3) / 1e-3)[small], rtol=1e-3)
    assert step > 0 or ratio[4] == pytest.approx(1.0, abs=2e-3)


def test_decoupled_decay_equals_adamw(rng):
  params = {"kernel": rng.normal(size=5).astype(np.float32), "bias": np.ones(3, np.float32)}
  ours = recipe.create_optimizer(
    num_epochs=4, steps_per_epoch=2, base=1e-2, warmup_epochs=1, lr_update="step", epsilon=1e-8,
    weight_decay=0.1, decoupled=True, bias_lr_multiplier=1.0, betas=(0.8, 0.95),
  )  # fmt: skip
  theirs = optax.adamw(
    lambda count: optimizer.learning_rate(count / 2, 4, 1e-2, 1), b1=0.8, b2=0.95, eps=1e-8,
    weight_decay=0.1, mask={"kernel": True, "bias": False},
  )  # fmt: skip
  results = []
  for tx in (ours, theirs):
    value, state = params, tx.init(params)
    for step in range(8):
      gradients = jax.tree.map(lambda p, step=step: np.cos(p + step), value)
      updates, state = tx.update(gradients, state, value)
      value = optax.apply_updates(value, updates)
    results.append(value)
  for name in params:
    np.testing.assert_allclose(results[0][name], results[1][name], rtol=1e-6)


def test_coupled_decay_goes_through_adam_and_decoupled_does_not():
  params, zeros = {"kernel": jnp.full(1, 3.0)}, {"kernel": jnp.zeros(1)}
  settings = dict(num_epochs=9, steps_per_epoch=1, base=1.0, warmup_epochs=0, weight_decay=0.1)
  moved = {}
  for decoupled in (False, True):
    tx = recipe.create_optimizer(decoupled=decoupled, **settings)
    updates, _ = tx.update(zeros, tx.init(params), params)
    moved[decoupled] = float(updates["kernel"][0])
  assert moved[True] == pytest.approx(-0.1 * 3.0)
  assert moved[False] == pytest.approx(-0.3 / (0.3 + 1e-3), rel=1e-4)


@pytest.mark.parametrize("decoupled", [False, True])
def test_everything_but_biases_decays_layer_norm_weights_included(decoupled):
  model = lambda: dual_encoder.DualEncoder(
    tiny_run.SIZE, image_size=(16, 16), context_length=8, vocab_size=20, rngs=nnx.Rngs(0)
  )
  abstract = nnx.to_pure_dict(nnx.state(nnx.eval_shape(model), nnx.Param))
  params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), abstract)
  tx = recipe.create_optimizer(
    num_epochs=9, steps_per_epoch=1, base=1.0, warmup_epochs=0, decoupled=decoupled
  )
  updates, _ = jax.jit(tx.update)(jax.tree.map(np.zeros_like, params), tx.init(params), params)
  decayed, kept = set(), set()
  for path, update in jax.tree_util.tree_leaves_with_path(updates):
    name = sharding.path_name(path)
    assert np.all(update < 0) or np.all(update == 0), name
    (decayed if np.all(update < 0) else kept).add(name)
  assert {"image/norm_pre/scale", "text/blocks/norm_1/scale", "text/norm_final/scale"} <= decayed
  assert {"image/position_embedding", "image/projection", "text/token_embedding"} <= decayed
  assert {"image/norm_pre/bias", "text/blocks/attention/qkv/bias"} <= kept
  assert kept == {name for name in kept | decayed if name.endswith("/bias")}
  biases = {
    sharding.path_name(path)
    for path, bias in jax.tree_util.tree_leaves_with_path(optimizer.is_bias(params))
    if bias
  }
  assert biases == kept


def test_unknown_choices_are_errors():
  with pytest.raises(ValueError, match="lr_update.*'week'"):
    recipe.create_optimizer(num_epochs=1, steps_per_epoch=1, lr_update="week")
  with pytest.raises(ValueError, match="second_moment.*'int8'"):
    recipe.create_optimizer(num_epochs=1, steps_per_epoch=1, second_moment="int8")


def test_the_rate_is_the_one_of_optax():
  """Our float32 form of the schedule against optax's, for every tenth of an epoch."""
  epochs = np.arange(0, 400) / 10
  join = optax.join_schedules(
    [optax.linear_schedule(1e-6, 1e-5, 5), optax.cosine_decay_schedule(1e-5, 35)], [5]
  )
  np.testing.assert_allclose(
    optimizer.learning_rate(epochs, 40), join(epochs.astype(np.float32)), rtol=1e-4, atol=1e-12
  )


def _towers(stacked, width=2):
  """The least that two towers hold: an embedding, blocks, a last block, a head."""
  tower = lambda: {
    "position_embedding": jnp.ones(width),
    "blocks": {"kernel": jnp.ones((stacked, width, width))},
    "last_block": {"kernel": jnp.ones((width, width))},
    "projection": jnp.ones(width),
  }
  return {"image": tower(), "text": tower()}


def _distances(scales, decay):
  """{parameter: blocks between it and the head, one number per layer}"""
  powers = {}
  for name, scale in by_name(scales).items():
    powers[name] = np.round(np.log(np.ravel(scale)) / np.log(decay), 4).tolist()
  return powers


def test_every_layer_is_slower_than_the_next():
  distances = _distances(optimizer.layer_scales(_towers(3), 0.8), 0.8)
  assert distances == {
    f"{tower}/{name}": powers
    for tower in ("image", "text")
    for name, powers in {
      "position_embedding": [5], "blocks/kernel": [4, 3, 2], "last_block/kernel": [1],
      "projection": [0],
    }.items()
  }  # fmt: skip


def test_frozen_blocks_and_lora_change_no_rate():
  frozen = trainable.select(_towers(3), {"image": 2, "text": 4})
  distances = _distances(optimizer.layer_scales(frozen, 0.8), 0.8)
  assert distances == {
    "image/blocks/kernel": [2], "image/last_block/kernel": [1], "image/projection": [0],
    "text/projection": [0],
  }  # fmt: skip
  pair = {"blocks": {"a": jnp.ones((3, 2, 1))}, "last_block": {"a": jnp.ones((2, 1))}}
  trained = {"lora": {"image": pair}, "logit_scale": jnp.ones(())}
  assert _distances(optimizer.layer_scales(trained, 0.8), 0.8) == {
    "lora/image/blocks/a": [4, 3, 2], "lora/image/last_block/a": [1], "logit_scale": [0],
  }  # fmt: skip


def test_layer_decay_scales_the_update():
  params = _towers(3)
  settings = dict(num_epochs=2, steps_per_epoch=5, weight_decay=0.0)
  updates = []
  for decay in (1.0, 0.5):
    tx = recipe.create_optimizer(layer_decay=decay, **settings)
    updates.append(by_name(tx.update(params, tx.init(params), params)[0]))
  scales = by_name(optimizer.layer_scales(params, 0.5))
  for name, update in updates[0].items():
    np.testing.assert_allclose(updates[1][name], update * scales[name], rtol=1e-6, err_msg=name)


def test_large_gradients_are_cut_to_the_norm_before_adam():
  """With a large epsilon the update is proportional to the gradient that Adam sees."""
  params = {"w": jnp.zeros(2)}

  def update(gradient, clip_norm):
    tx = recipe.create_optimizer(
      num_epochs=2, steps_per_epoch=5, epsilon=1e6, weight_decay=0.0, clip_norm=clip_norm
    )
    return tx.update({"w": jnp.asarray(gradient)}, tx.init(params), params)[0]["w"]

  np.testing.assert_allclose(update([30.0, 40.0], 5.0), update([3.0, 4.0], 0.0), rtol=1e-6)
  np.testing.assert_array_equal(update([3.0, 4.0], 6.0), update([3.0, 4.0], 0.0))
