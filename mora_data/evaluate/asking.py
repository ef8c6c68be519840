"""Answers, scores and comparisons of every model on every prompt."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..engines import connect
from ..engines.cached_client import CachedClient
from ..engines.engine import Engine, Shared
from ..engines.replies import reads_reply
from ..errors import PendingRetry
from ..resources import Secret, inert_turns, load_template, quoted
from ..rewards import Reward, RewardClient, scores_of
from ..rewards import load as load_reward
from ..rewards.combine import cache_key_of
from ..rewards.judge import quoted_in, texts_of
from ..rewards.rules import flags
from ..run.limiter import ConcurrencyLimiter
from ..run.log import AnswerLog
from ..run.progress import Progress
from ..run.stats import RunStats
from ..run.tasks import Gate, all_of, distinct, run_prompts
from ..settings import BuildSettings
from ..text import n_tokens
from ..types import DEGENERATE, Answer, Request, Sampling
from .models import EvalModel, EvaluateOptions, RecordedAnswer, read_answers, role_of
from .prompts import BENCHMARKS, BY_ANSWER, LETTER, EvalPrompt, EvalRow, choice_metric

RETRIES = 2
WINNER = {
    "type": "object",
    "properties": {"winner": {"enum": ["first", "second", "tie"]}},
    "required": ["winner"],
    "additionalProperties": False,
}
_NAMED = re.compile(r'"winner"\s{0,9}:\s{0,9}"(first|second|tie)"')
PATTERN = r'\{"winner": "(first|second|tie)"\}'


class Evaluation:
    """Asks and scores; `rows` holds one row per model, prompt and sample."""

    def __init__(
        self,
        models: Sequence[EvalModel],
        settings: BuildSettings,
        options: EvaluateOptions,
        secret: Secret,
        stats: RunStats,
        progress: Progress,
    ) -> None:
        self.models, self.settings, self.options = models, settings, options
        self._secret = secret
        self.stats, self.progress = stats, progress
        self.rewards: dict[str, list[Reward]] = {
            d: [load_reward(d, r, settings, secret=secret) for r in settings.reward_sources(d)]
            for d in settings.dimensions
        }
        self._own_calls = {
            (d, i): (cache_key_of(self.rewards[d][i], r), ConcurrencyLimiter(r.concurrency))
            for d in settings.dimensions
            for i, r in enumerate(settings.reward_sources(d))
        }
        self._pairwise = load_template(
            "evaluate",
            "pairwise",
            frozenset(("question", "history", "first", "second", "dimensions", "nonce")),
        )
        self._asks: dict[str, CachedClient] = {}
        self._recorded: dict[str, dict[str, list[RecordedAnswer]]] = {}
        self.rows: list[EvalRow] = []
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
                    log=self.progress.message,
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
            gates: list[Gate] = [*engines, *(limiter for _, limiter in self._own_calls.values())]
            for rows in await run_prompts(self._prompt, prompts, gates, self.stats):
                self.rows += rows
            self.progress.finish()
        finally:
            for engine in distinct(engines):
                await engine.close()

    def pass_thresholds(self) -> dict[str, float]:
        """Per dimension, the highest of its sources; 0 where none has one."""
        return {
            d: max((r.pass_threshold for r in rs if r.pass_threshold is not None), default=0.0)
            for d, rs in self.rewards.items()
        }

    async def _prompt(self, prompt: EvalPrompt) -> list[EvalRow]:
        found = await all_of(self._model(m, prompt) for m in self.models)
        answers = {m.label: a for m, (a, _) in zip(self.models, found, strict=True)}
        rows = [row for _, rows in found for row in rows]
        if self._judge_reads:
            await all_of(self._compare(row, prompt, answers) for row in rows)
        self.stats.finished(prompt.prompt_id)
        self.progress.step()
        return rows

    async def _model(
        self, model: EvalModel, prompt: EvalPrompt
    ) -> tuple[list[Answer], list[EvalRow]]:
        answers = await self._answers(model, prompt)
        return answers, await all_of(self._row(model, prompt, i, a) for i, a in enumerate(answers))

    def _recorded_answers(self, model: EvalModel, prompt: EvalPrompt) -> list[RecordedAnswer]:
        found = self._recorded[model.label].get(prompt.prompt_id, [])
        return [r for r in found if "mc1" not in r.figures]

    async def _answers(self, model: EvalModel, prompt: EvalPrompt) -> list[Answer]:
        n = 1 if prompt.metric else self.options.n
        if model.label in self._recorded:
            found = self._recorded_answers(model, prompt)[:n]
            missing = Answer("", "error", error="not in the file of answers")
            return [Answer(r.text, r.finish_reason) for r in found] + [missing] * (n - len(found))
        r = self.settings.role("policy")
        sampling = Sampling(r.temperature, r.top_p, r.max_tokens, tuple(r.stop))
        if prompt.metric:
            sampling = LETTER
        purpose = f"evaluate:{model.label}"
        asked = inert_turns(prompt.messages)
        request = Request("policy", asked, sampling, purpose, prompt.prompt_id, n)
        ask = self._asks[model.label]
        try:
            answers = await ask(request)
            # servers may refuse log-probabilities
            if prompt.metric and answers[0].error is not None:
                answers = await ask(replace(request, sampling=replace(LETTER, logprobs=0)))
            return answers
        except PendingRetry as e:
            return [Answer("", "error", error=f"owed: {e}")] * n

    async def _row(
        self, model: EvalModel, prompt: EvalPrompt, index: int, answer: Answer
    ) -> EvalRow:
        row = EvalRow(
            prompt.part,
            prompt.prompt_id,
            prompt.group,
            model.name,
            model.seed,
            index,
            answer.text,
            answer.error,
        )
        if prompt.metric:
            self._choose(row, model, prompt, answer)
            return row
        benchmark = BENCHMARKS.get(prompt.part)
        dims = [
            d
            for d in self.rewards
            if benchmark is None or benchmark.rewards is None or d in benchmark.rewards
        ]
        row.metrics |= {f"reward_{d}": None for d in dims}
        if answer.error is not None:
            return row
        seen = flags(answer.text, answer.finish_reason)
        row.metrics |= {
            "refusal": float("refusal" in seen),
            "degenerate": float(bool(DEGENERATE & set(seen))),
            "length": n_tokens(answer.text),
        }
        if model.label in self._recorded:
            recorded = self._recorded_answers(model, prompt)[index]
            row.metrics["kl"] = recorded.figures.get("kl")
        if answer.text.strip():
            ask = self._asks[model.label]
            values = await all_of(self._reward(ask, d, prompt, answer.text) for d in dims)
            row.metrics |= {f"reward_{d}": v for d, v in zip(dims, values, strict=True)}
        return row

    def _choose(self, row: EvalRow, model: EvalModel, prompt: EvalPrompt, answer: Answer) -> None:
        """The metric of a multiple choice: what the file of answers computed, else what the reply
        says."""
        for r in self._recorded.get(model.label, {}).get(prompt.question_id, ()):
            if prompt.metric in r.figures:
                row.answer, row.error, row.method = r.text, None, BY_ANSWER
                row.metrics[prompt.metric] = float(r.figures[prompt.metric])
                return
        row.metrics[prompt.metric] = None
        if answer.error is None:
            row.metrics[prompt.metric], row.method = choice_metric(prompt, answer)

    async def _reward(
        self, ask: CachedClient, dimension: str, prompt: EvalPrompt, text: str
    ) -> float | None:
        """Weighted mean of the dimension's sources; None when any of them has none."""
        sources = self.rewards[dimension]
        try:
            found = await all_of(
                scores_of(
                    r, self._client(ask, dimension, i), prompt.prompt_id, prompt.messages, [text]
                )
                for i, r in enumerate(sources)
            )
        except PendingRetry:
            return None
        total = 0.0
        weights = [s.weight for s in self.settings.reward_sources(dimension)]
        for weight, scores in zip(weights, found, strict=True):
            if len(scores) != 1 or (value := scores[0].value) is None:
                return None
            total += weight * value
        return total / sum(weights)

    def _client(self, ask: CachedClient, dimension: str, number: int) -> RewardClient:
        cache_key, limiter = self._own_calls[dimension, number]
        return RewardClient(ask, cache_key, "score:evaluate", limiter)

    async def _compare(
        self, row: EvalRow, prompt: EvalPrompt, answers: Mapping[str, list[Answer]]
    ) -> None:
        """Adds `win` (1, 0.5, 0; mean of both orders) and `length_gap` against the reference's
        answer of the same index."""
        name, benchmark = self.options.reference, BENCHMARKS.get(prompt.part)
        if benchmark is not None and not benchmark.pairwise:
            return
        seeds = [m.seed for m in self.models if m.name == name]
        if row.model == name or not seeds or row.error is not None:
            return
        other = answers[f"{name}@{row.seed if row.seed in seeds else seeds[0]}"][row.index]
        if other.error is not None:
            return
        ask = self._asks[f"{row.model}@{row.seed}"]
        first, second = await all_of(
            [
                self._winner(ask, prompt, row.answer, other.text),
                self._winner(ask, prompt, other.text, row.answer),
            ]
        )
        row.metrics["win"] = None if first is None or second is None else (first + 1 - second) / 2
        row.metrics["length_gap"] = n_tokens(row.answer) - n_tokens(other.text)

    async def _winner(
        self, ask: CachedClient, prompt: EvalPrompt, first: str, second: str
    ) -> float | None:
        """1, 0.5 or 0 for the answer that is shown first; equal texts tie unasked; None when no
        verdict can be read."""
        if first == second:
            return 0.5
        r = self.settings.role("judge")
        asked = self._pairwise.render(
            {
                **quoted(self._secret, prompt.messages, first=first, second=second),
                "dimensions": self.settings.dimensions,
            }
        )
        sampling = Sampling(r.temperature, r.top_p, r.max_tokens, tuple(r.stop), WINNER, PATTERN)
        for retry in range(RETRIES + 1):
            tagged = f"pairwise:retry:{retry}" if retry else "pairwise"
            try:
                (reply,) = await ask(Request("judge", asked, sampling, tagged, prompt.prompt_id))
            except PendingRetry:
                return None
            value = winner(reply.text, texts_of(prompt.messages, first, second))
            if value is not None:
                return value
            sampling = replace(sampling, temperature=max(r.temperature, 0.7))
        return None


@reads_reply(None)
def winner(text: str, shown: Sequence[str]) -> float | None:
    """1, 0.5 or 0 for the first answer, as a judge's reply says; None where it names none, several,
    or one only in words that stand in what it was shown."""
    is_quoted = quoted_in(shown)
    named = {m[1] for m in _NAMED.finditer(text) if not is_quoted(m[0])}
    return {"first": 1.0, "tie": 0.5, "second": 0.0}[named.pop()] if len(named) == 1 else None
