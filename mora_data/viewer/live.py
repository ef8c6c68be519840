"""How a run stands at this moment: prompts done, answers in the logs, tokens, money, speed, failed
rows.

    watch = Watch(); state = watch.look(place)      state["running"], state["answers_per_s"]

The build's own files are read, never its lock taken. A speed is what was added between two looks.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..run.cost import load_prices
from ..run.folder import LIVE, read_json
from ..types import STAGES
from .place import Place

FRESH_S = 20.0  # a log that grew this recently belongs to a running build
RELOAD_S = 3
SPAN = 60.0  # seconds over which a speed is taken


class Watch:
    """Remembers the last looks, and how far each log was counted."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._logs: dict[Path, tuple[int, int]] = {}  # bytes, lines
        self._looks: deque[tuple[float, int, int]] = deque(maxlen=200)

    def look(self, place: Place) -> dict[str, Any]:
        """The state of a run folder; for a dataset folder alone, {"running": False}."""
        if place.run is None:
            return {"running": False}
        now, parts, sealed = self._clock(), place.parts(), place.sealed()
        tokens = _tokens(place)
        logged = sum(self._lines(p.log_path) for p in parts)
        answers = logged + sum(int(m.get("answers") or 0) for _, m in sealed)
        self._looks.append((now, answers, sum(tokens)))
        running = _locked(place.run / ".lock")
        if running is None:
            running = place.manifest.get("status") == "started" and self._fresh(place, now)
        n = sum(_n_prompts(p) for p in parts)
        return {
            "running": running,
            "status": place.manifest.get("status"),
            "prompts": n,
            "prompts_sealed": sum(
                int(m.get("n_prompts") or 0) - len(m.get("owed") or ()) for _, m in sealed
            ),
            "owed": sum(len(m.get("owed") or ()) for _, m in sealed),
            "partitions": len(parts),
            "partitions_sealed": len(sealed),
            "answers": answers,
            "answers_in_open_logs": logged,
            "tokens": {"in": tokens[0], "out": tokens[1]},
            "cost": _cost(place),
            "errors": sum(int(m.get("errors") or 0) for _, m in sealed),
            **self._speeds(),
            "now": _pulse(place.run, now) if running else None,
        }

    def _speeds(self) -> dict[str, float | None]:
        last = self._looks[-1]
        first = next(x for x in self._looks if last[0] - x[0] <= SPAN)
        span = last[0] - first[0]
        if span < 0.5:
            return {"answers_per_s": None, "tokens_per_s": None}
        return {
            "answers_per_s": round(max(last[1] - first[1], 0) / span, 1),
            "tokens_per_s": round(max(last[2] - first[2], 0) / span, 1),
        }

    def _lines(self, path: Path) -> int:
        """Lines of an append-only log; only what is new is read."""
        try:
            size = path.stat().st_size
            at, lines = self._logs.get(path, (0, 0))
            if size < at:
                at, lines = 0, 0
            with path.open("rb") as f:
                f.seek(at)
                while at < size and (block := f.read(min(1 << 20, size - at))):
                    at, lines = at + len(block), lines + block.count(b"\n")
        except OSError:  # sealed in the meantime
            self._logs.pop(path, None)
            return 0
        self._logs[path] = (at, lines)
        return lines

    def _fresh(self, place: Place, now: float) -> bool:
        times = []
        for path in [
            place.root / "spending.json",
            place.root / "mine.json",
            *(p.log_path for p in place.parts()),
        ]:
            try:
                times.append(path.stat().st_mtime)
            except OSError:
                continue
        return now - max(times, default=0.0) < FRESH_S


def reloads(live: Mapping[str, Any], query: Mapping[str, str]) -> dict[str, int]:
    """After how many seconds a page of a running build loads itself again; 0 for never, and where
    it is to stand still."""
    return {"reload_s": RELOAD_S if live["running"] and not query.get("still") else 0}


def _pulse(run: Path, now: float) -> dict[str, Any] | None:
    """What the build says of itself; None where it is an older one that says nothing, or has not
    for a while."""
    told = read_json(run / LIVE)
    slots, at = told.get("slots"), told.get("at")
    if not isinstance(at, (int, float)) or abs(now - at) > FRESH_S or not isinstance(slots, list):
        return None
    sums = {
        k: sum(int(s.get(k) or 0) for s in slots if isinstance(s, dict))
        for k in ("size", "open", "busy", "waiting")
    }
    return {
        **{k: told.get(k) for k in ("step", "done", "total", "requests", "retries", "failed")},
        "slots": slots,
        **sums,
    }


def funnel(place: Place, running: bool) -> dict[str, dict[str, Any]]:
    """in, kept and dropped per stage: the manifest's; of a run that is not done, those of its
    sealed partitions."""
    held = place.manifest.get("counts")
    if isinstance(held, dict) and held and not running:
        return {
            s: {
                "in": c.get("in", 0),
                "kept": c.get("kept", 0),
                "dropped": dict(c.get("dropped") or {}),
            }
            for s, c in held.items()
        }
    mined = read_json(place.root / "mine.json") if place.run is not None else {}
    out: dict[str, dict[str, Any]] = {}
    if mined:
        out["mine"] = {
            "in": mined.get("in", 0),
            "kept": mined.get("kept", 0),
            "dropped": dict(mined.get("dropped") or {}),
        }
    counts: Counter[str] = Counter()
    for _, m in place.sealed():
        counts.update(m.get("counts") or {})
    for name, n in sorted(counts.items()):
        stage, _, what = name.partition(".")
        row = out.setdefault(stage, {"in": 0, "kept": 0, "dropped": {}})
        if what in ("in", "kept"):
            row[what] = n
        else:
            row["dropped"][what] = n
    return {stage: out[stage] for stage in STAGES if stage in out}


def _locked(path: Path) -> bool | None:
    """Whether a process holds the run's lock, by the system's table of locks; None where there is
    no such table."""
    try:
        inode = path.stat().st_ino
        table = Path("/proc/locks").read_text()
    except OSError:
        return None
    return (
        True
        if any(f":{inode} " in line and "FLOCK" in line for line in table.splitlines())
        else None
    )


def _tokens(place: Place) -> tuple[int, int]:
    models = read_json(place.root / "spending.json").get("models")
    rows = (
        [t for t in models.values() if isinstance(t, list) and len(t) == 3]
        if isinstance(models, dict)
        else []
    )
    return sum(t[0] for t in rows), sum(t[1] for t in rows)


def _cost(place: Place) -> float | None:
    models = read_json(place.root / "spending.json").get("models")
    settings = place.manifest.get("settings") or {}
    try:
        return (
            load_prices((settings.get("limits") or {}).get("prices")).cost(models)
            if isinstance(models, dict)
            else None
        )
    except (SettingsError, ValueError, TypeError):
        return place.manifest.get("cost")


def _n_prompts(part: Any) -> int:
    try:
        n: int = part.n_prompts()
    except OSError:
        return 0
    return n
