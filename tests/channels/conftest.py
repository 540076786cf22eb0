"""What holds for all tests of links."""

import pytest

from caplai.channels import esme


@pytest.fixture(autouse=True)
def unhurried(monkeypatch):
    """Engine, carrier and test share one loop here, and perhaps a slow machine: a turn that takes long is no hang."""
    monkeypatch.setattr(esme, "HUNG", 30.0)
