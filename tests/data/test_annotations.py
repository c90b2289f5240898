"""Every known form of annotation file is read, and every known fault is named."""

import json

import pytest

from dgia_jax.data import annotations
from dgia_jax.errors import UserError


def _entry(**changes):
  entry = {"id": 3, "img_path": "a/b.jpg", "captions": ["a man", "in red"], "split": "train"}
  entry.update(changes)
  return {key: value for key, value in entry.items() if value is not ...}


def _read(tmp_path, *entries, name="a.json", raw=None):
  file = tmp_path / name
  file.write_bytes(raw if raw is not None else json.dumps(list(entries)).encode())
  return annotations.read_annotations([file])


def _only(tmp_path, **changes):
  read = _read(tmp_path, _entry(**changes))
  assert read.errors == ()
  (record,) = read.records
  return record, read


def test_plain_record(tmp_path):
  record, read = _only(tmp_path)
  assert record == annotations.ImageRecord("a/b.jpg", ("a man", "in red"), 3, "train")
  assert (read.identities, read.notes) == ("known", ())


@pytest.mark.parametrize("field", ["file_path", "image_path", "image", "file_name"])
def test_path_fields(tmp_path, field):
  assert _only(tmp_path, img_path=..., **{field: "x.png"})[0].path == "x.png"


@pytest.mark.parametrize(
  ("name", "split"),
  [("validation", "val"), ("valid", "val"), ("dev", "val"), ("Training", "train"),
   ("gallery", "test"), ("query", "test"), ("TEST", "test")],
)  # fmt: skip
def test_other_split_names_are_accepted_and_noted(tmp_path, name, split):
  record, read = _only(tmp_path, split=name)
  assert record.split == split
  assert name in read.notes[0] and split in read.notes[0]


def test_windows_and_relative_paths(tmp_path):
  assert _only(tmp_path, img_path=".\\imgs\\sub\\x.jpg")[0].path == "imgs/sub/x.jpg"


def test_caption_as_text_and_empty_captions(tmp_path):
  assert _only(tmp_path, captions="a man")[0].captions == ("a man",)
  assert _only(tmp_path, captions=..., caption=" a man ")[0].captions == ("a man",)
  record, read = _only(tmp_path, captions=["", "ok", "  ", None])
  assert record.captions == ("ok",)
  assert "blank captions left out: 3" in read.notes[0]


@pytest.mark.parametrize("caption", ["", " \n", "&nbsp;", "\u200b", "\x00", "&amp;nbsp; "])
def test_captions_that_the_tokenizer_would_empty_are_left_out(tmp_path, caption):
  record, read = _only(tmp_path, captions=[caption, "a man & a dog", "红", "!"])
  assert record.captions == ("a man & a dog", "红", "!")
  assert "blank captions left out: 1" in read.notes[0]


def test_image_without_caption_is_left_out_by_path(tmp_path):
  read = _read(tmp_path, _entry(), _entry(img_path="none.jpg", captions=[" "]))
  assert [record.path for record in read.records] == ["a/b.jpg"]
  assert any("no caption: 1 (first: none.jpg)" in note for note in read.notes)


def test_broken_characters_do_not_reach_the_dataset(tmp_path):
  record, read = _only(tmp_path, captions=["bag \ud83d here", "naïve 红色"])
  assert record.captions == ("bag ? here", "naïve 红色")
  assert "broken characters" in read.notes[0]
  assert _only(tmp_path, img_path="x\ud83d.jpg")[0].path == "x?.jpg"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(tmp_path, encoding):
  raw = json.dumps([_entry(captions=["é"])], ensure_ascii=False).encode(encoding)
  assert _read(tmp_path, raw=raw).records[0].captions == ("é",)


def test_json_lines_with_windows_newlines(tmp_path):
  lines = [json.dumps(_entry(img_path=f"{n}.jpg")) for n in range(3)]
  raw = ("\ufeff" + "\r\n".join([*lines, "", ""])).encode("utf-8")
  assert [r.path for r in _read(tmp_path, raw=raw).records] == ["0.jpg", "1.jpg", "2.jpg"]
  assert len(_read(tmp_path, raw=lines[0].encode()).records) == 1


def test_other_top_levels(tmp_path):
  by_split = {"train": [_entry(split=...)], "validation": [_entry(split=..., img_path="v.jpg")]}
  read = _read(tmp_path, raw=json.dumps(by_split).encode())
  assert [record.split for record in read.records] == ["train", "val"]
  wrapped = {"version": 2, "annotations": [_entry()]}
  assert len(_read(tmp_path, raw=json.dumps(wrapped).encode()).records) == 1
  pretraining = {"x/1.jpg": "a man", "x/2.jpg": ["a", "b"]}
  read = _read(tmp_path, raw=json.dumps(pretraining).encode())
  assert [(r.path, len(r.captions), r.split) for r in read.records] == [
    ("x/1.jpg", 1, "train"), ("x/2.jpg", 2, "train")]  # fmt: skip
  assert read.identities == "unknown"


def test_files_named_like_splits(tmp_path):
  for name in ("train", "test"):
    (tmp_path / f"{name}.json").write_text(json.dumps([_entry(split=..., img_path=name)]))
  read = annotations.read_annotations([tmp_path / "train.json", tmp_path / "test.json"])
  assert [record.split for record in read.records] == ["train", "test"]


@pytest.mark.parametrize(
  ("ids", "people"),
  [
    ([7, 3, 7], [7, 3, 7]),
    (["7", 3, 7], [7, 3, 7]),
    ([12.0, 3, 3], [12, 3, 3]),
    ([2**62, 1, 1], [2**62, 1, 1]),
    ([str(2**70), "5", str(2**70)], [0, 1, 0]),  # beyond 64 bits: ranks in sorted order of text
    (["b", "a", "b"], [1, 0, 1]),
    (["007", "7", "07"], [0, 2, 1]),
    ([-1, 4, -1], [-1, 4, -1]),
  ],
)
def test_ids(tmp_path, ids, people):
  entries = [_entry(id=value, img_path=f"{n}.jpg") for n, value in enumerate(ids)]
  read = _read(tmp_path, *entries)
  assert [record.person for record in read.records] == people
  again = _read(tmp_path, *reversed(entries))
  assert [record.person for record in reversed(again.records)] == people


def test_images_without_id_are_people_of_their_own(tmp_path):
  ids = [5, ..., None, float("nan"), "", 9]
  read = _read(tmp_path, *(_entry(id=v, img_path=f"{n}.jpg") for n, v in enumerate(ids)))
  assert [record.person for record in read.records] == [5, 10, 11, 12, 13, 9]
  assert read.identities == "partly known"
  assert "4 images" in read.notes[0]
  read = _read(tmp_path, *(_entry(id=..., img_path=f"{n}.jpg") for n in range(3)))
  assert read.identities == "unknown"
  assert len({record.person for record in read.records}) == 3


def test_ids_stay_in_int64_next_to_unknown_ones(tmp_path):
  read = _read(tmp_path, _entry(id=2**63 - 1), _entry(id=..., img_path="u.jpg"))
  assert [record.person for record in read.records] == [0, 1]


def test_one_entry_per_caption_makes_one_image(tmp_path):
  read = _read(
    tmp_path,
    _entry(captions=["a"]),
    _entry(captions=["b"], img_path="a\\b.jpg"),
    _entry(captions="a"),
  )
  assert [record.captions for record in read.records] == [("a", "b")]
  assert "more than once" in read.notes[0]


def test_duplicate_captions_of_one_entry_stay(tmp_path):
  assert _only(tmp_path, captions=["a", "a"])[0].captions == ("a", "a")


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(split=...), ['without "split"', "a/b.jpg"]),
    (dict(split=None), ['without "split"', "a/b.jpg"]),
    (dict(split="probe"), ["split is none of train", "'probe'", "a/b.jpg"]),
    (dict(split=3), ["split is none of", "split 3"]),
    (dict(img_path=...), ["without an image path", "a.json [1]"]),
    (dict(img_path=17), ["without an image path"]),
    (dict(captions=[4]), ["captions that are not text", "a/b.jpg"]),
    (dict(captions={"en": "a"}), ["captions that are not text"]),
    (dict(id=True), ["'id' is neither"]),
    (dict(id=1.5), ["'id' is neither"]),
    (dict(id=[1]), ["'id' is neither"]),
    (dict(id={"a": [[]]}), ["'id' is neither"]),
    (dict(id=float("inf")), ["'id' is neither"]),
    (dict(id=2**63), ["does not fit into 64 bits", "a/b.jpg"]),
    (dict(id=1e300), ["does not fit into 64 bits"]),
    (dict(id="007"), ["'id' is text", "a/b.jpg, id '007'"]),
    (dict(split=[[1]]), ["split a list"]),
    (dict(split="x" * 100), [f"split '{'x' * 40}'..."]),
  ],
)
def test_faulty_entries_are_errors_that_name_them(tmp_path, changes, words):
  read = _read(tmp_path, _entry(img_path="good.jpg"), _entry(**changes))
  assert [record.path for record in read.records] == ["good.jpg"]
  (error,) = read.errors
  for word in words:
    assert word in error


def test_contradicting_entries_of_one_image(tmp_path):
  read = _read(tmp_path, _entry(), _entry(id=4), _entry(split="test"))
  assert "a/b.jpg, ids 3 and 4" in read.errors[0]
  assert "a/b.jpg, train and test" in read.errors[1]


def test_many_faults_of_one_kind_are_one_line(tmp_path):
  read = _read(tmp_path, *(_entry(split=..., img_path=f"{n}.jpg") for n in range(9)), "text")
  assert len(read.errors) == 2
  assert '"test"): 9 (first: a.json [0], 0.jpg; ' in read.errors[0]
  assert "not objects: 1" in read.errors[1]


@pytest.mark.parametrize(
  ("raw", "words"),
  [
    (b'[{"id": 1,\n "img_path"', "not valid JSON"),
    (b'{"id": 1}\n{"id": ', "at line 2"),
    (b"", "not valid JSON"),
    (b"[]", "an empty list"),
    (b"3", "a single int"),
    (b'{"images": [{"id": 1}], "annotations": [{"id": 1}]}', "keys 'images', 'annotations'"),
    ('[{"captions": "\u00e9"}]'.encode("latin-1"), "save the JSON as UTF-8"),
  ],
)
def test_unusable_files_raise_and_name_the_file(tmp_path, raw, words):
  with pytest.raises(UserError, match="a.json") as caught:
    _read(tmp_path, raw=raw)
  assert words in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_repeated_key_is_named(tmp_path):
  read = _read(tmp_path, raw=b'[{"id": 1, "id": 2, "img_path": "a", "captions": ["b"]}]')
  assert read.errors == ("entries that have a key twice: 1 (first: a.json [0], key 'id')",)
  for raw in (b'{"train": [], "train": []}', b'{"a.jpg": "a", "a.jpg": "b"}'):
    with pytest.raises(UserError, match="has the key '(train|a.jpg)' twice"):
      _read(tmp_path, raw=raw)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a": 1}\n' + b'{"a":' * 100_000])
def test_deep_nesting_is_one_line(tmp_path, raw):
  with pytest.raises(UserError, match="a.json.* nested too deeply"):
    _read(tmp_path, raw=raw)


def test_an_integer_that_python_refuses_to_read_is_named(tmp_path):
  raw = b'[{"id": %s, "img_path": "a.jpg", "captions": ["b"], "split": "val"}]' % (b"9" * 5000)
  (error,) = _read(tmp_path, raw=raw).errors
  assert "64 bits" in error and error.endswith("a.json [0], a.jpg)")


def test_control_characters_are_escaped_in_remarks(tmp_path):
  read = _read(tmp_path, _entry(img_path="\x1b[2J\n.jpg", split="x\ud83d"))
  assert r"\x1b[2J\n.jpg, split 'x\ud83d'" in read.errors[0].replace("\\\\", "\\")
  assert read.errors[0].isprintable()


def test_missing_file():
  with pytest.raises(UserError, match="nowhere.json"):
    annotations.read_annotations(["nowhere.json"])
