"""Doubles for the agent's two neighbours: a controller that a test speaks through, an engine without a model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from .fake_controller import FakeController

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    fake = FakeController()
    await fake.start()
    try:
        yield fake
    finally:
        with contextlib.suppress(TimeoutError):
            await fake.stop()


@pytest.fixture
def engine_command() -> Callable[[str], tuple[str, ...]]:
    return lambda mode="serve": (sys.executable, "-P", str(FAKE_ENGINE), mode)
