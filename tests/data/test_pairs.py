"""The pair table: row order, lazy decoding, resizing and cheap pickling."""

import io
import pickle

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from dgia_jax.data import pairs as pairs_lib
from dgia_jax.data.images import UnreadableImageError
from dgia_jax.errors import UserError

_CAPTIONS = [["a", "b"], ["c"], [], ["d", "e", "f"], ["caf\u00e9 \u2014 \u9ed2"]]
_PERSONS = [7, 7, 3, 0, 3]


def _picture(image: int) -> Image.Image:
  """A smooth image; number 2 has another size, number 3 is grey, number 4 has transparency."""
  height, width = (40, 30) if image == 2 else (16, 8)
  y, x = np.mgrid[:height, :width]
  pixels = np.stack([10 * image + 0 * y, 4 * y, 6 * x], axis=-1).astype(np.uint8)
  return Image.fromarray(pixels).convert({3: "L", 4: "RGBA"}.get(image, "RGB"))


class PairsTestPedes(tfds.core.GeneratorBasedBuilder):
  """Five images in the features of the project's builders, and a split without captions."""

  VERSION = tfds.core.Version("1.0.0")
  url_infos = {}  # nothing is downloaded, and TFDS would search for checksums

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "captions": tfds.features.Sequence(tfds.features.Text()),
          "person_id": np.int64,
          "image_path": tfds.features.Text(),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(True), "val": self._generate_examples(False)}

  def _generate_examples(self, with_captions: bool):
    for image, (captions, person) in enumerate(zip(_CAPTIONS, _PERSONS, strict=True)):
      encoded = io.BytesIO()
      _picture(image).save(encoded, "png")
      encoded.seek(0)
      yield (
        image,
        {
          "image": encoded,
          "captions": captions if with_captions else [],
          "person_id": person,
          "image_path": f"{image}.png",
        },
      )


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  builder = PairsTestPedes(data_dir=str(folder), file_format="array_record")
  builder.download_and_prepare()
  return builder


def test_rows_follow_images_then_captions(builder):
  table = pairs_lib.load_pairs(builder, "train", (16, 8), "bilinear")
  assert (table.num_pairs, table.num_images) == (7, 5)
  assert table.captions == [caption for captions in _CAPTIONS for caption in captions]
  assert table.image_of_pair_N.tolist() == [0, 0, 1, 3, 3, 3, 4]
  assert table.image_of_pair_N.dtype == np.int32
  assert table.person_of_image_M.tolist() == _PERSONS
  assert table.person_of_image_M.dtype == np.int64
  assert table.person_of_pair_N.tolist() == [7, 7, 7, 0, 0, 0, 3]


def test_images_are_resized_to_one_size_and_unchanged_if_they_have_it(builder):
  images = pairs_lib.load_pairs(builder, "train", (16, 8), "bilinear").images
  assert len(images) == 5
  for m in range(5):
    assert images[m].shape == (16, 8, 3)
    assert images[m].dtype == np.uint8
    if m != 2:
      np.testing.assert_array_equal(images[m], np.asarray(_picture(m).convert("RGB")))
  expected = _picture(2).resize((8, 16), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(images[2], np.asarray(expected))
  bicubic = pairs_lib.load_pairs(builder, "train", (16, 8), "bicubic").images
  np.testing.assert_array_equal(bicubic[3], images[3])
  assert (bicubic[2] != images[2]).any()
  with pytest.raises(IndexError):
    images[5]


def test_reading_captions_decodes_no_image(builder, monkeypatch):
  def fail(*args, **kwargs):
    raise AssertionError("an image was opened")

  monkeypatch.setattr(Image, "open", fail)
  table = pairs_lib.load_pairs(builder, "train", (16, 8), "bilinear")
  assert table.num_pairs == 7
  with pytest.raises(UnreadableImageError, match="was opened"):
    table.images[0]


def test_records_are_read_in_several_parts(builder, monkeypatch):
  whole = pairs_lib.load_pairs(builder, "train", (16, 8), "bilinear")
  monkeypatch.setattr(pairs_lib, "_RECORDS_PER_READ", 2)
  assert pairs_lib.load_pairs(builder, "train", (16, 8), "bilinear").captions == whole.captions
  part = pairs_lib.load_pairs(builder, "train[:2]", (16, 8), "bilinear")
  assert (part.num_images, part.captions) == (2, ["a", "b", "c"])


def test_pickles_small_and_without_the_builder(builder):
  table = pairs_lib.load_pairs(builder, "train", (16, 8), "bilinear")
  table.images[0]  # open the files: handles must not get in the way
  pickled = pickle.dumps(table.images)
  assert len(pickled) < 10_000
  assert b"PairsTestPedes" not in pickled
  copy = pickle.loads(pickle.dumps(table))
  assert copy.captions == table.captions
  np.testing.assert_array_equal(copy.images[3], table.images[3])


def test_a_missing_or_empty_split_is_a_user_error(builder):
  with pytest.raises(UserError, match="no split 'test', only train, val"):
    pairs_lib.load_pairs(builder, "test", (16, 8), "bilinear")
  with pytest.raises(UserError, match="'val' of dataset 'pairs_test_pedes' holds no captions"):
    pairs_lib.load_pairs(builder, "val", (16, 8), "bilinear")


def test_from_arrays():
  images_MxHxWx3 = np.zeros((3, 4, 2, 3), np.uint8)
  table = pairs_lib.PairTable.from_arrays(images_MxHxWx3, [["a"], ["b", "c"], []], [5, 6, 5])
  assert (table.num_pairs, table.num_images) == (3, 3)
  assert table.image_of_pair_N.tolist() == [0, 1, 1]
  assert table.person_of_pair_N.tolist() == [5, 6, 6]
  with pytest.raises(ValueError, match="2 caption lists"):
    pairs_lib.PairTable.from_arrays(images_MxHxWx3, [["a"], ["b"]], [5, 6, 5])


@pytest.mark.parametrize(
  ("people", "has_identities"),
  [([4, 4, 9], True), ([-1, -1, -1], False), ([4, 5, 6], False), ([4], False)],
)
def test_identities_must_group_images(people, has_identities):
  images = np.zeros((len(people), 2, 2, 3), np.uint8)
  table = pairs_lib.PairTable.from_arrays(images, [["a"]] * len(people), people)
  assert table.has_identities == has_identities
