"""The library: build a dataset, or load what a build made.

from mora_data import build, load_run
run = build("pku-saferlhf", sample=True, out="runs/demo")
run.counts["select"], run.pairs()[0]["chosen"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import RunFolderError
from .run.folder import StageCounts, run_status
from .run.remote import current_copy, local_path
from .settings import BuildSettings, build_settings, load_settings


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder.

    Attributes:
        path: the folder.
        counts: stage -> {"in", "kept", "dropped": {reason: n}}; in = kept + dropped.
        dataset_dir: the publishable folder, None until it is written.
    """

    path: Path
    counts: Mapping[str, StageCounts]
    dataset_dir: Path | None

    def pairs(self, config: str = "preference", split: str = "train") -> list[dict[str, Any]]:
        """The rows of a config and split, all at once; for large datasets use
        `datasets.load_dataset(run.dataset_dir, config)`.

        Raises:
            RunFolderError: the run has no such config or split.
        """
        import pyarrow.parquet as pq

        files = (
            sorted((self.dataset_dir / config).glob(f"{split}-*.parquet"))
            if self.dataset_dir
            else []
        )
        if not files:
            raise RunFolderError(
                f"run {self.path} has no config {config!r} with split {split!r}: build it to the"
                " end, or choose another"
            )
        return [row for f in files for row in pq.read_table(f).to_pylist()]


def build(
    config: BuildSettings | Mapping[str, object] | str | Path,
    *,
    sample: bool = False,
    data: Sequence[str | Path] = (),
    out: str | Path | None = None,
    until: str = "publish",
    fresh: bool = False,
    overrides: Mapping[str, object] | None = None,
    quiet: bool = False,
) -> Run:
    """Run or resume a build; what `mora-data build` does.

    Args:
        config: a builder's name, a path to its YAML, a tree of settings, or settings.
        sample: use the rows bundled with the package.
        data: local files in the source's schema.
        out: run folder, a path or a URL; default runs/<name>.
        until: last stage to run.
        fresh: forget what the run folder holds.
        overrides: dotted settings on top, as {"rollout.n": 8}.
        quiet: no progress on stderr.

    Raises:
        MoraError: it can't be finished; the state is kept, and the same call goes on.
    """
    from .pipeline import run_build, run_dir_of
    from .run.progress import Progress
    from .run.stats import RunStats
    from .settings import BuildOptions

    if isinstance(config, BuildSettings):
        settings = config
    elif isinstance(config, Mapping):
        settings = build_settings(config)
    else:
        settings = load_settings(str(config), overrides)
    stats = RunStats()
    progress = Progress(stats, quiet)
    options = BuildOptions(
        sample, tuple(Path(d) for d in data), local_path(str(out)) if out else None, until, fresh
    )
    _, failure = run_build(settings, options, progress, stats)
    if failure is not None:
        raise failure
    return load_run(run_dir_of(settings, options))


def load_run(path: str | Path) -> Run:
    """The run in a folder, finished or not.

    Raises:
        RunFolderError: not a run folder.
    """
    where = current_copy(str(path))
    status = run_status(where)
    return Run(where, status.counts, Path(status.dataset_dir) if status.dataset_dir else None)
