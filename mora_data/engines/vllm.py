"""The model behind engine `vllm`: generation, and reward models with a classification head.

vLLM batches by itself, so a request goes over with all its samples and no sizes are searched for.
The model's own sampling defaults (generation_config.json) are left out, as requests name all that
counts. Choice i of a request has the seed + i, as on a vLLM server, so both give the same answers
but for rounding. Two models share a GPU when their `gpu_memory_utilization` leaves room for both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import SettingsError
from ..settings import RoleSettings
from ..text import one_line
from ..types import Answer, Request, Sampling, Task
from .engine import Piece, checked_length, outputs_answer, templated
from .replies import as_answer


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
            raise SettingsError(f"vLLM can't load {role.model} ({one_line(e)})") from e
        self._task = task
        self._extra: Mapping[str, Any] = role.extra_body
        self._tokenizer = self._llm.get_tokenizer()
        self._limit = int(self._llm.model_config.max_model_len)
        if not self._tokenizer.chat_template:
            way = "give an instruction-tuned model"
            if task != "chat":
                way = (
                    "engine transformers takes it with local.text_pair=true, if it was trained on"
                    " pairs of texts"
                )
            raise SettingsError(f"model {role.model} has no chat template: {way}")

    def encode(self, request: Request) -> Sequence[int]:
        """The prompt's tokens; vLLM would refuse a whole call for one that is too long."""
        is_chat = self._task == "chat"
        text = templated(self._tokenizer, request.messages, is_chat)
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return checked_length(ids, self._limit, is_chat)

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
                _answer(o, p.request.sampling) for o in sorted(out.outputs, key=lambda o: o.index)
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
        return [(outputs_answer([float(x) for x in o.outputs.probs]),) for o in outputs]


def _answer(output: Any, sampling: Sampling) -> Answer:
    logprobs = None
    if output.logprobs is not None:
        logprobs = tuple(
            (
                step[token].decoded_token or "",
                tuple(
                    (p.decoded_token or "", float(p.logprob))
                    for p in sorted(step.values(), key=lambda p: p.rank)[: sampling.logprobs]
                ),
            )
            for token, step in zip(output.token_ids, output.logprobs, strict=True)
        )
    reason = "length" if output.finish_reason == "length" else "stop"
    n = len(output.token_ids)
    return as_answer(output.text, reason, n, logprobs, keep=sampling.thoughts)
