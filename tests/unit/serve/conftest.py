"""A fake engine, the toy model, and a client that talks to them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from tests.unit.serve.fake_engine import FakeEngine, client_for, toy_model

from hearth.serve.model import ServedModel


@pytest.fixture
def model() -> ServedModel:
    return toy_model()


@pytest.fixture
def engine(model: ServedModel) -> FakeEngine:
    return FakeEngine(model.text.tokenizer)


@pytest.fixture
async def client(engine: FakeEngine, model: ServedModel) -> AsyncIterator[httpx.AsyncClient]:
    async with client_for(engine, model) as found:
        yield found
