"""One side of a comparison: a run, one arm of it, or a published dataset, of which fewer numbers
are known.

    side_of("runs/demo"), side_of("runs/demo:single"), side_of("org/mora-pairs@v1.0.0")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RunFolderError, SettingsError
from ..run.folder import read_json
from .document import about, arms_of_measured, finished, measured
from .pairs import Pairs, pairs_of_run, read_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Side:
    """What is compared.

    Attributes:
        where: as it was given, without the arm.
        arm: the only arm that is looked at; None for all.
        report: report.json; of a published dataset the parts of it that its folder tells.
        settings: those of the build.
        ids, values: prompts, and arm -> values_P_M of them; empty of a published dataset, whose
            manifest has means only.
        pairs: the rows of `preference`.
    """

    where: str
    arm: str | None
    report: Mapping[str, Any]
    settings: Mapping[str, Any]
    ids: list[str]
    values: Mapping[str, NDArray[np.float64]]
    pairs: Pairs


def side_of(given: str) -> Side:
    """Read a side.

    Raises:
        RunFolderError: neither a run nor a dataset, or one of another version.
        SettingsError: it has no such arm.
        PublishError: the Hub does not have it.
    """
    where, arm = _split(given)
    side = (
        _run(where, arm)
        if "identity" in read_json(Path(where) / "manifest.json")
        else _published(where, arm)
    )
    if arm is not None and arm not in side.report["arms"]:
        raise SettingsError(
            f"{given}: {where} has no arm {arm!r}, only {', '.join(side.report['arms']) or 'none'}"
        )
    return side


def _split(given: str) -> tuple[str, str | None]:
    if Path(given).exists() or ":" not in given:
        return given, None
    where, _, arm = given.rpartition(":")
    return where, arm


def _run(where: str, arm: str | None) -> Side:
    ids: list[str] = []
    values: dict[str, list[NDArray[np.float64]]] = {}

    def keep(some: list[str], by_arm: Mapping[str, NDArray[np.float64]]) -> None:
        for name, v in by_arm.items():
            values.setdefault(name, [np.full((len(ids), v.shape[1]), np.nan)]).append(v)
        ids.extend(some)
        for name in values.keys() - by_arm.keys():
            values[name].append(np.full((len(some), values[name][0].shape[1]), np.nan))

    m = measured(Path(where), keep=keep)
    report = finished(arms_of_measured(m, Path(where)), Path(where))
    held = read_pairs(Path(where) / "dataset", report["settings"]["dimensions"])
    return Side(
        where,
        arm,
        report,
        m.run["settings"],
        ids,
        {name: np.concatenate(v) for name, v in values.items()},
        held,
    )


def _published(where: str, arm: str | None) -> Side:
    folder = _folder(where)
    tree = read_json(folder / "provenance" / "manifest.json")
    try:
        manifest, held = tree["manifest"], tree["folder"]
        settings, dims = manifest["settings"], list(held["dimensions"])
        noise = manifest["reference"]
        seed = int(settings["seed"])
        told = manifest.get("report") or {}
        pairs = read_pairs(folder, dims)
        prompts = int((manifest["counts"].get("mine") or {}).get("kept") or 0)
        read = {"prompts": prompts, "partitions_sealed": 0}
        report = {
            "verdict": told.get("verdict", "not measured"),
            "doubts": [],
            "run": about({"manifest": manifest, "settings": settings}, 0, read),
            "settings": {
                "dimensions": dims,
                "floors": dict(held["floors"]),
                "k": told.get("k"),
                "seed": seed,
            },
            "arms": {
                a: {"n": v["n"], "metrics": _cells(v)} for a, v in (told.get("arms") or {}).items()
            },
            "judge": {
                "dimensions": {
                    d: {"sigma": noise["noise"][d], "reliability": noise["reliability"][d]}
                    for d in dims
                }
            },
            "pairs": pairs_of_run(pairs, dims, [float(noise["noise"][d]) for d in dims], seed),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise RunFolderError(
            f"{where} can't be compared: its provenance/manifest.json is missing, damaged, or of"
            " another version"
        ) from e
    return Side(where, arm, report, settings, [], {}, pairs)


def _folder(where: str) -> Path:
    from ..dataset.diff import dataset_of

    return dataset_of(where)


def _cells(arm: Mapping[str, Any]) -> dict[str, Any]:
    return {m: c for m, c in arm.items() if isinstance(c, Mapping) and "value" in c}
