"""Tests of the experiments train, measure and start processes: `make test` leaves them out."""

import pathlib

import pytest

HERE = pathlib.Path(__file__).parent
FAST = {"test_tables.py"}  # declarations only


def pytest_collection_modifyitems(items):
  for item in items:
    if HERE in item.path.parents and item.path.name not in FAST:
      item.add_marker(pytest.mark.integration)
