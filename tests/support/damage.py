"""A run folder with one damaged file, and every command run on it in this process: what each said,
and whether it gave something else without a word."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))
from mora_data.cli import main
from mora_data.errors import MoraError
from mora_data.viewer.server import ViewerState, draw, page_of

BUILD = [
    *("build", "--source", "pku-saferlhf", "--sample", "--limit", "8", "--json"),
    *(w for s in ("partition_size=4", "rollout.n=8", "presample.n=[2]") for w in ("--set", s)),
    *(w for s in ("presample.reference=2", "presample.before=2", "seed=3") for w in ("--set", s)),
    *("--set", "publish.configs=[preference,scored]"),
]  # fmt: skip


Damage = Callable[[Path, random.Random], None]


def cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def missing(path: Path, rng: random.Random) -> None:
    path.unlink()


def flipped(path: Path, rng: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    at = rng.randrange(len(raw) * 8)
    raw[at // 8] ^= 1 << at % 8
    path.write_bytes(raw)


def a_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def unreadable(path: Path, rng: random.Random) -> None:
    """A link to itself: no user may read it, the superuser neither."""
    path.unlink()
    path.symlink_to(path.name)


WAYS_ON = ("remove the folder", "delete it", "build as the user")  # what only the user can do
DAMAGES: tuple[Damage, ...] = (cut, empty, missing, flipped, a_folder, unreadable)


class Outcome(NamedTuple):
    """What a command did: its exit code (None: it raised), what it said, and a hash of what it
    gave."""

    code: int | None
    said: str
    gave: str


def run(argv: list[str]) -> Outcome:
    """A command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: int | None = main(argv)
    except SystemExit as e:  # argparse's
        code = e.code if isinstance(e.code, int) else None
    except Exception:
        code = None
        err.write(traceback.format_exc())
    return Outcome(code, err.getvalue(), out.getvalue())


def hash_of(folder: Path, pattern: str = "**/*") -> str:
    """Over names and bytes of the files of a folder."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.glob(pattern) if p.is_file()):
        whole.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return whole.hexdigest()


def view(run_dir: Path) -> Outcome:
    """Every kind of page; the first error that is not of ours."""
    state = ViewerState(run_dir)
    said = ""
    try:
        ids = [("", ""), ("pairs", ""), ("drops", ""), ("requests", "")]
        with contextlib.suppress(MoraError):
            pairs = state.pairs().index
            ids += [("pair", i) for i in pairs.ids[:2]]
            ids += [("prompt", i) for i in list(pairs.groups)[:2]]
        for name, key in ids:
            try:
                page = page_of(state, name, key, {"texts": "1"})
                if page is not None:
                    draw(page)
            except MoraError as e:
                said = f"mora-data: {e}\n"
    except Exception:
        return Outcome(None, traceback.format_exc(), "")
    return Outcome(1 if said else 0, said, "")


def commands(run_dir: Path, clean: Path, to: Path) -> Iterator[tuple[str, Outcome]]:
    """Every command on the folder; the build last, as it mends."""
    yield "status", run(["status", str(run_dir), "--json"])
    yield "view", view(run_dir)
    done = run(["export", str(run_dir), "--config", "preference", "--to", str(to / "out")])
    yield "export", done._replace(gave=hash_of(to / "out"))
    yield "diff", run(["diff", str(clean), str(run_dir), "--json"])
    push = run(["push", str(run_dir), "org/x", "--dry-run", "--tag", "v1.0.0", "--allow-simulated"])
    yield "push", push
    report = run(["report", str(run_dir), "--json"])
    yield "report", report
    build = run([*BUILD, "--out", str(run_dir)])
    yield "build", build._replace(gave=hash_of(run_dir / "dataset", "*/*.parquet"))


class Case(NamedTuple):
    """One file with one damage."""

    name: str
    damage: Damage
    seed: int


def faults(clean: Path, case: Case, wanted: dict[str, Outcome]) -> Iterator[tuple[str, str, str]]:
    """(command, "traceback" or "silent", what it said) of what the commands did wrong."""
    with tempfile.TemporaryDirectory(prefix="damage-") as tmp:
        run_dir = Path(tmp) / "run"
        shutil.copytree(clean, run_dir)
        case.damage(run_dir / case.name, random.Random(case.seed))
        for name, got in commands(run_dir, clean, Path(tmp)):
            lines = [x for x in got.said.splitlines() if x.startswith("mora-data: ")]
            if got.code is None or (got.code and len(lines) != 1):
                yield name, "traceback", got.said[-700:]
            elif not got.code and name in ("export", "build") and got.gave != wanted[name].gave:
                yield name, "silent", got.said[-300:]
            elif not got.code and name == "push" and case.name.startswith("dataset/"):
                if "since the build" not in got.gave + got.said:
                    yield name, "silent", got.gave[-300:] + got.said[-300:]
            elif name == "build" and got.code and not any(way in got.said for way in WAYS_ON):
                yield name, "stuck", got.said[-300:]


def make(path: Path) -> dict[str, Outcome]:
    """A small finished run; what each command gives on it."""
    done = run([*BUILD, "--out", str(path)])
    assert done.code == 0 and json.loads(done.gave)["pairs"] > 1, done
    with tempfile.TemporaryDirectory(prefix="damage-") as tmp:
        copy = Path(tmp) / "run"
        shutil.copytree(path, copy)
        found = dict(commands(copy, path, Path(tmp)))
    assert all(o.code == 0 for o in found.values()), found
    return found


def names(clean: Path) -> list[str]:
    """The files of a run that hold something."""
    found = sorted(p for p in clean.rglob("*") if p.is_file() and p.stat().st_size)
    return [p.relative_to(clean).as_posix() for p in found]


def cases(clean: Path, n: int, seed: int) -> list[Case]:
    """`n` cases: every file once with a drawn damage, and so on."""
    rng, found = random.Random(seed), list[Case]()
    while len(found) < n:
        files = names(clean)
        rng.shuffle(files)
        found += [Case(f, rng.choice(DAMAGES), rng.randrange(1 << 30)) for f in files]
    return found[:n]
