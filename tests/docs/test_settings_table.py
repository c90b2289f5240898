"""The table of settings is complete and up to date."""

from dgia_jax import config as config_lib
from docs.draw import settings_table
from tests.helpers.paths import ROOT


def leaves(tree, prefix=""):
  for name, value in tree.items():
    if isinstance(value, dict) and value:
      yield from leaves(value, f"{prefix}{name}.")
    else:
      yield prefix + name


def test_every_setting_is_listed_with_a_comment_and_its_default():
  found = settings_table.settings()
  base = config_lib.base()
  assert sorted(name for name, _, _ in found) == sorted(leaves(base.to_dict()))
  for name, value, comment in found:
    assert comment, f"{name} has no comment in dgia_jax/config.py"
    expected = base.to_dict()
    for part in name.split("."):
      expected = expected[part]
    assert eval(value) == expected, name


def test_the_page_is_up_to_date():
  page = (ROOT / "docs" / "configuration.md").read_text()
  written = "\n".join(settings_table.lines()) + "\n"
  assert page == written, "run: python -m docs.draw.settings_table > docs/configuration.md"
