"""Tests run beside each other: whose cores are whole when is not theirs to find out, but for those of the question."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rnnpar.study import measure


@pytest.fixture(autouse=True)
def cores(monkeypatch):
    """Cores that are whole, or what the test puts into `answers`: one for each time that they are asked."""
    answers: list[bool] = []
    fake = SimpleNamespace(answers=answers, asked=0)

    def whole():
        fake.asked += 1
        return answers.pop(0) if answers else True

    fake.whole = whole
    monkeypatch.setattr(measure, "cores", lambda: fake)
    return fake
