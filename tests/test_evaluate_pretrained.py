"""`dgia evaluate --pretrained X` from end to end, for every kind of checkpoint."""

import json

import huggingface_hub
import numpy as np
import pytest
from absl import flags
from flax import nnx
from PIL import Image

from dgia_jax import __main__ as command
from dgia_jax.models import dual_encoder, families, pretrained
from dgia_jax.models.pretrained import tensor_names
from dgia_jax.search.retriever import Retriever
from tests.helpers import known_run, model_b, siglip_files, vocabularies
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.integration

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIDE, LENGTH = 64, 16  # pixels and tokens
WORDS = ("a man", "a woman", "red", "black", "a bag", "jeans", "the hat", "white")
# OpenAI's files do not hold the number of heads: one for 64 of the width.
CLIP_TOWER = dual_encoder.TowerSize(128, 2, 2)
CLIP_SIZE = dual_encoder.Size(CLIP_TOWER, CLIP_TOWER, feature_width=64, patch_size=8)
CLIP = ("--config.model.name=test_clip", f"--config.tokenizer.context_length={LENGTH}")
SIGLIP_TOWER = dual_encoder.TowerSize(32, 2, 2, mlp_width=80)
SIGLIP = dual_encoder.Size(SIGLIP_TOWER, SIGLIP_TOWER, 32, patch_size=8, family=families.SIGLIP)
SIGLIP_LENGTH, SIGLIP_VOCAB = 12, 120


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A dataset: its folder, and the images, captions and ids of its test split."""
  folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
  entries = []
  for number in range(36):
    person = number // 3
    colours = np.random.default_rng(person).integers(0, 256, (4, 2, 3))
    pixels = np.kron(colours, np.ones((SIDE // 4, SIDE // 2, 1))) + random.integers(-40, 40, (1, 3))
    name = f"{number:02d}.png"
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
    captions = [" ".join(random.permutation(WORDS)[:4]) for _ in range(2)]
    split = ("train", "val", "test", "test")[person % 4]
    entries.append({"id": person, "img_path": name, "captions": captions, "split": split})
  (folder / "annotations.json").write_text(json.dumps(entries))
  return folder, [entry for entry in entries if entry["split"] == "test"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  """A folder of CLIP as transformers writes it, with random weights and a small vocabulary."""
  folder = vocabularies.write("clip", tmp_path_factory.mktemp("clip") / "model")
  torch.manual_seed(0)
  tower = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2}
  tower |= {"num_hidden_layers": 2, "hidden_act": "quick_gelu"}
  end = len(vocabularies.TOKENS) - 1
  config = transformers.CLIPConfig(
    text_config=tower
    | {"vocab_size": end + 1, "max_position_embeddings": LENGTH}
    | {"eos_token_id": end, "bos_token_id": end - 1},
    vision_config=tower | {"patch_size": 8, "image_size": SIDE},
    projection_dim=64,
  )
  model = transformers.CLIPModel(config)
  with torch.no_grad():  # the usual weights are so small that all features are nearly equal
    for parameter in model.parameters():
      parameter.add_(0.05 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  return folder


@pytest.fixture(scope="module")
def clip_tensors(clip):
  """The weights of `clip` under OpenAI's names."""
  model = nnx.eval_shape(
    lambda: model_b.create((SIDE, SIDE), CLIP_SIZE, len(vocabularies.TOKENS), context_length=LENGTH)
  )
  template = model_b.split(model)[1]
  params = pretrained.load_pretrained(str(clip), template, image_size=(SIDE, SIDE)).params
  tensors = pretrained.write_tensors(params, tensor_names.OPENAI)
  return {name: torch.tensor(np.array(array)) for name, array in tensors.items()}


@pytest.fixture
def evaluate(data, tmp_path, monkeypatch, capfd):
  """A function that runs the command in this process: (exit code, output, errors)."""
  monkeypatch.chdir(ROOT)
  monkeypatch.setitem(dual_encoder.SIZES, "test_clip", CLIP_SIZE)
  monkeypatch.setitem(dual_encoder.SIZES, "test_siglip", SIGLIP)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "built"))
  folder, _ = data

  def run(*arguments, image_size=(SIDE, SIDE)):
    settings = [
      f"--config.dataset.annotations={folder}/annotations.json",
      f"--config.dataset.images={folder}", f"--config.dataset.image_size={image_size}",
      "--config.mesh.data=-1", "--config.eval.batch_size=16", f"--workdir={tmp_path / 'scored'}",
    ]  # fmt: skip
    code = 1
    try:
      code = command.main(["evaluate", "--config", "custom:tiny", *settings, *arguments])
    except SystemExit as end:
      code = end.code
    finally:
      flags.FLAGS.unparse_flags()
      for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)  # flags of fields belong to one parse
    return code, *capfd.readouterr()

  return run


def expected_scores(images_MxD, texts_NxD, image_ids, text_ids):
  """R@1 and mAP of a plain ranking in both directions, in percent."""

  def one_direction(queries, gallery, query_ids, gallery_ids):
    first, precision = [], []
    for query, person in zip(queries, query_ids, strict=True):
      correct = np.asarray(gallery_ids)[np.argsort(-(gallery @ query), kind="stable")] == person
      first.append(correct[0])
      precision.append((np.cumsum(correct) / np.arange(1, len(correct) + 1))[correct].mean())
    return {"R1": 100 * np.mean(first), "mAP": 100 * np.mean(precision)}

  unit = lambda features: features / np.linalg.norm(features, axis=1, keepdims=True)
  images, texts = unit(images_MxD), unit(texts_NxD)
  return {
    "t2i": one_direction(texts, images, text_ids, image_ids),
    "i2t": one_direction(images, texts, image_ids, text_ids),
  }


def scores_of(model, processor_pixels, tokens, entries):
  """The scores of a transformers model on the test split."""
  with torch.no_grad():
    images = model.get_image_features(pixel_values=processor_pixels)
    texts = model.get_text_features(**tokens)
  array = lambda features: getattr(features, "pooler_output", features).numpy()
  return expected_scores(array(images), array(texts), *ids_of(entries))


def ids_of(entries):
  """The people of the images, and those of the captions."""
  ids = [entry["id"] for entry in entries]
  return ids, [entry["id"] for entry in entries for _ in entry["captions"]]


def pixels_of(data, mean, std):
  folder, entries = data
  images = np.stack([np.asarray(Image.open(folder / entry["img_path"])) for entry in entries])
  pixels = (images / 255 - np.asarray(mean)) / np.asarray(std)
  return torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)


def captions_of(data):
  return [caption for entry in data[1] for caption in entry["captions"]]


@pytest.fixture(scope="module")
def clip_scores(data, clip):
  """What transformers' own features of `clip` score."""
  tokenizer = transformers.CLIPTokenizer.from_pretrained(clip)
  tokens = tokenizer(
    captions_of(data), padding="max_length", max_length=LENGTH, truncation=True,
    return_tensors="pt",
  )  # fmt: skip
  pixels = pixels_of(data, families.CLIP.pixels.mean, families.CLIP.pixels.std)
  return scores_of(transformers.CLIPModel.from_pretrained(clip), pixels, tokens, data[1])


def assert_scored(outcome, workdir, expected, pretrained_name):
  code, out, error = outcome
  assert code == 0, error
  results = json.loads((workdir / "results.json").read_text())
  for direction, scores in expected.items():
    for metric, value in scores.items():
      assert results["last"][direction][metric] == pytest.approx(value, abs=1e-3)
      assert 0 < value < 100  # a ranking that cannot be wrong would prove nothing
  assert results["last"]["epoch"] == 0 and results["pretrained"] == pretrained_name
  assert results["queries"] == 36 and results["gallery"] == 18 and results["dataset"] == "custom"
  assert set(results["last"]["t2i"]) == {"R1", "R5", "R10", "mAP", "mINP"}
  assert "results on test" in out and f"weights from {pretrained_name}" in out
  assert not (workdir / "config.json").exists()  # the directory is free for a run
  return out


def openai_archive(tensors, path):
  """A TorchScript archive as OpenAI publishes it."""

  class Module(torch.nn.Module):
    def forward(self, x):
      return x

  root = Module()
  for name, tensor in tensors.items():
    *parents, last = name.split(".")
    module = root
    for parent in parents:
      if not hasattr(module, parent):
        setattr(module, parent, Module())
      module = getattr(module, parent)
    module.register_parameter(last, torch.nn.Parameter(tensor))
  torch.jit.trace(root, torch.zeros(1)).save(str(path))


def authors_file(tensors, path):
  """best.pth of the released program."""
  state = {f"base_model.{name}": tensor for name, tensor in tensors.items()}
  state["image_bank"] = torch.zeros(24, 64)
  torch.save({"model": state, "optimizer": {"state": {}}, "epoch": 7}, path)


def irra_file(tensors, path):
  """A checkpoint of IRRA's family, saved by several processes, with its extra heads."""
  state = {f"module.base_model.{name}": tensor for name, tensor in tensors.items()}
  for head in ("classifier", "cross_attn.out_proj", "mlm_head.dense"):
    state[f"module.{head}.weight"] = torch.zeros(4, 4)
  torch.save({"model": state}, path)


def test_a_folder_of_transformers(evaluate, clip, clip_scores, tmp_path):
  for _ in range(2):  # the command can be repeated
    outcome = evaluate(f"--pretrained={clip}", f"--config.tokenizer.name={clip}", *CLIP)
    assert_scored(outcome, tmp_path / "scored", clip_scores, str(clip))
  assert (tmp_path / "scored" / "contact_sheet.png").exists()


def test_a_name_on_the_hub(evaluate, clip, clip_scores, tmp_path, monkeypatch):
  def model_info(*_, **__):
    raise ConnectionError("no network")

  monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(clip))
  name = "owner/model"
  outcome = evaluate(f"--pretrained={name}", f"--config.tokenizer.name={name}", *CLIP)
  assert_scored(outcome, tmp_path / "scored", clip_scores, name)


@pytest.mark.parametrize(
  "write, name, left_out",
  [
    (openai_archive, "ViT.pt", []),
    (authors_file, "best.pth", ["model.image_bank"]),
    (irra_file, "irra.pth", ["classifier.weight", "cross_attn.out_proj.weight", "mlm_head.dense"]),
  ],
)
def test_files_of_torch(evaluate, clip, clip_tensors, clip_scores, tmp_path, write, name, left_out):
  path = tmp_path / name
  write(clip_tensors, path)
  outcome = evaluate(f"--pretrained={path}", f"--config.tokenizer.name={clip}", *CLIP)
  out = " ".join(assert_scored(outcome, tmp_path / "scored", clip_scores, str(path)).split())
  assert all(tensor in out for tensor in left_out), out


def test_a_folder_of_siglip(evaluate, data, tmp_path):
  folder = tmp_path / "siglip"
  folder.mkdir()
  siglip_files.write_siglip_2(folder, SIGLIP_VOCAB)
  model = dual_encoder.DualEncoder(
    SIGLIP, image_size=(SIDE, SIDE), context_length=SIGLIP_LENGTH, vocab_size=SIGLIP_VOCAB,
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  _, params = model_b.split(model)
  pretrained.write_folder(folder, params, image_size=(SIDE, SIDE), family=families.SIGLIP)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  tokens = tokenizer(
    captions_of(data), padding="max_length", max_length=SIGLIP_LENGTH, truncation=True,
    padding_side="right", return_tensors="pt",
  )  # fmt: skip
  expected = scores_of(
    transformers.AutoModel.from_pretrained(folder),
    pixels_of(data, families.SIGLIP.pixels.mean, families.SIGLIP.pixels.std),
    {"input_ids": tokens["input_ids"]},
    data[1],
  )
  outcome = evaluate(
    f"--pretrained={folder}", f"--config.tokenizer.name={folder}",
    "--config.model.name=test_siglip", f"--config.tokenizer.context_length={SIGLIP_LENGTH}",
  )  # fmt: skip
  assert_scored(outcome, tmp_path / "scored", expected, str(folder))


def test_a_run_on_another_dataset(evaluate, data, tmp_path):
  run = tmp_path / "run"
  run.mkdir()
  known_run.write_run(run)
  folder, entries = data
  retriever = Retriever.from_run(run)
  expected = expected_scores(
    retriever.embed_images(folder / entry["img_path"] for entry in entries),
    retriever.embed_texts(captions_of(data)),
    *ids_of(entries),
  )
  arguments = [f"--pretrained={run}", f"--config.tokenizer.context_length={LENGTH}"]
  outcome = evaluate(*arguments, image_size=known_run.IMAGE_SIZE)
  assert_scored(outcome, tmp_path / "scored", expected, str(run))


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["--pretrained=nothing/here.pth"], ["nothing/here.pth"]),
    (["--pretrained=README.md"], ["README.md"]),
    (["--pretrained"], ["--pretrained"]),
    ([], ["holds no run"]),
    (["--pretrained=CLIP", "--config.model.name=small"], ["config.model.name=test_clip"]),
    (["--pretrained=CLIP", "--config.tokenizer.name=docs"], ["tokenizer.name"]),
  ],
)
def test_mistakes_are_one_line(evaluate, clip, tmp_path, arguments, words):
  arguments = [argument.replace("CLIP", str(clip)) for argument in arguments]
  code, _, error = evaluate(*CLIP, f"--config.tokenizer.name={clip}", *arguments)
  lines = [line for line in error.splitlines() if line.startswith("error:")]
  assert code == 2 and "Traceback" not in error and len(lines) == 1, error
  assert all(word in lines[0] for word in words), lines[0]
  assert not (tmp_path / "scored" / "results.json").exists()
