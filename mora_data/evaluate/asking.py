"""Answers, scores and comparisons of every model on every prompt."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ..engines import connect
from ..engines.cached_client import CachedClient
from ..engines.engine import Engine, Shared
from ..errors import PendingRetry
from ..rewards import Reward
from ..rewards import load as load_reward
from ..rewards.rules import flags
from ..run.log import AnswerLog
from ..run.progress import Progress
from ..run.stats import RunStats
from ..run.tasks import all_of, wind_down
from ..settings import BuildSettings
from ..templating import load as load_template
from ..templating import nonce
from ..text import n_tokens
from ..types import DEGENERATE, Answer, Request, Sampling
from .benchmarks import BENCHMARKS, BY_ANSWER, LETTER, EvalPrompt, chosen
from .inputs import Model, Options, read_answers, role_of

T = TypeVar("T")
RETRIES = 2
WINNER = {
    "type": "object",
    "properties": {"winner": {"enum": ["first", "second", "tie"]}},
    "required": ["winner"],
    "additionalProperties": False,
}
PATTERN = r'\{"winner": "(first|second|tie)"\}'


async def windowed(
    work: Callable[[EvalPrompt], Awaitable[T]],
    prompts: Sequence[EvalPrompt],
    engines: Sequence[Engine],
    stats: RunStats,
) -> list[T]:
    """The results in order. A prompt is begun while every engine wants more, so that few of them
    are open at once."""
    tasks: list[asyncio.Future[T]] = []
    ended, failed = asyncio.Event(), asyncio.Event()

    def end(task: asyncio.Future[T]) -> None:
        stats.open_prompts -= 1
        ended.set()
        if task.cancelled() or task.exception() is not None:
            failed.set()

    async def room() -> None:
        ended.clear()
        waits = [
            asyncio.ensure_future(w)
            for w in (ended.wait(), *(e.changed() for e in engines if not e.wants_more))
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for w in waits:
                w.cancel()

    try:
        for prompt in prompts:
            while not failed.is_set() and not all(e.wants_more for e in engines):
                await room()
            if failed.is_set():
                break
            stats.prompts_begun += 1
            stats.open_prompts += 1
            tasks.append(asyncio.ensure_future(work(prompt)))
            tasks[-1].add_done_callback(end)
            await asyncio.sleep(0)
    except asyncio.CancelledError:
        await wind_down([t for t in tasks if not t.done()], None)
        raise
    return await all_of(tasks)


class Evaluation:
    """Asks and scores; `rows` holds one row per model, prompt and sample."""

    def __init__(
        self,
        models: Sequence[Model],
        settings: BuildSettings,
        options: Options,
        stats: RunStats,
        progress: Progress,
    ) -> None:
        self.models, self.settings, self.options, self.stats, self.progress = (
            models,
            settings,
            options,
            stats,
            progress,
        )
        self.rewards: dict[str, list[Reward]] = {
            d: [load_reward(d, r, settings) for r in settings.reward_sources(d)]
            for d in settings.dimensions
        }
        self._pairwise = load_template(
            "evaluate",
            "pairwise",
            frozenset(("question", "history", "first", "second", "dimensions", "nonce")),
        )
        self._asks: dict[str, CachedClient] = {}
        self._recorded: dict[str, dict[str, list[dict[str, Any]]]] = {}
        self.rows: list[dict[str, Any]] = []
        self.simulated = False
        self._judge_reads = options.pairwise
        self.judge = ""

    async def run(self, prompts: Sequence[EvalPrompt], log: AnswerLog) -> None:
        """Every model on every prompt.

        Raises:
            MoraError: an endpoint can't be used; what was answered is in the log.
        """
        shared = Shared()
        engines: list[Engine] = []
        try:
            for model in self.models:
                role = role_of(model, self.settings.role("policy"))
                if role is None:
                    self._recorded[model.label] = read_answers(Path(model.where))
                policy = role or self.settings.role("judge")
                made = connect(
                    self.settings.model_copy(update={"policy": policy}),
                    False,
                    self.stats,
                    shared=shared,
                )
                engines += made.values()
                # the simulator scores, it does not compare
                self._judge_reads &= not made["judge"].simulated
                self.simulated |= made["judge"].simulated or (
                    role is not None and made["policy"].simulated
                )
                self.judge = made["judge"].model
                self._asks[model.label] = CachedClient(made, log, self.settings.seed, self.stats)
            self.progress.start("prompts", len(prompts))
            for rows in await windowed(
                self._prompt, prompts, list({id(e): e for e in engines}.values()), self.stats
            ):
                self.rows += rows
            self.progress.finish()
        finally:
            for engine in {id(e): e for e in engines}.values():
                await engine.close()

    async def _prompt(self, prompt: EvalPrompt) -> list[dict[str, Any]]:
        found = await all_of(self._model(m, prompt) for m in self.models)
        answers = {m.label: a for m, (a, _) in zip(self.models, found, strict=True)}
        scored = [row for _, rows in found for row in rows]
        if self._judge_reads:
            await all_of(self._compare(row, prompt, answers) for row in scored)
        self.progress.step()
        return scored

    async def _model(
        self, model: Model, prompt: EvalPrompt
    ) -> tuple[list[Answer], list[dict[str, Any]]]:
        answers = await self._answers(model, prompt)
        return answers, await all_of(self._row(model, prompt, i, a) for i, a in enumerate(answers))

    async def _answers(self, model: Model, prompt: EvalPrompt) -> list[Answer]:
        n = 1 if prompt.metric else self.options.n
        if model.label in self._recorded:
            found = [
                r
                for r in self._recorded[model.label].get(prompt.prompt_id, [])
                if r.get("mc1") is None
            ][:n]
            missing = Answer("", "error", error="not in the file of answers")
            return [Answer(r["answer"], r["finish_reason"]) for r in found] + [missing] * (
                n - len(found)
            )
        r = self.settings.role("policy")
        sampling = (
            LETTER
            if prompt.metric
            else Sampling(r.temperature, r.top_p, r.max_tokens, tuple(r.stop))
        )
        request = Request(
            "policy", prompt.messages, sampling, f"evaluate:{model.label}", prompt.prompt_id, n
        )
        try:
            answers = await self._asks[model.label](request)
            # servers may refuse log-probabilities
            if prompt.metric and answers[0].error is not None:
                answers = await self._asks[model.label](
                    replace(request, sampling=replace(LETTER, logprobs=0))
                )
            return answers
        except PendingRetry as e:
            return [Answer("", "error", error=f"owed: {e}")] * n

    async def _row(
        self, model: Model, prompt: EvalPrompt, index: int, answer: Answer
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "set": prompt.part,
            "prompt_id": prompt.prompt_id,
            "group": prompt.group,
            "model": model.name,
            "seed": model.seed,
            "index": index,
            "answer": answer.text,
            "error": answer.error,
        }
        if prompt.metric:
            return row | self._choice(model, prompt, answer)
        benchmark = BENCHMARKS.get(prompt.part)
        dims = [
            d
            for d in self.rewards
            if benchmark is None or benchmark.rewards is None or d in benchmark.rewards
        ]
        row |= {f"reward_{d}": None for d in dims}
        if answer.error is not None:
            return row
        seen = flags(answer.text, answer.finish_reason)
        row |= {
            "refusal": float("refusal" in seen),
            "degenerate": float(bool(DEGENERATE & set(seen))),
            "length": n_tokens(answer.text),
        }
        if model.label in self._recorded:
            row["kl"] = self._recorded[model.label][prompt.prompt_id][index].get("kl")
        if answer.text.strip():
            ask = self._asks[model.label]
            values = await all_of(self._reward(ask, d, prompt, answer.text) for d in dims)
            row |= {f"reward_{d}": v for d, v in zip(dims, values, strict=True)}
        return row

    def _choice(self, model: Model, prompt: EvalPrompt, answer: Answer) -> dict[str, Any]:
        """The metric of a multiple choice: what the file of answers computed, else what the reply
        says."""
        for r in self._recorded.get(model.label, {}).get(prompt.question_id, ()):
            if isinstance(value := r.get(prompt.metric), (int, float)):
                return {
                    "answer": r["answer"],
                    "error": None,
                    prompt.metric: float(value),
                    "method": BY_ANSWER,
                }
        if answer.error is not None:
            return {prompt.metric: None}
        value, method = chosen(prompt, answer)
        return {prompt.metric: value, "method": method}

    async def _reward(
        self, ask: CachedClient, dimension: str, prompt: EvalPrompt, text: str
    ) -> float | None:
        """Weighted mean of the dimension's sources; None when any of them has none."""
        sources = self.rewards[dimension]
        try:
            found = await all_of(
                r.scores(ask, prompt.prompt_id, prompt.messages, [text], "score:evaluate")
                for r in sources
            )
        except PendingRetry:
            return None
        weights = [s.weight for s in self.settings.reward_sources(dimension)]
        values = [scores[0].value for scores in found]
        if any(v is None for v in values):
            return None
        return sum(w * v for w, v in zip(weights, values, strict=True) if v is not None) / sum(
            weights
        )

    async def _compare(
        self, row: dict[str, Any], prompt: EvalPrompt, answers: Mapping[str, list[Answer]]
    ) -> None:
        """Adds `win` (1, 0.5, 0; mean of both orders) and `length_gap` against the reference's
        answer of the same index."""
        name, benchmark = self.options.reference, BENCHMARKS.get(prompt.part)
        if benchmark is not None and not benchmark.pairwise:
            return
        seeds = [m.seed for m in self.models if m.name == name]
        if row["model"] == name or not seeds or row["error"] is not None:
            return
        other = answers[f"{name}@{row['seed'] if row['seed'] in seeds else seeds[0]}"][row["index"]]
        if other.error is not None:
            return
        ask = self._asks[f"{row['model']}@{row['seed']}"]
        first, second = await all_of(
            [
                self._winner(ask, prompt, row["answer"], other.text),
                self._winner(ask, prompt, other.text, row["answer"]),
            ]
        )
        row["win"] = None if first is None or second is None else (first + 1 - second) / 2
        row["length_gap"] = row["length"] - n_tokens(other.text)

    async def _winner(
        self, ask: CachedClient, prompt: EvalPrompt, first: str, second: str
    ) -> float | None:
        """1, 0.5 or 0 for the answer that is shown first; equal texts tie unasked; None when no
        verdict can be read."""
        if first == second:
            return 0.5
        r = self.settings.role("judge")
        question = prompt.messages[-1]["content"]
        asked = self._pairwise.render(
            {
                "question": question,
                "history": prompt.messages[:-1],
                "first": first,
                "second": second,
                "dimensions": self.settings.dimensions,
                "nonce": nonce(self.settings.seed, question, first, second),
            }
        )
        sampling = Sampling(r.temperature, r.top_p, r.max_tokens, tuple(r.stop), WINNER, PATTERN)
        for retry in range(RETRIES + 1):
            tagged = f"pairwise:retry:{retry}" if retry else "pairwise"
            try:
                (reply,) = await ask(Request("judge", asked, sampling, tagged, prompt.prompt_id))
            except PendingRetry:
                return None
            named = set(re.findall(r'"winner"\s*:\s*"(first|second|tie)"', reply.text))
            if len(named) == 1:
                return {"first": 1.0, "tie": 0.5, "second": 0.0}[named.pop()]
            sampling = replace(sampling, temperature=max(r.temperature, 0.7))
        return None
