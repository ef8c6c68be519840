"""What a build would take, before it is started: `mora-data build --dry-run`.

`estimate` asks nothing. Sixteen mined prompts, drawn by the run seed, are rehearsed: the build's
own code, with its settings, in a folder that is thrown away, and the simulator in place of every
model. So the schedule is that of the settings, whatever it is. What the simulator can't know is a
range: prompts are rehearsed in both of its worlds (fusion helps, fusion changes nothing), and
answers are between `SHORT` and `LONG` of max_tokens, and a tokenizer cuts a text into `FEW` to
`MANY` times our tokens.

`probe_build` (--probe) measures instead: the prompts are asked of the build's own models, in the
build's own run folder, whose log keeps the answers, so that the build repeats none.

Either way what the prompts took is scaled to all of them. Intervals are 95 % percentile bootstraps
over the prompts (2,000 resamples), with some slack, from the lowest end to the highest of what was
rehearsed.

`capacity` (--gpus) is a small calculator on top: the requests and tokens of a dry run of so many
prompts on GPUs whose speed is stated by whoever asks, as a server's log sums it up. What this
program takes itself was measured (docs/capacity.md names each figure's benchmark). It knows nothing
of a server's warm-up, of prompts that share a prefix, or of batches that run empty at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..dataset.folder import configs_to_write
from ..engines import ROLES, resolve
from ..errors import SettingsError
from ..pipeline import run_probe
from ..pipeline.asking import GUARD_EXAMPLES
from ..pipeline.judge_calibration import guard_role, n_canaries
from ..resources import SECRET_BYTES, Secret
from ..rewards import asks_model
from ..rewards.audit import labelled_pairs
from ..rewards.combine import sources_of
from ..run import SourceCounts
from ..run.cost import Prices, account_of, load_prices
from ..run.folder import write_secret
from ..run.progress import Progress
from ..run.stats import RunStats
from ..settings import BuildOptions, BuildSettings
from ..sources.mine import OpenedSource, as_recorded, open_sources
from ..text import n_tokens
from ..types import reaches
from .rehearsal import ANSWERS, CACHED, COMPUTED, IN, MONEY, OUT, REQUESTS, Case, Meter, rehearsed

if TYPE_CHECKING:
    from ..statistics import Floats

# one mid-sized GPU serving a 7-8B model with full batches; stated in the result
TOKENS_PER_S = 2000.0
PROMPTS = 16
RESAMPLES = 2000
SMALL_SAMPLE = 1.12  # percentile bootstraps of sixteen are too narrow by so much
SLACK = 0.06
"""How far the judges' statistics of sixteen prompts, in place of the build's own, may move what a
prompt takes (benchmarks/dry_run.py)."""
SHORT, LONG = 0.3, 0.65
"""Shares of max_tokens that answers of an unknown model have on average."""
WORLDS: tuple[Any, ...] = ("planted", None)
FEW, MANY = 0.9, 1.12
"""Tokens of an unknown model's tokenizer for one of ours."""
RUBRIC_TOKENS = 400  # around the answer that an audit shows the judge
FROM_PROBE = ("requests", "tokens_in", "tokens_out", "cost", "seconds")

Ends = tuple[float, float]  # low, high


@dataclass(frozen=True, slots=True)
class RoleEstimate:
    """What one role takes.

    Attributes:
        model: None where its name is not known.
        where: `local`, `batch`, `hosted`, or empty where no endpoint is given.
        tokens_computed: prompt tokens that a server's endless prefix cache does not have.
        cost: None without a price.
    """

    role: str
    model: str | None
    where: str
    requests: Ends
    tokens_in: Ends
    tokens_computed: Ends
    tokens_out: Ends
    cost: Ends | None


@dataclass(frozen=True, slots=True)
class ProbeCost:
    """What a probe itself took, and how many of its prompts came to their end; of the requests,
    `replayed` were answered before."""

    prompts: int
    finished: int
    requests: int
    replayed: int
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
class BuildEstimate:
    """What a build takes, low and high.

    Attributes:
        rows: read from the source, of which `prompts` were kept.
        rehearsed: prompts of these, with the simulator.
        answers: of the policy.
        pairs: confirmed; of the simulator's where nothing was probed.
        cost: None where a model in `unpriced`, or the one of a role in it, has no price.
        tokens_per_s: behind `seconds`; None where they were measured.
        prompts_needed: for `pairs_wanted`; the high end None where there may be no pair at all.
        audit: of the judges, beside the numbers above, once, whatever the number of prompts.
        failure: what ended the probe early.
        sources: what was mined of each source of a mix.
        cases: what it was scaled from.
    """

    prompts: int
    rows: int
    requests: Ends
    tokens_in: Ends
    tokens_out: Ends
    answers: Ends
    cost: Ends | None
    seconds: Ends
    tokens_computed: Ends = (0, 0)
    pairs: Ends = (0, 0)
    until: str = "publish"
    rehearsed: int = 0
    roles: tuple[RoleEstimate, ...] = ()
    currency: str = ""
    unpriced: tuple[str, ...] = ()
    assumed_tokens_per_s: float | None = None
    given_tokens_per_s: float | None = None
    pairs_wanted: int | None = None
    prompts_needed: tuple[int, int | None] | None = None
    from_probe: tuple[str, ...] | None = None
    probe: ProbeCost | None = None
    audit: AuditCost | None = None
    failure: str | None = None
    sources: Sequence[SourceCounts] | None = None
    cases: Sequence[Case] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, object]:
        """What --json prints: no price is null, what was not asked for is left out."""
        tree = asdict(replace(self, cases=()))
        del tree["cases"]
        return {k: v for k, v in tree.items() if v is not None or k == "cost"}


def estimate(
    settings: BuildSettings, sample: bool, data: Sequence[Path], until: str = "publish"
) -> BuildEstimate:
    """What a build takes. Reads the source rows; asks no model.

    Raises:
        SourceError: the rows can't be read.
    """
    configs_to_write(settings)  # refuses what a build refuses
    simulated = _engine_of(settings, sample, "policy") in ("scripted", "recorded")
    worlds = (settings.scripted.world,) if simulated else WORLDS
    cases: list[Case] = []
    with TemporaryDirectory() as folder:
        out = Path(folder) / "rehearsal"
        out.mkdir()
        write_secret(out, bytes(SECRET_BYTES))  # nothing to guard: the same rows, the same estimate
        options = BuildOptions(sample, tuple(data), out, _at_most(until))
        for world in worlds:
            progress, meter = Progress(quiet=True), Meter(settings)
            progress.stats.on_record = meter.on_record
            played = rehearsed(settings, world, simulated)
            probe = run_probe(played, options, PROMPTS, progress)
            if probe.failure is not None:
                raise probe.failure
            if simulated:
                cases.append(meter.case(probe))
            else:
                most = settings.policy.max_tokens
                cases += [
                    meter.case(probe, share * most, size)
                    for share, size in ((SHORT, FEW), (LONG, MANY))
                ]
    found = _scaled(settings, sample, cases, until)
    return replace(
        at_speed(found, TOKENS_PER_S, assumed=True),
        rehearsed=min(PROMPTS, found.prompts),
        audit=_audit_of_build(settings, sample, data, until),
    )


def probe_build(
    settings: BuildSettings, options: BuildOptions, quiet: bool = False
) -> BuildEstimate:
    """The estimate of a dry run, measured on the build's own models; what ended it early is told
    with the figures.

    Raises:
        SettingsError: a role is simulated, so that nothing could be learned.
        MoraError: nothing could be asked.
    """
    sample = options.sample
    if any(_engine_of(settings, sample, role) in ("scripted", None) for role in ROLES):
        raise SettingsError(
            "--probe asks the real models, and the simulator would answer: give --base-url, or"
            " leave --probe out"
        )
    progress, meter = Progress(quiet=quiet), Meter()
    stats = progress.stats
    stats.on_record = meter.on_record
    here = settings.model_copy(update={"executor": "local"})  # sixteen prompts need no cluster
    at_most = replace(options, until=_at_most(options.until))
    probe = run_probe(here, at_most, PROMPTS, progress)
    prices = load_prices(settings.limits.prices)
    case = meter.case(probe, before_share=settings.presample.before_share(probe.prompts))
    found = _scaled(settings, sample, [case], options.until)
    measured = stats.requests > 0  # else all were answered before, and nobody's speed was seen
    found = _timed(found, stats) if measured else at_speed(found, TOKENS_PER_S, assumed=True)
    return replace(
        found,
        from_probe=FROM_PROBE if measured else FROM_PROBE[:-1],
        probe=ProbeCost(
            len(meter.prompts),
            len(probe.pairs),
            stats.requests,
            stats.replayed,
            stats.tokens_in,
            stats.tokens_out,
            prices.cost(stats.by_account),
        ),
        audit=_audit_of_build(settings, sample, list(options.data), options.until),
        failure=None if probe.failure is None else str(probe.failure),
    )


def _at_most(until: str) -> str:
    """A probe ends before the dataset is written."""
    return "select" if until == "publish" else until


def _scaled(
    settings: BuildSettings, sample: bool, cases: Sequence[Case], until: str
) -> BuildEstimate:
    """The cases, scaled to all prompts, as one estimate."""
    import numpy as np

    settings, _ = as_recorded(settings)
    prices = load_prices(settings.limits.prices)
    known = (*ROLES, *settings.more_roles(), "heldout_judge")
    names = [r for r in known if any(r in c.roles for c in cases)]
    roles = {name: _priced(settings, sample, name, prices) for name in names}
    low = np.full((len(names) + 1, MONEY + 1), np.inf)
    high = np.zeros_like(low)
    pairs: list[Ends] = []
    for case in cases:
        totals = _draws(settings, sample, case, names, [roles[n][2] for n in names], until)
        ends = np.quantile(totals, (0.025, 0.975), axis=0)
        slack = SLACK if settings.presample.enabled and _unseen(case) else 0.0
        low = np.minimum(low, ends[0] * (1 - slack))
        high = np.maximum(high, ends[1] * (1 + slack))
        pairs.append(_pairs(case))

    def of(row: int, what: int) -> Ends:
        ends = float(low[row, what]), float(high[row, what])
        if what == MONEY:
            return float(f"{ends[0]:.4g}"), float(f"{ends[1]:.4g}")
        return round(ends[0]), round(ends[1])

    def columns(row: int) -> dict[str, Any]:
        return {
            "requests": of(row, REQUESTS),
            "tokens_in": of(row, IN),
            "tokens_computed": of(row, COMPUTED),
            "tokens_out": of(row, OUT),
        }

    nameless = [n for n in names if roles[n][2] is None]
    unpriced = tuple(dict.fromkeys(roles[n][0] or n for n in nameless))
    return BuildEstimate(
        prompts=cases[0].n_prompts,
        rows=cases[0].rows,
        sources=cases[0].sources or None,
        answers=of(-1, ANSWERS),
        cost=None if unpriced else of(-1, MONEY),
        seconds=(0, 0),
        pairs=(round(min(p[0] for p in pairs)), round(max(p[1] for p in pairs))),
        until=until,
        roles=tuple(
            RoleEstimate(
                name,
                *roles[name][:2],
                **columns(i),
                cost=None if name in nameless else of(i, MONEY),
            )
            for i, name in enumerate(names)
        ),
        currency=prices.currency,
        unpriced=unpriced,
        cases=cases,
        **columns(-1),
    )


def for_prompts(
    found: BuildEstimate, settings: BuildSettings, sample: bool, n: int
) -> BuildEstimate:
    """The estimate for another number of prompts; what is asked of the first ones, or of a fixed
    number, does not grow with it."""
    return _scaled(settings, sample, [replace(c, n_prompts=n) for c in found.cases], found.until)


def _draws(
    settings: BuildSettings,
    sample: bool,
    case: Case,
    names: Sequence[str],
    weights: Sequence[Sequence[float] | None],
    until: str,
) -> Floats:
    """Bootstrap draws of what all prompts take: draws x roles and their sum x counts."""
    import numpy as np

    n, n_all = len(case.pairs), case.n_prompts
    own = np.zeros((n, len(names), MONEY + 1))
    fixed = np.zeros((len(names), MONEY + 1))
    share = min(settings.presample.reference, n_all) / max(n_all, 1)
    asked = settings.presample.before_share(n_all)
    items = _canaries(settings, sample, names, until)
    grader = _engine_of(settings, sample, guard_role(settings))
    n_tried = GUARD_EXAMPLES if grader != "scripted" else 0
    for k, name in enumerate(names):
        if name in case.roles:
            r = case.roles.index(name)
            own[:, k] = case.own[:, r] + share * case.once[:, r] + asked * case.before[:, r]
            fixed[k] = items * case.verdicts[r] if name != "policy" else 0
            fixed[k] += n_tried * case.harm[r]
    for k, weight in enumerate(weights):
        money = np.array(weight or (0, 0, 0))
        own[:, k, MONEY] = own[:, k, [IN, OUT, CACHED]] @ money
        fixed[k, MONEY] = fixed[k, [IN, OUT, CACHED]] @ money
    rng = np.random.default_rng(settings.seed)
    drawn = rng.integers(0, n, (RESAMPLES, n))
    mean = own.mean(0)
    spread = SMALL_SAMPLE * _unseen(case)
    totals = n_all * (mean + spread * (own[drawn].mean(1) - mean)) + fixed
    return np.concatenate([totals, totals.sum(1, keepdims=True)], 1)


def _unseen(case: Case) -> float:
    """How much of a sample's error is left where it is a good part of the prompts."""
    return math.sqrt(max(1 - len(case.pairs) / max(case.n_prompts, 1), 0.0))


def _pairs(case: Case) -> Ends:
    """Pairs of all prompts: the interval of the share of prompts that have one, times the mean of
    those."""
    from ..statistics.inference import rate_interval

    there, n = case.pairs > 0, len(case.pairs)
    share, each = float(there.mean()), float(case.pairs[there].mean()) if there.any() else 1.0
    ends = rate_interval(float(there.sum()), n)
    low, high = (share + _unseen(case) * (float(end) - share) for end in ends)
    return case.n_prompts * each * low, case.n_prompts * each * high


def _canaries(settings: BuildSettings, sample: bool, names: Sequence[str], until: str) -> int:
    """How often a canary answer is scored, at both ends together."""
    if not settings.presample.enabled:
        return 0
    models = [r for r in names if _engine_of(settings, sample, r) != "scripted"]
    return n_canaries(settings, models) * (2 if until in ("select", "publish") else 1)


def _engine_of(settings: BuildSettings, sample: bool, role: str) -> str | None:
    """The engine of a role; None where none is known yet."""
    try:
        return resolve(settings.role(role), sample).engine
    except SettingsError:
        return None


def _priced(
    settings: BuildSettings, sample: bool, name: str, prices: Prices
) -> tuple[str | None, str, tuple[float, float, float] | None]:
    """A role's model, where it is, and the money for a token in, out and cached, the last one less
    what it costs as a token in."""
    role = settings.role(name)
    try:
        role = resolve(role, sample)
    except SettingsError:
        return role.model, "", None
    account = account_of(role.model or "", role)
    where = account.removeprefix(role.model or "").strip(" ()") or "hosted"
    ones = [prices.cost({account: one}) for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))]
    if ones[0] is None or ones[1] is None or ones[2] is None:
        return role.model, where, None
    return role.model, where, (ones[0], ones[1], ones[2])


def _timed(found: BuildEstimate, stats: RunStats) -> BuildEstimate:
    """With the time measured: at the low end the servers keep the latency that they had and fill
    every permit, at the high end they get no more done than in the probe."""
    busy = [(limiter.size, *limiter.busy_s) for limiter in stats.limiters]
    filled_s = max((area / size for size, area, _ in busy), default=0.0)
    probed_s = max((there / size for size, _, there in busy), default=0.0)
    low, high = (n / stats.requests for n in found.requests)
    return replace(found, seconds=(round(low * filled_s, 1), round(high * probed_s, 1)))


# an audit of the judges


def audit_estimate(
    settings: BuildSettings,
    other: BuildSettings | None,
    opened: Sequence[OpenedSource],
    sample: bool = False,
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
        sources_of(s, Secret())  # refuses what the audit refuses
        asked = [sum(asks_model(r) for r in s.reward_sources(p.dimension)) for p in pairs]
        texts = [
            n_tokens(" ".join(m["content"] for m in side.messages)) + n_tokens(side.text)
            for p in pairs
            for side in (p.better, p.worse)
        ]
        share = 1 + s.presample.repeat_share
        requests = round(share * 2 * sum(asked))
        both = [a + b for a, b in zip(texts[::2], texts[1::2], strict=True)]
        into = share * sum(k * (2 * RUBRIC_TOKENS + t) for k, t in zip(asked, both, strict=True))
        n, tokens_in, tokens_out = n + requests, tokens_in + round(into), tokens_out + 8 * requests
        weight = _priced(s, sample, "judge", prices)[2]
        more = None if weight is None else round(into) * weight[0] + 8 * requests * weight[1]
        cost = None if cost is None or more is None else cost + more
    return AuditCost(len(pairs), n, tokens_in, tokens_out, cost)


def _audit_of_build(
    settings: BuildSettings, sample: bool, data: Sequence[Path], until: str
) -> AuditCost | None:
    """That of a build's own audit; None where it makes none."""
    settings, recorded = as_recorded(settings)
    unlabelled = sample or recorded or not reaches(until, "presample")
    if unlabelled or settings.role("judge").engine == "scripted":
        return None
    found = audit_estimate(settings, None, open_sources(settings, False, data))
    return found if found.pairs else None


def at_speed(found: BuildEstimate, tokens_per_s: float, assumed: bool = False) -> BuildEstimate:
    """With the time that so many tokens a second, in and out, take."""
    low, high = (i + o for i, o in zip(found.tokens_in, found.tokens_out, strict=True))
    return replace(
        found,
        seconds=(round(low / tokens_per_s, 1), round(high / tokens_per_s, 1)),
        assumed_tokens_per_s=tokens_per_s if assumed else None,
        given_tokens_per_s=None if assumed else tokens_per_s,
    )


def for_pairs(found: BuildEstimate, pairs: int) -> BuildEstimate:
    """With the prompts that so many pairs need; none where no pair is to be had."""
    if not found.pairs[1] or not found.prompts:
        return found
    low, high = found.pairs
    few = math.ceil(pairs * found.prompts / high)
    many = math.ceil(pairs * found.prompts / low) if low else None
    return replace(found, pairs_wanted=pairs, prompts_needed=(few, many))


# How long it takes on GPUs

CLIENT_REQUESTS_PER_S = 2000.0
"""What one client process is trusted with: 80 % of a core. Its own limit was 5,092 with nothing to
wait for."""
ANSWER_BYTES_PER_TOKEN = 4.5
"""A finalized partition holds each answer twice, compressed: 4,216 replies of PKU-SafeRLHF, 2.2 +
2.25 bytes a token."""
BYTES_PER_ANSWER = 10.0
"""Of an answer's columns beside the text: a finalized partition of the demo's simulator, 31,904
answers."""
BYTES_PER_REQUEST = 33.0
"""A verdict's record, its key and its score: the same partition, 100,290 requests, 29; and the
prompt's name in it, 3.6 (16,012 requests of the demo)."""
DATASET_SHARE = 0.5
"""Of the dataset folder with all configs beside the partitions: the same run, 2.3 of 4.4 MB."""
AFTER_CPU_S_PER_PROMPT = 0.0004
"""Selection, `preference` and report of 16 answers: benchmarks/large.py; one process."""


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
    found: Sequence[BuildEstimate],
    gpus: Sequence[int],
    tokens_per_s: float,
    gpu_price: float | None = None,
) -> list[CapacityRow]:
    """A row for each estimate and number of GPUs.

    `tokens_per_s` is that of one GPU, prompt and output tokens together; `gpu_price` that of a
    GPU's hour.
    """
    return [_row(f, g, tokens_per_s, gpu_price) for f in found if f.prompts for g in gpus]


def _row(found: BuildEstimate, gpus: int, tokens_per_s: float, price: float | None) -> CapacityRow:
    requests, answers, tokens_out = found.requests, found.answers, found.tokens_out
    tokens = found.tokens_in[0] + tokens_out[0], found.tokens_in[1] + tokens_out[1]
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
        prompts=found.prompts,
        gpus=gpus,
        requests=requests,
        answers=answers,
        tokens=tokens,
        hours=hours,
        gpu_hours=gpu_hours,
        requests_per_s=(rates[0], rates[1]),
        clients=(_clients(rates[0]), _clients(rates[1])),
        storage_gb=((1 + DATASET_SHARE) * stored[0] / 1e9, (1 + DATASET_SHARE) * stored[1] / 1e9),
        after_hours=found.prompts * AFTER_CPU_S_PER_PROMPT / 3600,
        cost=None if price is None else (gpu_hours[0] * price, gpu_hours[1] * price),
    )


def _clients(requests_per_s: float) -> int:
    return max(1, math.ceil(requests_per_s / CLIENT_REQUESTS_PER_S))
