"""MoraPairs: a build as a `datasets` builder.

    pairs = MoraPairs("pku-saferlhf", sample=True, run_dir="runs/demo")
    pairs.download_and_prepare()        # runs the build, or resumes it
    pairs.as_dataset("train")           # the preference config; config_name="scored" and others
    likewise

The module has a name of its own because `datasets` names a builder's cache after its module's file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from . import resources
from .api import build
from .errors import RunFolderError
from .settings import load_settings, to_yaml


@dataclass
class MoraPairsConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """One build and one of its configs.

    Attributes:
        source: builder name or YAML path.
        table: config of the built dataset: preference, scored, unpaired, ...
        run_dir: run folder; default runs/<name>.
        sample: use the bundled rows.
        data_paths: local files in the source's schema.
        overrides: dotted settings on top of the YAML.
        fingerprint: hash of all settings; part of the cache's name, so that other settings never
            meet an old cache.
    """

    source: str = ""
    table: str = "preference"
    run_dir: str | None = None
    sample: bool = False
    data_paths: Sequence[str] = ()
    overrides: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source = self.source or self.name
        settings = to_yaml(load_settings(self.source, self.overrides))
        parts = [settings, self.table, str(self.sample), *map(str, self.data_paths)]
        self.fingerprint = hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]


class MoraPairs(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """Max-margin preference pairs of a build; config names are those of builders/."""

    VERSION = datasets.Version("0.1.0")
    BUILDER_CONFIG_CLASS = MoraPairsConfig
    BUILDER_CONFIGS = [MoraPairsConfig(name=name) for name in resources.names("builders", "*.yaml")]  # noqa: RUF012

    def __init__(self, config_name: str | None = None, **kwargs: Any) -> None:
        if config_name is not None and config_name.endswith((".yaml", ".yml")):
            kwargs["source"], config_name = config_name, Path(config_name).stem
        super().__init__(config_name=config_name, **kwargs)

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Max-margin multi-objective preference pairs, built by mora-data."
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        c = self.config
        run = build(
            c.source, sample=c.sample, data=c.data_paths, out=c.run_dir, overrides=c.overrides
        )
        folder = (run.dataset_dir or run.path) / c.table
        splits = sorted(
            {f.name.partition("-")[0] for f in folder.glob("*.parquet")},
            key=["train", "test"].index,
        )
        if not splits:
            raise RunFolderError(
                f"run {run.path} has no config {c.table!r}: see the folders in {run.dataset_dir}"
            )
        return [
            datasets.SplitGenerator(
                name=s, gen_kwargs={"files": sorted(map(str, folder.glob(f"{s}-*.parquet")))}
            )
            for s in splits
        ]

    def _generate_tables(self, files: Sequence[str]) -> Iterator[tuple[Any, pa.Table]]:
        for i, name in enumerate(files):
            for j, batch in enumerate(pq.ParquetFile(name).iter_batches(1000)):
                yield (i, j), pa.Table.from_batches([batch])
