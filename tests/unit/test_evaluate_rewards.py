"""The rewards of an evaluation: as they give their scores, whatever a build makes of them."""

from __future__ import annotations

from pathlib import Path

from mora_data.evaluate.asking import EvaluateOptions, Evaluation
from mora_data.resources import Secret
from mora_data.run.progress import Progress
from mora_data.settings import build_settings


def test_an_evaluation_asks_for_no_calibration(tmp_path: Path) -> None:
    """Maps are fitted on a build's presamples, and their files may be on another machine."""
    settings = build_settings(
        {
            "name": "b",
            "source": {"kind": "jsonl"},
            "dimensions": ["helpful", "harmless"],
            "presample": {"enabled": False},
            "rewards": {
                "helpful": [{"kind": "judge", "calibration_file": str(tmp_path / "gone.json")}],
                "harmless": [{"kind": "judge", "calibration": {"kind": "ecdf"}}],
            },
        },
        [],
    )
    options = EvaluateOptions(out=tmp_path / "out")
    work = Evaluation([], settings, options, Secret(), Progress(quiet=True))
    assert work.pass_thresholds() == {"helpful": 0.75, "harmless": 0.75}
