"""What is looked at: a run folder (finished, running or left), or a dataset folder alone.

place = place_of(Path("runs/demo"))        place.dims, place.floors, place.dataset, place.parts()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from ..errors import RunFolderError
from ..run.folder import parts_of, read_json
from ..run.partitions import Partition


@dataclass(frozen=True, slots=True)
class Place:
    """One folder to look at, as it stood when it was opened.

    Attributes:
        run: the run folder; None where only a dataset folder was given.
        dataset: the dataset folder; it may be empty or not there yet.
        manifest: the run's, or the one that the dataset folder carries.
        dims: reward dimensions; those of the columns where no settings tell.
        floors: dimension -> floor, empty where none is known.
    """

    root: Path
    run: Path | None
    dataset: Path
    manifest: Mapping[str, Any]
    dims: tuple[str, ...]
    floors: Mapping[str, float]

    def parts(self) -> list[Partition]:
        """The run's partitions; none of a dataset folder."""
        return parts_of(self.run) if self.run is not None else []

    def sealed(self) -> list[tuple[Partition, dict[str, Any]]]:
        """The partitions that are finished, each with its manifest."""
        return [(p, m) for p in self.parts() if (m := p.manifest()) is not None]


def place_of(path: Path) -> Place:
    """The folder as it stands now.

    Raises:
        RunFolderError: neither a run nor a dataset folder, or one that another version wrote.
    """
    manifest = read_json(path / "manifest.json")
    if "identity" in manifest:
        return _run(path, manifest)
    if (path / "preference").is_dir() or (path / "scored").is_dir():
        held = read_json(path / "provenance" / "manifest.json").get("manifest")
        floors = read_json(path / "provenance" / "calibration.json").get("floors")
        return Place(
            path,
            None,
            path,
            held if isinstance(held, dict) else {},
            _dims_of_columns(path),
            _numbers(floors),
        )
    if not path.exists():
        raise RunFolderError(
            f"{path} does not exist: give the --out of a build, or a dataset folder"
        )
    raise RunFolderError(
        f"{path} is neither a run nor a dataset folder: give the --out of a build, or a folder with"
        " preference/"
    )


def _run(path: Path, manifest: Mapping[str, Any]) -> Place:
    settings = manifest.get("settings")
    if settings is None:  # not at its first end yet
        try:
            settings = yaml.safe_load((path / "build.yaml").read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            settings = {"dimensions": []}  # a build that is just beginning
    dims = settings.get("dimensions") if isinstance(settings, dict) else None
    if not isinstance(dims, list) or not all(isinstance(d, str) for d in dims):
        raise RunFolderError(
            f"the settings of {path} are of another version of mora-data: build it again with"
            " this one"
        )
    reference = read_json(path / "reference.json") or manifest.get("reference") or {}
    return Place(
        path, path, path / "dataset", manifest, tuple(dims), _numbers(reference.get("floors"))
    )


def _dims_of_columns(dataset: Path) -> tuple[str, ...]:
    for config, start in (("preference", "margin_confirmed_"), ("scored", "rewards_")):
        for file in stamp(sorted((dataset / config).glob("*.parquet"))):
            return tuple(
                name.removeprefix(start) for name in _columns(*file) if name.startswith(start)
            )
    return ()


@lru_cache(maxsize=8)
def _columns(file: str, size: int, time_ns: int) -> tuple[str, ...]:
    """Names of a file's columns; read again when it is another one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_schema(file).names)
    except (OSError, pa.ArrowException) as e:
        raise RunFolderError(
            f"{file} can't be read ({one_line(e)}): fetch or build the dataset again"
        ) from e


def one_line(e: BaseException) -> str:
    """What another library's error says, short and on one line."""
    return " ".join(str(e).split())[:100]


def _numbers(tree: object) -> dict[str, float]:
    return (
        {d: float(v) for d, v in tree.items() if isinstance(v, (int, float))}
        if isinstance(tree, dict)
        else {}
    )


def stamp(paths: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of each file: differs when one was written again."""
    out = []
    for path in paths:
        try:
            s = path.stat()
        except OSError:
            continue
        out.append((str(path), s.st_size, s.st_mtime_ns))
    return tuple(out)
