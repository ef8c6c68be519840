"""One server with the real instruct model for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.real_server import LlamaServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    with LlamaServer(tmp_path_factory.mktemp("llm") / "server.log") as running:
        yield running
