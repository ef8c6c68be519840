"""Who scores: the reward sources of a dimension and how their raw scores become rewards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Settings
from .roles import RoleSettings


class CriterionSettings(Settings):
    """One criterion of a rubric list."""

    text: str
    """What a good answer does, as a statement."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight among the criteria."""
    scale: Literal["yes_no", "levels"] = "yes_no"
    """yes_no: met or not; levels: 1 to 5."""


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
    """One source of reward for one dimension."""

    kind: str = "judge"
    """Reward adapter: judge, pairwise, rubric, classifier, guard, python, precomputed, rules, or a
    dotted path module:Class."""
    template: str | None = None
    """judge, pairwise, rubric: a file in templates/judge/ (without .j2), or a path; guard: a path.
    """
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight among the sources of this dimension."""
    endpoint: RoleSettings | None = None
    """The model that this source asks, where it is not the judge: engine, base URL, model. Without
    a URL, the judge's server."""
    family: str | None = None
    """classifier: beaver-reward, beaver-cost, armorm, skywork, helpsteer; guard: llama-guard-3,
    wildguard, shieldgemma."""
    task: Literal["classify", "pooling"] = "classify"
    """classifier: which path of the server is asked."""
    labels: list[str] = []
    """classifier: names of the outputs, in order; a reply with another number of outputs is no
    score."""
    label: str | None = None
    """classifier: the output that is this dimension's."""
    activation: Literal["sigmoid", "softmax"] | None = None
    """classifier: makes a probability of the raw output."""
    invert: bool = False
    """classifier, precomputed: higher is worse."""
    layout: str | None = None
    """classifier: the text that is rated, with {question} and {answer}; null: the server applies
    the model's chat template."""
    range: tuple[float, float] | None = None
    """classifier, precomputed: lowest and highest value of the source's own scale."""
    expected: bool = False
    """judge: the mean of the levels under the probabilities of the score token, where the server
    gives them."""
    opponents: Annotated[int, Field(ge=2, le=64)] = 4
    """pairwise: other answers of the prompt that each answer is compared with."""
    criteria: list[CriterionSettings] = []
    """rubric: what is judged, one call each."""
    policies: dict[str, str] = {}
    """guard shieldgemma: name to text of the policies; the worst verdict counts."""
    path: str | None = None
    """python: module:function of (messages, answer), giving a number in [0, 1] or null."""
    column: str | None = None
    """precomputed: name of the rating in the source row."""

    calibration: CalibrationSettings | None = None
    """Raw scores to values in [0, 1]; null: the source's own scale or kind."""
    calibration_file: str | None = None
    """JSON file of a frozen calibration to use as it is: one chart, or the calibration.json of
    another dataset."""

    @field_validator("calibration", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def signature(self) -> str:
        """`@model` where the source has a model of its own, to sign its scores with."""
        model = self.endpoint.model if self.endpoint else None
        return f"@{model.rpartition('/')[2]}" if model else ""
