"""Answers, scores and comparisons of every model on every prompt; and what a model and the
command's options are.

A model is NAME[@SEED]=WHERE; WHERE is a base URL (`#MODEL` where it serves several), a file of
answers or the folder of them that train_recipes/evaluate.py writes, or ENGINE:MODEL for an engine
in this process. A name with a seed stands for one checkpoint; names that differ in their seed alone
are one method.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from .. import resources
from ..engines import connect
from ..engines.cached_client import CachedClient
from ..engines.engine import Engine, Shared
from ..engines.replies import reads_reply
from ..errors import PendingRetry, SettingsError, SourceError
from ..resources import Secret, inert_turns, load_template, quoted
from ..rewards import load as load_reward
from ..rewards.combine import combine, raw_source
from ..rewards.judge import quoted_in, texts_of
from ..rewards.rules import flags
from ..run.log import AnswerLog
from ..run.progress import Progress
from ..run.tasks import Gate, all_of, distinct, run_prompts
from ..secrets import refuse_password
from ..settings import BuildSettings, RoleSettings, build_settings, load_settings, read_builder
from ..text import context_id, n_tokens
from ..types import DEGENERATE, Answer, Request, Sampling
from .prompts import (
    BENCHMARKS,
    BY_ANSWER,
    LETTER,
    EvalPrompt,
    EvalRow,
    choice_metric,
    prompts_of_file,
)

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
        progress: Progress,
    ) -> None:
        self.models, self.settings, self.options = models, settings, options
        self._secret = secret
        self.stats, self.progress = progress.stats, progress
        self.sources = {
            d: [
                raw_source(load_reward(d, wanted, settings, secret=secret), number, wanted)
                for number, wanted in enumerate(settings.reward_sources(d))
            ]
            for d in settings.dimensions
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
            gates: list[Gate] = [*engines, *(s.limiter for x in self.sources.values() for s in x)]
            for rows in await run_prompts(self._prompt, prompts, gates, self.stats):
                self.rows += rows
            self.progress.finish()
        finally:
            for engine in distinct(engines):
                await engine.close()

    def pass_thresholds(self) -> dict[str, float]:
        """Per dimension, the highest of its sources; 0 where none has one."""
        return {
            d: max((s.pass_threshold for s in x if s.pass_threshold is not None), default=0.0)
            for d, x in self.sources.items()
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
            for d in self.sources
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
        sources, question = self.sources[dimension], (prompt.prompt_id, prompt.messages)
        try:
            found = await all_of(
                s.scores(ask, "score:evaluate", *question, [text]) for s in sources
            )
        except PendingRetry:
            return None
        whole = all(len(scores) == 1 for scores in found)
        value = combine(sources, [scores[0] for scores in found]) if whole else None
        return None if value is None else value.reward

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


SAMPLING = ("temperature", "top_p", "max_tokens", "stop")  # of a role, without its endpoint
SPEC = re.compile(r"(?P<name>[\w.-]+)(?:@(?P<seed>[\w.-]+))?=(?P<where>.+)")


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What the command line says."""

    dataset: Path | None = None
    source: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)  # set name -> jsonl file of prompts
    reference: str | None = None
    out: Path = Path("runs/evaluate")
    limit: int | None = None
    n: int = 1
    overrides: Mapping[str, object] = field(default_factory=dict)
    fresh: bool = False
    pairwise: bool = True
    # each: MODEL or MODEL=DIMENSION in the order of training; the first is the start
    sequences: Sequence[Sequence[str]] = ()
    scalings: Sequence[Sequence[str]] = ()  # each: a name of the curve, perhaps, and MODEL=PAIRS
    benchmarks: Sequence[str] = ()  # NAME or NAME=FILE


@dataclass(frozen=True, slots=True)
class EvalModel:
    """One checkpoint: a method's name, its training seed, and where its answers come from."""

    name: str
    seed: str
    where: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.seed}"


def parse_model(text: str) -> EvalModel:
    """The model that NAME[@SEED]=WHERE names.

    Raises:
        SettingsError: not of that form.
    """
    found = SPEC.fullmatch(text)
    if found is None:
        raise SettingsError(
            f"{text!r} is not NAME=WHERE: write it as sft=http://host:8000/v1, or"
            " mora@0=answers.jsonl"
        )
    return EvalModel(found["name"], found["seed"] or "0", found["where"])


def role_of(model: EvalModel, policy: RoleSettings) -> RoleSettings | None:
    """The model's endpoint, sampling as the build's policy does; None where its answers lie in a
    file.

    Raises:
        SettingsError: neither a URL, nor a file, nor ENGINE:MODEL.
    """
    refuse_password(model.where, f"model {model.label}")
    url, _, served = model.where.partition("#")
    if url.startswith(("http://", "https://")):
        return policy.model_copy(
            update={"engine": "openai", "base_url": url, "model": served or None, "use": None}
        )
    if model.where.endswith((".jsonl", ".json")) or Path(model.where).is_dir():
        return None
    engine, colon, path = model.where.partition(":")
    if not colon:
        raise SettingsError(
            f"model {model.label}: {model.where!r} is no URL, no .jsonl or .json file and not"
            " ENGINE:MODEL"
        )
    return policy.model_copy(
        update={"engine": engine, "model": path or None, "base_url": None, "use": None}
    )


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """An answer that lies in a file, with the figures beside it (kl, mc1, mc2)."""

    text: str
    finish_reason: str
    figures: Mapping[str, float]


def read_answers(path: Path) -> dict[str, list[RecordedAnswer]]:
    """prompt id -> answers, of a file with `prompt` (text or messages), `answer` (or `output`), and
    perhaps `kl`, `mc1` and `mc2`; of a folder: of its answers.jsonl and choices.jsonl.

    Raises:
        SourceError: it can't be read.
    """
    out: dict[str, list[RecordedAnswer]] = {}
    files = [path]
    if path.is_dir():
        files = [f for f in (path / "answers.jsonl", path / "choices.jsonl") if f.is_file()]
    if not files:
        raise SourceError(
            f"can't read answers from {path}: it holds neither answers.jsonl nor choices.jsonl"
        )
    rows = (row for file in files for row in prompts_of_file(file))
    for n, (messages, row) in enumerate(rows, 1):
        answer = row.get("answer", row.get("output"))
        if not isinstance(answer, str):
            raise SourceError(
                f"can't read answers from {path}: row {n} lacks `answer`; each one needs `prompt`"
                " and `answer`"
            )
        figures = {k: v for k in ("kl", "mc1", "mc2") if isinstance(v := row.get(k), int | float)}
        recorded = RecordedAnswer(answer, str(row.get("finish_reason", "stop")), figures)
        out.setdefault(context_id(messages), []).append(recorded)
    return out


def parse_curve(texts: Sequence[str], names: Sequence[str]) -> tuple[str, list[tuple[str, int]]]:
    """The name of a scaling curve ("" where none is given) and its (model, pairs).

    Raises:
        SettingsError: no such model, or not of that form.
    """
    name, points = (texts[0], texts[1:]) if texts and "=" not in texts[0] else ("", texts)
    found = parse_points(points, names, "--scaling")
    if bad := [f"{m}={n}" for m, n in found if not n.isdecimal()]:
        raise SettingsError(f"--scaling {bad[0]!r}: write MODEL=PAIRS, as mora=1000")
    return name, [(m, int(n)) for m, n in found]


def parse_points(texts: Sequence[str], names: Sequence[str], flag: str) -> list[tuple[str, str]]:
    """(model, label) of each `MODEL=LABEL` of --sequence or --scaling, in order.

    Raises:
        SettingsError: no such model, or not of that form.
    """
    out = []
    for text in texts:
        name, _, label = text.partition("=")
        if name not in names:
            raise SettingsError(
                f"{flag} names {name!r}, which is none of the models: {', '.join(names)}"
            )
        out.append((name, label))
    return out


def settings_for(options: EvaluateOptions) -> tuple[BuildSettings, Path | None, list[str]]:
    """Settings (dimensions, rewards, sampling), the dataset folder, and what the user has to know
    of them, a line each; the held-out judge is the judge here.

    Raises:
        SettingsError: no settings are known, or no judge that is none of the models.
    """
    folder = options.dataset
    if folder is not None and not folder.exists():
        raise SettingsError(
            f"no dataset folder {folder}: give a run folder, or download the dataset first"
        )
    if folder is not None and (folder / "dataset" / "README.md").is_file():
        folder = folder / "dataset"
    notes: list[str] = []
    if options.source is not None:
        settings = load_settings(options.source, options.overrides)
    else:
        settings = build_settings(_from_dataset(options.dataset, folder, notes), options.overrides)
    held_out = settings.heldout_judge
    if held_out is not None:
        judge = {
            "use": None,
            "temperature": 0.0,
            "max_tokens": 256,
            **held_out.model_dump(mode="json", exclude_unset=True),
        }
        update = {"judge": RoleSettings(**judge), "heldout_judge": None}
        settings = settings.model_copy(update=update)
    judge_role = settings.judge
    if judge_role.use is not None and judge_role.base_url is None and judge_role.engine is None:
        raise SettingsError(
            "no judge is named, and no model may judge itself: give --judge-base-url URL and"
            " --judge-model ID, best of a judge that did not choose the pairs"
        )
    return settings, folder, notes


def _from_dataset(given: Path | None, folder: Path | None, notes: list[str]) -> dict[str, Any]:
    """What the build.yaml of a dataset may say: dimensions, shipped rubrics, sampling, the seed.

    A dataset may be somebody else's. Endpoints, names of keys, files, code and kinds of rewards
    come from flags or from the user's own file.
    """
    places = [] if given is None or folder is None else [given, folder.parent]
    source = next((p / "build.yaml" for p in places if (p / "build.yaml").is_file()), None)
    if source is None:
        raise SettingsError(
            "no settings are known: give --source NAME (dimensions and rewards come from it), "
            "or --dataset RUN_DIR of a build on this machine"
        )
    tree = read_builder(str(source))
    own = f"give --source FILE, settings of your own, in place of {source}"
    out: dict[str, Any] = {"name": "evaluate", "source": {"kind": "jsonl"}}
    out |= {k: tree[k] for k in ("dimensions", "seed") if k in tree}
    policy = tree.get("policy")
    out["policy"] = {k: policy[k] for k in SAMPLING if k in policy} if _is_tree(policy) else {}
    try:
        settings = build_settings(out)
    except SettingsError as e:
        raise SettingsError(f"{e}; {own}") from e
    shipped = resources.names("templates", "judge/*.j2")
    rewards = tree.get("rewards")
    out["rewards"] = {}
    for d in settings.dimensions:
        sources = rewards.get(d) if _is_tree(rewards) else None
        sources = sources if isinstance(sources, list) and sources else [{}]
        first = sources[0] if _is_tree(sources[0]) else {}
        rubric = first.get("template") or d
        is_rubric = first.get("kind", "judge") == "judge" and rubric in shipped
        if is_rubric and rubric != d:
            out["rewards"][d] = [{"template": rubric}]
        elif not is_rubric and d not in shipped:
            raise SettingsError(f"dimension {d!r} has no rubric that is shipped: {own}")
        if not is_rubric or len(sources) > 1 or first.keys() - {"kind", "template", "weight"}:
            notes.append(
                f"{d} is scored by the judge alone: a dataset names no other rewards; {own} for"
                " the build's"
            )
    return out


def _is_tree(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)
