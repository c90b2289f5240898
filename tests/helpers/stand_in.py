"""Objects that stand in for others in a test."""

from typing import Any
from unittest import mock


def stand_in(kind: type, **attributes: Any) -> Any:
  """A mock that the checks of types take for an instance."""
  fake = mock.MagicMock(**attributes)
  fake.__class__ = kind
  return fake
