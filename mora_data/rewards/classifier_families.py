"""Known sequence classifiers: what their outputs are and what scale they have. Only numbers differ,
so it is a table.

Checked against published copies of the model cards: Beaver's template and its one output at the
last token, ArmoRM's 19 attributes in this order; against the toolkit that HelpSteer's models are
trained with: the order of its attributes. Not checked, as no weights were at hand: any real model's
numbers; whether a server can load Beaver (package safe-rlhf) and ArmoRM (remote code), which vLLM
does not know: they need a small server of their own with the `/classify` of `engines.classify`.

    beaver-reward   one logit, Bradley-Terry: no meaning across prompts. Non-commercial weights
    beaver-cost     one logit, HIGHER IS MORE HARMFUL; 0 is the boundary of safe: value =
    sigmoid(-cost), floor 0.5. Non-commercial armorm          19 attribute rewards; the gated sum of
    them is never a dimension's score: a reply that holds only it is refused skywork         one
    logit, Bradley-Terry, helpfulness only helpsteer       5 regressions to ratings of 0 to 4: value
    = x / 4; half a step beyond either end counts as that end
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# no blank after the last colon
BEAVER = "BEGINNING OF CONVERSATION: USER: {question} ASSISTANT:{answer}"


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of classifier.

    Attributes:
        labels: names of the outputs, in order; empty: any number of them, without names.
        dims: dimension -> label, where a dimension has a usual one.
        activation: sigmoid or softmax, or None.
        invert: higher is worse.
        range: ends of the outputs' own scale.
        layout: text that is rated; None: the server's chat template.
        calibration: see `Reward`.
    """

    labels: tuple[str, ...] = ()
    dims: Mapping[str, str] = field(default_factory=dict)
    activation: str | None = None
    invert: bool = False
    range: tuple[float, float] | None = None
    layout: str | None = None
    calibration: str = "ecdf"
    pass_threshold: float | None = None
    step: float = 0.0


ARMORM = (
    "helpsteer-helpfulness",
    "helpsteer-correctness",
    "helpsteer-coherence",
    "helpsteer-complexity",
    "helpsteer-verbosity",
    "ultrafeedback-overall_score",
    "ultrafeedback-instruction_following",
    "ultrafeedback-truthfulness",
    "ultrafeedback-honesty",
    "ultrafeedback-helpfulness",
    "beavertails-is_safe",
    "prometheus-score",
    "argilla-overall_quality",
    "argilla-judge_lm",
    "code-complexity",
    "code-style",
    "code-explanation",
    "code-instruction-following",
    "code-readability",
)

FAMILIES = {
    "beaver-reward": Family(
        ("reward",), {"helpful": "reward"}, layout=BEAVER, calibration="anchored"
    ),
    "beaver-cost": Family(
        ("cost",),
        {"harmless": "cost"},
        "sigmoid",
        invert=True,
        layout=BEAVER,
        calibration="sigmoid",
        pass_threshold=0.5,
    ),
    "armorm": Family(
        ARMORM,
        {
            "helpful": "ultrafeedback-helpfulness",
            "harmless": "beavertails-is_safe",
            "truthful": "ultrafeedback-truthfulness",
        },
    ),
    "skywork": Family(("reward",), {"helpful": "reward"}, calibration="anchored"),
    "helpsteer": Family(
        ("helpfulness", "correctness", "coherence", "complexity", "verbosity"),
        {"helpful": "helpfulness", "truthful": "correctness"},
        range=(0.0, 4.0),
        calibration="identity",
        pass_threshold=0.75,
    ),
}
