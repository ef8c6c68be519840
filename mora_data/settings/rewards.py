"""Who scores: the reward sources of a dimension and how their raw scores become rewards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from .roles import RoleSettings, Settings


class CalibrationSettings(Settings):
    """How the raw scores of a reward source become values in [0, 1]. `calibration: ecdf` is short
    for `{kind: ecdf}`."""

    kind: (
        Literal[
            "identity", "likert", "sigmoid", "ecdf", "robust_z", "isotonic", "platt", "anchored"
        ]
        | None
    ) = None
    """null: the source's own. anchored: against the other answers to the same prompt, for
    Bradley-Terry scores."""
    labels: str | None = None
    """isotonic, platt: JSONL file of {"raw": score, "label": 0 to 1}."""
    low: float | None = None
    """likert: raw score that is worth 0; null: 1."""
    high: float | None = None
    """likert: raw score that is worth 1; null: 5."""
    zero: float | None = None
    """sigmoid: raw score that is worth 0.5; null: 0."""
    temperature: Annotated[float, Field(gt=0)] | None = None
    """sigmoid, anchored: raw difference per unit of the logistic; null: 1 for sigmoid, fitted for
    anchored."""
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """anchored: quantile of the prompt's own answers that is worth 0.5."""

    @model_validator(mode="after")
    def _fits_together(self) -> CalibrationSettings:
        if self.kind in ("isotonic", "platt") and not self.labels:
            raise ValueError(
                f"{self.kind} is fitted on labels: give labels, a JSONL file of {{raw, label}}"
            )
        if self.labels and self.kind not in ("isotonic", "platt"):
            raise ValueError("labels are for the kinds isotonic and platt")
        low, high = (
            self.low if self.low is not None else 1.0,
            self.high if self.high is not None else 5.0,
        )
        if low >= high:
            raise ValueError(f"low = {low:g} must be under high = {high:g}")
        return self


class RewardSettings(Settings):
    """One source of reward for one dimension. What a kind needs besides stands beside these keys
    and is checked when the build loads it (`Settings` of its class)."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    not_in_rows = frozenset({"concurrency"})

    kind: str = "judge"
    """Reward source: judge, pairwise, rubric, classifier, guard, python, precomputed, rules, or a
    dotted path module:Class."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight among the sources of this dimension."""
    endpoint: RoleSettings | None = None
    """The model that this source asks, where it is not the judge: engine, base URL, model. Without
    a URL, the judge's server."""
    calibration: CalibrationSettings | None = None
    """Raw scores to values in [0, 1]; null: the source's own scale or kind."""
    calibration_file: str | None = None
    """JSON file of a frozen calibration to use as it is: one calibration map, or the
    calibration.json of another dataset."""

    concurrency: Annotated[int, Field(ge=1, le=4096)] = 16
    """Calls in flight at most that a source makes itself, not through an engine (`ask.cached`)."""

    @field_validator("calibration", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        """What is said of the kind's own settings."""
        return dict(self.model_extra or {})
