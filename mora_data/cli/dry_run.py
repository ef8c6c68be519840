"""What a build would take, before it is started: `mora-data build --dry-run`.

`estimate` asks nothing. Low and high differ by what only the model can tell: how many prompts need
more presamples, and how many are mined. Tokens are counted from the prompts themselves and the
longest answers allowed, so `high` is an upper bound.

`probe_build` (--probe) measures instead. Sixteen mined prompts, drawn by the run seed, go through
every stage in a folder that is thrown away; what they took is scaled to all prompts. Intervals are
95 % percentile bootstraps over the probed prompts (2,000 resamples). Time: at the low end the
server keeps the latency that it had and fills every permit, at the high end it gets no more done
than in the probe.

`capacity` (--gpus 8 --tokens-per-s 20000) is a small calculator: the requests and tokens, low and
high, scaled to the prompts asked for, on GPUs whose speed is stated by whoever asks, in prompt and
output tokens together, as a server's log sums them up. What this program takes itself was measured
(docs/capacity.md names each figure's benchmark). It knows nothing of a server's warm-up, of prompts
that share a prefix, or of batches that run empty at the end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from ..engines import resolve
from ..errors import SettingsError
from ..prompts.volume import JUDGE_PROMPT_TOKENS, Volume, volume
from ..rewards.audit import labelled_pairs
from ..run.cost import Prices, load_prices
from ..run.progress import Progress
from ..run.stats import RunStats
from ..settings import BuildOptions, BuildSettings, RewardSettings
from ..sources.mine import MineCounts, OpenedSource, as_recorded, mine, open_source
from ..text import n_tokens
from ..types import Prompt

# one mid-sized GPU serving a 7-8B model with full batches; stated in the result
TOKENS_PER_S = 2000.0

PROMPTS = 16
RESAMPLES = 2000
FROM_PROBE = ("requests", "tokens_in", "tokens_out", "cost", "seconds")

CLIENT_REQUESTS_PER_S = 2000.0
"""What one client process is trusted with: 80 % of a core. Its own limit was 5,092 with nothing to
wait for."""
ANSWER_BYTES_PER_TOKEN = 4.5
"""A finalized partition holds each answer twice, compressed: 4,216 replies of PKU-SafeRLHF, 2.2 +
2.25 bytes a token."""
BYTES_PER_ANSWER = 10.0
"""Of an answer's columns beside the text: a finalized partition of the demo's simulator, 31,904
answers."""
BYTES_PER_REQUEST = 29.0
"""A verdict's record, its key and its score: the same partition, 100,290 requests."""
DATASET_SHARE = 0.5
"""Of the dataset folder with all configs beside the partitions: the same run, 2.3 of 4.4 MB."""
AFTER_CPU_S_PER_PROMPT = 0.0004
"""Selection, `preference` and report of 16 answers: benchmarks/large.py; one process."""

Ends = tuple[float, float]  # low, high


@dataclass(frozen=True, slots=True)
class ProbeCost:
    """What a probe itself took."""

    prompts: int
    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class AuditCost:
    """What an audit of the judges takes; no money where the judge's price is not known."""

    pairs: int
    requests: int
    tokens_in: int
    tokens_out: int
    cost: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a build takes, low and high.

    Attributes:
        rows: read from the source, of which `prompts` were kept.
        assumed_tokens_per_s: behind `seconds`; None where they were measured.
        audit: of the judges, beside the numbers above, once, whatever the number of prompts.
    """

    prompts: int
    rows: int
    requests: Ends
    tokens_in: Ends
    tokens_out: Ends
    answers: Ends
    cost: Ends | None
    seconds: Ends
    assumed_tokens_per_s: float | None = None
    from_probe: tuple[str, ...] | None = None
    probe: ProbeCost | None = None
    audit: AuditCost | None = None

    def as_dict(self) -> dict[str, object]:
        """What is printed: no price is null, the last three are left out where they are None."""
        return {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in asdict(self).items()
            if v is not None or k == "cost"
        }


def estimate(settings: BuildSettings, sample: bool, data: Sequence[Path]) -> Estimate:
    """Requests and tokens of a build. Reads the source rows; asks no model.

    Raises:
        SourceError: the rows can't be read.
    """
    settings, recorded = as_recorded(settings)
    counts = MineCounts()
    prompts = mine(open_source(settings, sample, list(data)), settings, counts)
    low, high = (_recorded if recorded else _generated)(settings, prompts)
    return Estimate(
        prompts=counts.kept,
        rows=counts.rows,
        requests=(low.requests, high.requests),
        tokens_in=(low.tokens_in, high.tokens_in),
        tokens_out=(low.tokens_out, high.tokens_out),
        answers=(low.answers, high.answers),
        cost=None,
        seconds=(round(low.tokens / TOKENS_PER_S), round(high.tokens / TOKENS_PER_S)),
        assumed_tokens_per_s=TOKENS_PER_S,
        audit=_audit_of_build(settings, sample or bool(recorded), data),
    )


def audit_estimate(
    settings: BuildSettings, other: BuildSettings | None, opened: OpenedSource
) -> AuditCost:
    """What `mora-data audit` takes. Reads the source rows; asks no model.

    Raises:
        SourceError: the rows can't be read.
    """
    pairs = labelled_pairs(opened, settings).pairs
    n = tokens_in = tokens_out = 0
    cost: float | None = 0.0
    prices = load_prices(settings.limits.prices)
    for s in (settings, other):
        if s is None:
            continue
        asked = [sum(_asks(r) for r in s.reward_sources(p.dimension)) for p in pairs]
        texts = [
            n_tokens(" ".join(m["content"] for m in side.messages)) + n_tokens(side.text)
            for p in pairs
            for side in (p.better, p.worse)
        ]
        share = 1 + s.presample.repeat_share
        requests = round(share * 2 * sum(asked))
        both = [a + b for a, b in zip(texts[::2], texts[1::2], strict=True)]
        into = share * sum(
            k * (2 * JUDGE_PROMPT_TOKENS + t) for k, t in zip(asked, both, strict=True)
        )
        n, tokens_in, tokens_out = n + requests, tokens_in + round(into), tokens_out + 8 * requests
        more = prices.cost({s.role("judge").model or "": (round(into), 8 * requests, 0)})
        cost = None if cost is None or more is None else cost + more
    return AuditCost(len(pairs), n, tokens_in, tokens_out, cost)


def _audit_of_build(
    settings: BuildSettings, unlabelled: bool, data: Sequence[Path]
) -> AuditCost | None:
    """That of a build's own audit; None where it makes none."""
    if unlabelled or settings.role("judge").engine == "scripted":
        return None
    found = audit_estimate(settings, None, open_source(settings, False, list(data)))
    return found if found.pairs else None


def _asks(reward: RewardSettings) -> bool:
    """Whether a reward asks a model."""
    return reward.kind not in ("precomputed", "rules", "python")


def _generated(settings: BuildSettings, prompts: Iterable[Prompt]) -> tuple[Volume, Volume]:
    lengths = [n_tokens(p.text) for p in prompts]
    n, mean = len(lengths), sum(lengths) / max(len(lengths), 1)
    return volume(settings, n, mean, 0), volume(settings, n, mean, 1)


def _recorded(settings: BuildSettings, prompts: Iterable[Prompt]) -> tuple[Volume, Volume]:
    """Recorded answers: only rewards that are models ask, once for each answer."""
    asking = sum(_asks(r) for d in settings.dimensions for r in settings.reward_sources(d))
    lengths = [n_tokens(p.text) + n_tokens(r.text) for p in prompts for r in p.recorded]
    requests = asking * len(lengths)
    tokens = asking * (sum(lengths) + JUDGE_PROMPT_TOKENS * len(lengths))
    volume = Volume(len(lengths), requests, tokens, 8 * requests)
    return volume, volume


def probe_build(
    settings: BuildSettings, sample: bool, data: Sequence[Path], quiet: bool = False
) -> Estimate:
    """The estimate of a dry run with `FROM_PROBE` measured, and what the probe itself took.

    Raises:
        SettingsError: a role is simulated, so that nothing could be learned.
        MoraError: the probe failed as a build would.
    """
    from ..pipeline import run_build

    roles = [settings.role(name) for name in ("policy", "rewriter", "judge")]
    if any(resolve(role, sample).engine == "scripted" for role in roles):
        raise SettingsError(
            "--probe asks the real models, and the simulator would answer: give --base-url, or"
            " leave --probe out"
        )
    found = estimate(settings, sample, data)
    prompts = mine(open_source(settings, sample, list(data)), settings, MineCounts())
    ids = [p.prompt_id for p in prompts]
    if not ids:
        return found
    chosen = random.Random(settings.seed).sample(ids, min(PROMPTS, len(ids)))
    stats = RunStats(by_prompt={})
    with TemporaryDirectory() as folder:
        options = BuildOptions(
            sample, tuple(data), Path(folder) / "probe", "select", only=frozenset(chosen)
        )
        here = settings.model_copy(update={"executor": "local"})  # sixteen prompts need no cluster
        _, failure = run_build(here, options, Progress(stats, quiet), stats)
    if failure is not None:
        raise failure
    prices = load_prices(settings.limits.prices)
    took = [_cost_of(stats, prompt_id, prices) for prompt_id in chosen]
    costs = [t.cost for t in took if t.cost is not None]
    total = float(f"{sum(costs):.4g}") if len(costs) == len(took) else None
    return replace(
        _scaled(found, took, len(ids), stats, settings.seed),
        assumed_tokens_per_s=None,
        from_probe=FROM_PROBE,
        probe=ProbeCost(len(chosen), stats.requests, stats.tokens_in, stats.tokens_out, total),
    )


def _cost_of(stats: RunStats, prompt_id: str, prices: Prices) -> ProbeCost:
    """What one prompt took."""
    models = (stats.by_prompt or {}).get(prompt_id, {})
    n_in, n_out, _, n = (sum(t[i] for t in models.values()) for i in range(4))
    return ProbeCost(1, n, n_in, n_out, prices.cost({m: t[:3] for m, t in models.items()}))


def _scaled(
    found: Estimate, took: Sequence[ProbeCost], n_prompts: int, stats: RunStats, seed: int
) -> Estimate:
    rng = random.Random(seed)
    draws = [rng.choices(range(len(took)), k=len(took)) for _ in range(RESAMPLES)]
    scale = n_prompts / len(took)

    def interval(values: Sequence[float]) -> Ends:
        sums = sorted(scale * sum(values[i] for i in draw) for draw in draws)
        return sums[int(0.025 * RESAMPLES)], sums[int(0.975 * RESAMPLES) - 1]

    def rounded(ends: Ends) -> Ends:
        return round(ends[0]), round(ends[1])

    requests = interval([t.requests for t in took])
    costs = [t.cost for t in took if t.cost is not None]
    cost = interval(costs) if len(costs) == len(took) else None
    busy = [(limiter.size, *limiter.busy_s) for limiter in stats.limiters]
    filled_s = max((area / size for size, area, _ in busy), default=0.0)
    probed_s = max((there / size for size, _, there in busy), default=0.0)
    sent = max(sum(t.requests for t in took), 1)
    return replace(
        found,
        requests=rounded(requests),
        tokens_in=rounded(interval([t.tokens_in for t in took])),
        tokens_out=rounded(interval([t.tokens_out for t in took])),
        cost=cost and (float(f"{cost[0]:.4g}"), float(f"{cost[1]:.4g}")),
        seconds=(round(requests[0] / sent * filled_s, 1), round(requests[1] / sent * probed_s, 1)),
    )


@dataclass(frozen=True, slots=True)
class CapacityRow:
    """One line of the table; pairs are (low, high).

    Attributes:
        requests: sent.
        answers: of the policy.
        tokens: prompt and output tokens together.
        hours: until the last answer, with GPUs that are never idle.
        gpu_hours: hours times GPUs.
        requests_per_s: what the clients have to keep up with.
        clients: client processes that it takes.
        storage_gb: partitions and dataset folder.
        after_hours: selection, publishing and report, on one core.
        cost: gpu_hours at the price given; None without one.
    """

    prompts: int
    gpus: int
    requests: Ends
    answers: Ends
    tokens: Ends
    hours: Ends
    gpu_hours: Ends
    requests_per_s: Ends
    clients: tuple[int, int]
    storage_gb: Ends
    after_hours: float
    cost: Ends | None = None


def capacity(
    found: Estimate,
    prompts: Sequence[int],
    gpus: Sequence[int],
    tokens_per_s: float,
    gpu_price: float | None = None,
) -> list[CapacityRow]:
    """A row for each number of prompts and GPUs.

    `tokens_per_s` is that of one GPU, prompt and output tokens together; `gpu_price` that of a
    GPU's hour.
    """
    if not found.prompts:
        return []
    return [_row(found, n, g, tokens_per_s, gpu_price) for n in prompts for g in gpus]


def _row(
    found: Estimate, n: int, gpus: int, tokens_per_s: float, price: float | None
) -> CapacityRow:
    requests, answers, tokens_in, tokens_out = (
        (low * n / found.prompts, high * n / found.prompts)
        for low, high in (found.requests, found.answers, found.tokens_in, found.tokens_out)
    )
    tokens = tokens_in[0] + tokens_out[0], tokens_in[1] + tokens_out[1]
    hours = tokens[0] / (gpus * tokens_per_s * 3600), tokens[1] / (gpus * tokens_per_s * 3600)
    rates = sorted(r / max(h * 3600, 1e-9) for r, h in zip(requests, hours, strict=True))
    stored = [
        ANSWER_BYTES_PER_TOKEN * tokens_out[i]
        + BYTES_PER_ANSWER * answers[i]
        + BYTES_PER_REQUEST * requests[i]
        for i in (0, 1)
    ]
    gpu_hours = hours[0] * gpus, hours[1] * gpus
    return CapacityRow(
        prompts=n,
        gpus=gpus,
        requests=requests,
        answers=answers,
        tokens=tokens,
        hours=hours,
        gpu_hours=gpu_hours,
        requests_per_s=(rates[0], rates[1]),
        clients=(_clients(rates[0]), _clients(rates[1])),
        storage_gb=((1 + DATASET_SHARE) * stored[0] / 1e9, (1 + DATASET_SHARE) * stored[1] / 1e9),
        after_hours=n * AFTER_CPU_S_PER_PROMPT / 3600,
        cost=None if price is None else (gpu_hours[0] * price, gpu_hours[1] * price),
    )


def _clients(requests_per_s: float) -> int:
    return max(1, math.ceil(requests_per_s / CLIENT_REQUESTS_PER_S))


def capacity_table(rows: Sequence[CapacityRow], tokens_per_s: float) -> str:
    """The rows as Markdown; a range where low and high differ."""
    cells = [
        {
            "prompts": f"{r.prompts:,}",
            "GPUs": str(r.gpus),
            "requests": _span(r.requests),
            "answers": _span(r.answers),
            "tokens": _span(r.tokens),
            "hours": _span(r.hours),
            "GPU-hours": _span(r.gpu_hours),
            "requests/s": _span(r.requests_per_s),
            "clients": _span(r.clients),
            "storage": _span(r.storage_gb) + " GB",
            "core-hours after": _short(r.after_hours),
            **({"cost": _span(r.cost)} if r.cost else {}),
        }
        for r in rows
    ]
    lines = [list(cells[0]), ["---"] * len(cells[0]), *(list(c.values()) for c in cells)]
    return "\n".join(
        [
            f"At {tokens_per_s:,.0f} tokens/s a GPU, prompt and output tokens together:",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
        ]
    )


def _span(ends: Ends) -> str:
    low, high = (_short(v) for v in ends)
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    """Two digits that count: 0.43, 7.5, 86, 1,300, 2.1 M."""
    for unit, size in ((" G", 1e9), (" M", 1e6)):
        if value >= size:
            return f"{float(f'{value / size:.2g}'):,.12g}{unit}"
    return f"{float(f'{value:.2g}'):,.12g}"
