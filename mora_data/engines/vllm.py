"""A vLLM engine in this process, without a server: generation and reward models with a
classification head.

    policy: {engine: vllm, model: org/policy-8b, local: {options: {gpu_memory_utilization: 0.45,
        tensor_parallel_size: 2}}}

vLLM batches by itself, so a request goes over with all its samples and no sizes are searched for.
The model's own sampling defaults (generation_config.json) are left out, as requests name all that
counts. Choice i of a request has the seed + i, as on a vLLM server, so both give the same answers
but for rounding. Two models share a GPU when their `gpu_memory_utilization` leaves room for both.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from ..errors import ExtraMissing, SettingsError
from ..run.stats import RunStats
from ..settings import BuildSettings, RoleSettings
from ..types import Answer, Request, Task
from .batching import Driver, InProcess, Piece, Refused, Source


def opened(
    role: RoleSettings, build: BuildSettings, stats: RunStats, shared: dict[str, Any]
) -> InProcess:
    """A vLLM engine in this process (extra `vllm`): generation and classifiers, without a server.

    Raises:
        ExtraMissing: vllm is not installed.
        SettingsError: no model is named.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ExtraMissing(
            "engine 'vllm' needs vllm: pip install 'mora-data[vllm]' (Linux with a GPU), or start a"
            " vLLM server anywhere and give --base-url"
        )
    driver: Driver = shared.get("driver") or shared.setdefault("driver", Driver(stats))

    def source(task: Task) -> Source:
        key = f"vllm {role.model} {role.revision} {task} {role.local.model_dump_json()}"
        if key not in shared:
            shared[key] = Source(role.model or "", lambda: Vllm(role, task), role.local, whole=True)
        made: Source = shared[key]
        return made

    return InProcess(driver, source, role, stats)


class Vllm:
    """A loaded model."""

    def __init__(self, role: RoleSettings, task: Task) -> None:
        quiet = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        }
        # stdout is for results
        os.environ.update({k: v for k, v in quiet.items() if k not in os.environ})
        from vllm import LLM

        local = role.local
        options: dict[str, Any] = {
            "dtype": local.dtype,
            "max_model_len": local.max_length,
            "enable_prefix_caching": task == "chat",
            "generation_config": "vllm",
            "max_logprobs": 20,
            "disable_log_stats": True,
            **local.options,
        }
        try:
            self._llm = LLM(
                role.model,
                revision=role.revision,
                runner="generate" if task == "chat" else "pooling",
                **options,
            )
        except (OSError, ValueError, RuntimeError, TypeError) as e:
            raise SettingsError(
                f"vLLM can't load {role.model} ({' '.join(str(e).split())[:200]})"
            ) from e
        self._task = task
        self._extra: Mapping[str, Any] = role.extra_body
        self._tokenizer = self._llm.get_tokenizer()
        self._limit = int(self._llm.model_config.max_model_len)
        if not self._tokenizer.chat_template:
            raise SettingsError(
                f"model {role.model} has no chat template: "
                + (
                    "give an instruction-tuned model"
                    if task == "chat"
                    else (
                        "engine transformers takes it with local.text_pair=true, if it was trained"
                        " on pairs of texts"
                    )
                )
            )

    def encode(self, request: Request) -> Sequence[int]:
        """The prompt's tokens; vLLM would refuse a whole call for one that is too long."""
        try:
            text = self._tokenizer.apply_chat_template(
                list(request.messages), tokenize=False, add_generation_prompt=self._task == "chat"
            )
        # a template is the model's own program: whatever it raises, this conversation is not for it
        except Exception as e:
            raise Refused(
                "the model's chat template refuses the conversation:"
                f" {' '.join(str(e).split())[:150]}"
            ) from e
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        if not ids or len(ids) + (self._task == "chat") > self._limit:
            raise Refused(
                f"the prompt has {len(ids)} tokens, the model takes {self._limit} with its answer"
            )
        return ids

    def run(self, pieces: Sequence[Piece]) -> Sequence[tuple[Answer, ...]]:
        """The answers to each piece."""
        return self._chat(pieces) if self._task == "chat" else self._classify(pieces)

    def close(self) -> None:
        """End the engine's process and free the device."""
        self._llm.llm_engine.engine_core.shutdown()

    def _chat(self, pieces: Sequence[Piece]) -> list[tuple[Answer, ...]]:
        outputs = self._llm.chat(
            [list(p.request.messages) for p in pieces],
            [self._sampling(p) for p in pieces],
            use_tqdm=False,
        )
        return [
            tuple(
                _answer(o, p.request.sampling.logprobs)
                for o in sorted(out.outputs, key=lambda o: o.index)
            )
            for p, out in zip(pieces, outputs, strict=True)
        ]

    def _sampling(self, piece: Piece) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        s = piece.request.sampling
        form = None
        if s.schema is not None:
            shape: dict[str, Any] = (
                {"json": dict(s.schema)} if s.pattern is None else {"regex": s.pattern}
            )
            form = StructuredOutputsParams(**shape)
        room = self._limit - len(piece.tokens)
        return SamplingParams(
            n=piece.n,
            temperature=s.temperature,
            top_p=s.top_p,
            max_tokens=min(s.max_tokens, room),
            seed=piece.seed,
            stop=list(s.stop) or None,
            logprobs=s.logprobs or None,
            structured_outputs=form,
            **self._extra,
        )

    def _classify(self, pieces: Sequence[Piece]) -> list[tuple[Answer, ...]]:
        from vllm import PoolingParams

        outputs = self._llm.classify(
            [{"prompt_token_ids": list(p.tokens)} for p in pieces],
            pooling_params=PoolingParams(use_activation=False),
            use_tqdm=False,
        )
        return [(_outputs([float(x) for x in o.outputs.probs]),) for o in outputs]


def _outputs(values: Sequence[float]) -> Answer:
    if not all(math.isfinite(v) for v in values):
        return Answer("", "error", error="outputs_not_finite")
    return Answer(orjson.dumps(list(values)).decode())


def _answer(output: Any, top: int) -> Answer:
    logprobs = None
    if output.logprobs is not None:
        logprobs = tuple(
            (
                step[token].decoded_token or "",
                tuple(
                    (p.decoded_token or "", float(p.logprob))
                    for p in sorted(step.values(), key=lambda p: p.rank)[:top]
                ),
            )
            for token, step in zip(output.token_ids, output.logprobs, strict=True)
        )
    return Answer(
        output.text,
        "length" if output.finish_reason == "length" else "stop",
        len(output.token_ids),
        logprobs=logprobs,
    )
