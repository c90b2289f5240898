"""config.json and preprocessor_config.json: transformers reads them, and we check what we read."""

import json

import pytest

from dgia_jax.errors import UserError
from dgia_jax.models import families
from dgia_jax.models.pretrained import checkpoint_config, config_json
from tests.helpers import model_b

OBLONG = (96, 32)


@pytest.fixture
def folder(tmp_path):
  """A folder with the config.json of model B."""
  _, params = model_b.split(model_b.create(image_size=OBLONG))
  config_json.write(tmp_path, params, OBLONG, 0.02, families.CLIP)
  return tmp_path


def edit(folder, section=None, **fields):
  path = folder / config_json.FILE
  content = json.loads(path.read_text())
  (content[section] if section else content).update(fields)
  path.write_text(json.dumps(content))


def test_a_written_config_is_read_back(folder):
  clip = config_json.read(folder)
  assert clip == checkpoint_config.CheckpointConfig(
    model_b.SIZE, OBLONG, context_length=77, vocab_size=1000, has_trained_size=True
  )
  assert clip.grid == (6, 2)


def test_transformers_reads_a_written_config(folder):
  transformers = pytest.importorskip("transformers")
  config = transformers.AutoConfig.from_pretrained(folder)
  assert isinstance(config, transformers.CLIPConfig)
  assert config.text_config.eos_token_id == 999 and config.vision_config.image_size == 96
  assert config.logit_scale_init_value == pytest.approx(3.912023)


def test_fields_that_are_left_out_have_transformers_defaults(tmp_path):
  (tmp_path / config_json.FILE).write_text('{"model_type": "clip"}')
  clip = config_json.read(tmp_path)
  assert (clip.size.image.width, clip.size.text.heads, clip.size.patch_size) == (768, 8, 32)
  assert (clip.image_size, clip.context_length, clip.vocab_size) == ((224, 224), 77, 49408)


def test_the_older_name_of_a_section_is_read(folder):
  edit(folder, text_config=None, text_config_dict={"hidden_size": 64, "num_attention_heads": 4})
  assert config_json.read(folder).size.text.heads == 4


def test_unsupported_choices_are_listed(folder):
  edit(folder, "text_config", hidden_act="gelu")
  (problem,) = config_json.read(folder).unsupported
  assert problem == "text_config.hidden_act in its config.json is 'gelu', not 'quick_gelu'"


@pytest.mark.parametrize(
  "section, fields, message",
  [
    (None, {"model_type": "siglip2"}, "model_type is 'siglip2', not 'clip' or 'siglip'"),
    (None, {"vision_config": [1]}, "vision_config is not a JSON object"),
    (None, {"projection_dim": None}, "projection_dim is None"),
    (None, {"projection_dim": 10**9}, "projection_dim is 1000000000"),
    ("vision_config", {"hidden_size": "128"}, "hidden_size"),
    ("vision_config", {"hidden_size": True}, "hidden_size"),
    ("vision_config", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ("vision_config", {"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ("text_config", {"num_attention_heads": 3}, "3"),
    ("text_config", {"vocab_size": -1}, "vocab_size is -1"),
    ("vision_config", {"image_size": [96, 32]}, "image_size"),
    ("vision_config", {"trained_image_size": [96]}, "trained_image_size"),
    ("vision_config", {"trained_image_size": [64, 32]}, "trained_image_size"),
    ("vision_config", {"trained_image_size": [96, 0]}, "trained_image_size"),
    ("vision_config", {"trained_image_size": "96"}, "trained_image_size"),
  ],
)
def test_mistakes_name_the_file_and_the_field(folder, section, fields, message):
  edit(folder, section, **fields)
  with pytest.raises(UserError, match=f"config.json.*{message}"):
    config_json.read(folder)


def test_fields_of_no_interest_are_not_evaluated(folder):
  edit(folder, num_labels=10**12, id2label=3)
  assert config_json.read(folder).vocab_size == 1000
