"""What test_dimension_recipes runs in a process with torch: `python by_dimension.py RECIPES DATASET
OUT`, JSON on stdout.

Small cases of the equations of raco.py and mahdpo.py, and runs of a few steps with a model of half
a million parameters.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

recipes, dataset, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
sys.path.insert(0, str(recipes))

import dpo  # noqa: E402
import mahdpo  # noqa: E402
import raco  # noqa: E402
import tiny_model  # noqa: E402
import torch  # noqa: E402
import trl_recipe  # noqa: E402
from recipe import Stop  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

TALK = [
    [
        {"role": "user", "content": "How do I get better with tea, question 7?"},
        {"role": "assistant", "content": "Start with tea."},
    ]
]


def combined(gradients: list[list[float]], weights: list[float], c: float) -> list[list[float]]:
    """What raco.py puts into the gradients of two parameters that hold a vector's halves; and the
    coefficients."""
    vectors = [torch.tensor(g, dtype=torch.float64) for g in gradients]
    half = len(gradients[0]) // 2
    trainer = SimpleNamespace(
        sums={k: [v[:half], v[half:]] for k, v in enumerate(vectors)},
        weights=weights,
        c=c,
        combined=[],
        dims=[str(k) for k in range(len(weights))],
        _metrics={"train": defaultdict(list)},
    )
    params: list[Any] = [SimpleNamespace(grad=None), SimpleNamespace(grad=None)]
    raco.ConflictTrainer.step_along(trainer, params)
    return [torch.cat([p.grad for p in params]).tolist(), trainer.combined]


def run(module: Any, name: str, *settings: str) -> dict[str, Any]:
    """A few steps of a recipe; what metrics.json would hold, and the losses of the steps."""
    losses: list[float] = []
    recipe = module.RECIPE
    own, args = trl_recipe.read_settings(
        recipe,
        recipes / "dpo" / "smoke.yaml",
        [
            f"dataset={dataset}",
            f"model={out / 'model'}",
            f"output_dir={out / name}",
            "max_steps=4",
            "warmup_steps=0",
            "max_length=96",
            *settings,
        ],
    )
    log = trl_recipe.ends
    trl_recipe.ends = lambda r, history: (
        losses.extend(h["loss"] for h in history if "loss" in h) or log(r, history)
    )
    try:
        return {**module.run(own, args), "losses": losses}
    finally:
        trl_recipe.ends = log


def logits(folder: Path) -> torch.Tensor:
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    ids = tokenizer(tokenizer.apply_chat_template(TALK[0], tokenize=False), return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        return model(ids).logits


def main() -> dict[str, Any]:
    cases = json.loads(sys.stdin.read())
    found: dict[str, Any] = {"combined": [combined(*case) for case in cases]}
    tiny_model.make(out / "model", TALK * 40, small=True)
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    weight = model.lm_head.weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    model.lm_head.weight.data.copy_(weight)
    model.save_pretrained(out / "model")
    found["dpo"] = run(dpo, "dpo", "config=preference_helpful")
    thrifty = ("precompute_ref_log_probs=true", "gradient_checkpointing=true")
    found["single"] = run(mahdpo, "single", "dimensions=[helpful]", *thrifty)
    found["same_weights"] = float((logits(out / "dpo") - logits(out / "single")).abs().max())
    found["heads"] = run(
        mahdpo, "heads", "weights={helpful: 1, harmless: 3}", "max_steps=12", "learning_rate=2e-3"
    )
    by_weight = {}
    for name, weights in (
        ("helpful", "{helpful: 1}"),
        ("harmless", "{harmless: 2}"),
        ("mixed", "{helpful: 0.25, harmless: 0.75}"),
    ):
        mahdpo.merge(
            None, [f"model={out / 'heads'}", f"weights={weights}", f"output_dir={out / name}"]
        )
        by_weight[name] = logits(out / name)
    mixed = 0.25 * by_weight["helpful"] + 0.75 * by_weight["harmless"]
    found["merged_error"] = [
        float((x - mixed).abs().max()) for x in (by_weight["mixed"], logits(out / "heads"))
    ]
    found["heads_differ"] = float((by_weight["helpful"] - by_weight["harmless"]).abs().max())
    found["lora"] = run(mahdpo, "lora", "lora=true", "max_steps=2", *thrifty)
    found["lora_logits"] = bool(logits(out / "lora").isfinite().all())
    uneven = "weights={helpful: 3, harmless: 1}"
    found["raco"] = run(raco, "raco", "c=0.5", "per_device_train_batch_size=4", uneven)
    found["steered"] = run(raco, "steered", "c=0", "per_device_train_batch_size=4", uneven)
    found["accumulated"] = run(
        raco,
        "accumulated",
        "c=0",
        "per_device_train_batch_size=2",
        "gradient_accumulation_steps=2",
        uneven,
        *thrifty,
    )
    found["refused"] = [
        refused(lambda: run(raco, "bad", "per_device_train_batch_size=3")),
        refused(lambda: run(raco, "bad", "weights={helpfull: 1}")),
        refused(lambda: run(raco, "bad", "c=1.5")),
        refused(
            lambda: mahdpo.merge(
                None,
                [f"model={out / 'heads'}", "weights={truthful: 1}", f"output_dir={out / 'bad'}"],
            )
        ),
    ]
    return found


def refused(work: Callable[[], object]) -> str:
    try:
        work()
    except Stop as e:
        return str(e)
    return ""


if __name__ == "__main__":
    said, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps(main()), file=said)
