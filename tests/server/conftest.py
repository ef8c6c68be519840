"""One real vLLM server for all tests here; it serves the tiny trained model as `tiny`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.real_server import RealServer, vllm_python
from support.tiny import tiny_model


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with RealServer(tiny_model(vllm_python()), log) as running:
        yield running
