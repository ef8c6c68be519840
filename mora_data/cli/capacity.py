"""What a build of N prompts takes on G GPUs: what `mora-data build --dry-run --gpus 8
--tokens-per-s 20000` adds to the estimate.

    rows = capacity(found, prompts=[100_000], gpus=[1, 8, 64], tokens_per_s=20_000)       # found:
    of `estimate` or `probe`

A small calculator: the estimate's requests and tokens, low and high, scaled to the prompts asked
for; the GPUs' speed is stated by whoever asks, in prompt and output tokens together, as a server's
log sums them up; what this program takes itself was measured (docs/capacity.md names each figure's
benchmark). It knows nothing of a server's warm-up, of prompts that share a prefix, or of batches
that run empty at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CPU_S_PER_REQUEST = 0.0004
"""Of one client process, everything on: benchmarks/endpoint.py, 0.30 to 0.39 ms."""
CLIENT_REQUESTS_PER_S = 2000.0
"""What one client process is trusted with: 80 % of a core. Its own limit was 5,092 with nothing to
wait for."""
ANSWER_BYTES_PER_TOKEN = 4.5
"""A sealed partition holds each answer twice, compressed: 4,216 replies of PKU-SafeRLHF, 2.2 + 2.25
bytes a token."""
BYTES_PER_ANSWER = 10.0
"""Of an answer's columns beside the text: a sealed partition of the demo's simulator, 31,904
answers."""
BYTES_PER_REQUEST = 29.0
"""A verdict's record, its key and its score: the same partition, 100,290 requests."""
DATASET_SHARE = 0.5
"""Of the dataset folder with all configs beside the partitions: the same run, 2.3 of 4.4 MB."""
AFTER_CPU_S_PER_PROMPT = 0.0004
"""Selection, `preference` and report of 16 answers: benchmarks/large.py; one process."""


@dataclass(frozen=True, slots=True)
class Row:
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
    requests: tuple[float, float]
    answers: tuple[float, float]
    tokens: tuple[float, float]
    hours: tuple[float, float]
    gpu_hours: tuple[float, float]
    requests_per_s: tuple[float, float]
    clients: tuple[int, int]
    storage_gb: tuple[float, float]
    after_hours: float
    cost: tuple[float, float] | None = None


def capacity(
    found: Mapping[str, Any],
    prompts: Sequence[int],
    gpus: Sequence[int],
    tokens_per_s: float,
    gpu_price: float | None = None,
) -> list[Row]:
    """A row for each number of prompts and GPUs.

    `found` has requests, tokens_in, tokens_out and answers, each (low, high), of `found["prompts"]`
    prompts. `tokens_per_s` is that of one GPU, prompt and output tokens together; `gpu_price` that
    of a GPU's hour.
    """
    if not found["prompts"]:
        return []
    return [_row(found, n, g, tokens_per_s, gpu_price) for n in prompts for g in gpus]


def table(rows: Sequence[Row], tokens_per_s: float) -> str:
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


def _row(
    found: Mapping[str, Any], n: int, gpus: int, tokens_per_s: float, price: float | None
) -> Row:
    requests, answers, tokens_in, tokens_out = (
        tuple(v * n / found["prompts"] for v in found[k])
        for k in ("requests", "answers", "tokens_in", "tokens_out")
    )
    tokens = tokens_in[0] + tokens_out[0], tokens_in[1] + tokens_out[1]
    hours = tokens[0] / (gpus * tokens_per_s * 3600), tokens[1] / (gpus * tokens_per_s * 3600)
    rates = sorted(r / max(h * 3600, 1e-9) for r, h in zip(requests, hours, strict=True))
    clients = [max(1, math.ceil(rate / CLIENT_REQUESTS_PER_S)) for rate in rates]
    storage = [
        (1 + DATASET_SHARE)
        * (
            ANSWER_BYTES_PER_TOKEN * tokens_out[i]
            + BYTES_PER_ANSWER * answers[i]
            + BYTES_PER_REQUEST * requests[i]
        )
        / 1e9
        for i in (0, 1)
    ]
    gpu_hours = hours[0] * gpus, hours[1] * gpus
    cost = None if price is None else (gpu_hours[0] * price, gpu_hours[1] * price)
    return Row(
        n,
        gpus,
        (requests[0], requests[1]),
        (answers[0], answers[1]),
        tokens,
        hours,
        gpu_hours,
        (rates[0], rates[1]),
        (clients[0], clients[1]),
        (storage[0], storage[1]),
        n * AFTER_CPU_S_PER_PROMPT / 3600,
        cost,
    )


def _span(ends: tuple[float, float]) -> str:
    low, high = (_short(v) for v in ends)
    return low if low == high else f"{low} to {high}"


def _short(value: float) -> str:
    """Two digits that count: 0.43, 7.5, 86, 1,300, 2.1 M."""
    for unit, size in ((" G", 1e9), (" M", 1e6)):
        if value >= size:
            return f"{float(f'{value / size:.2g}'):,.12g}{unit}"
    return f"{float(f'{value:.2g}'):,.12g}"
