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
from .run import StageCounts
from .run.folder import finished_parts, run_manifest
from .run.remote import current_copy, local_path
from .settings import BuildOptions, BuildSettings, build_settings, preview_settings, read_builder


class Rows(list[dict[str, Any]]):
    """Rows of a table; in a notebook the first ones are shown as one."""

    def to_arrow(self) -> Any:
        """The rows as a pyarrow.Table."""
        import pyarrow as pa

        return pa.Table.from_pylist(list(self))

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame."""
        return self.to_arrow().to_pandas()

    def _repr_html_(self) -> str:
        from .viewer.stories import rows_fragment

        return str(rows_fragment(self))


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder. In a notebook, its counts are shown, and the prompts of a small one.

    Attributes:
        path: the folder.
        counts: stage -> {"in", "kept", "dropped": {reason: n}}; in = kept + dropped.
        dataset_dir: the publishable folder, None until it is written.
    """

    path: Path
    counts: Mapping[str, StageCounts]
    dataset_dir: Path | None

    def pairs(self, config: str = "preference", split: str = "train") -> Rows:
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
                " end, or choose another; prompts() has what was fused"
            )
        return Rows(row for f in files for row in pq.read_table(f).to_pylist())

    def prompts(self) -> Rows:
        """A row for each prompt and each arm that rewrote it: `source_prompt`, `rewrite` (None
        where none passed), `failed` checks, `kind`, `target_dims`, ... Also of a run that was
        stopped after fusion; prompts of open partitions are left out.

        Raises:
            DamagedFile: a file of the run can't be read.
        """
        from .viewer.stories import prompt_rows

        return Rows(prompt_rows(self.path))

    def scores(self) -> Rows:
        """Every score, a row each: `prompt_id`, `arm`, `index` of the answer, `purpose`,
        `dimension`, `source`, `value` in [0, 1] or None and then its `reason`, `raw`.

        Raises:
            DamagedFile: a file of the run can't be read.
        """
        parts = finished_parts(self.path)
        return Rows(row for p in parts for row in p.table("scores").to_pylist())

    def drops(self) -> Rows:
        """What was left out: `stage`, `reason` and `n` rows."""
        return Rows(
            {"stage": stage, "reason": reason, "n": n}
            for stage, c in self.counts.items()
            for reason, n in c["dropped"].items()
        )

    def _repr_html_(self) -> str:
        from .viewer.stories import run_fragment

        return str(run_fragment(self.path, self.counts))


def preview(
    config: BuildSettings | Mapping[str, object] | str | Path,
    *,
    limit: int = 5,
    sample: bool = False,
    data: Sequence[str | Path] = (),
    out: str | Path | None = None,
    until: str = "select",
    overrides: Mapping[str, object] | None = None,
    quiet: bool = False,
) -> Run:
    """A few prompts through all steps, cheaply; what `mora-data preview` does. Arguments as of
    `build`; `limit` is the number of prompts.

    Where a build's run folder stands in `out`, the preview goes beside it, into `<out>-preview`.

    Raises:
        MoraError: it can't be finished; the state is kept, and the same call goes on.
    """
    if isinstance(config, BuildSettings):
        tree: Mapping[str, object] = config.model_dump(mode="json", exclude_unset=True)
    else:
        tree = _tree_of(config)
    settings = preview_settings(tree, {"mine.limit": limit, **(overrides or {})})
    options = BuildOptions(sample, _paths(data), _folder(out), until, preview=True)
    return _run(settings, options, quiet)


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
    """Run or resume a build; what `mora-data build` does. In a notebook, too.

    Args:
        config: a builder's name, a path to its YAML, a tree of settings, or settings.
        sample: use the rows bundled with the package.
        data: files, folders, globs or URLs of rows in the source's schema; of a mix NAME=PATH.
        out: run folder, a path or a URL; default runs/<name>.
        until: last stage to run.
        fresh: forget what the run folder holds.
        overrides: dotted settings on top, as {"rollout.n": 8}.
        quiet: no progress on stderr.

    Raises:
        MoraError: it can't be finished; the state is kept, and the same call goes on.
    """
    if isinstance(config, BuildSettings):
        settings = config
    else:
        settings = build_settings(_tree_of(config), overrides)
    return _run(settings, BuildOptions(sample, _paths(data), _folder(out), until, fresh), quiet)


def _tree_of(config: Mapping[str, object] | str | Path) -> Mapping[str, object]:
    return config if isinstance(config, Mapping) else read_builder(str(config))


def _paths(data: Sequence[str | Path]) -> tuple[Path, ...]:
    from .sources.read import local_paths

    return tuple(local_paths(data))


def _folder(out: str | Path | None) -> Path | None:
    return local_path(str(out)) if out else None


def _run(settings: BuildSettings, options: BuildOptions, quiet: bool) -> Run:
    from .pipeline import run_build, run_dir_of
    from .run.progress import Progress

    _, failure = run_build(settings, options, Progress(quiet=quiet))
    if failure is not None:
        raise failure
    return load_run(run_dir_of(settings, options))


def load_run(path: str | Path) -> Run:
    """The run in a folder, finished or not.

    Raises:
        RunFolderError: not a run folder.
    """
    where = current_copy(str(path))
    counts, dataset = run_manifest(where).get("counts", {}), where / "dataset"
    return Run(where, counts, dataset if dataset.is_dir() else None)
