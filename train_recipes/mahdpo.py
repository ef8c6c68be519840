# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""DPO with one output head per dimension on a shared backbone; whoever uses the model chooses the
weights of the heads.

    python mahdpo.py --config mahdpo/smoke.yaml dataset=runs/demo/dataset output_dir=runs/mahdpo
    python mahdpo.py merge model=runs/mahdpo weights='{helpful: 0.7, harmless: 0.3}'
    output_dir=runs/mine

MAH-DPO (Shen et al. 2025, arXiv:2510.01167): head d has weights W_d, all start as the model's own
output layer; a pair of dimension d is scored by head d alone, and

    r_d(y) = beta log pi_d(y | x) / ref(y | x)
    L = mean over the batch's dimensions d of mean over its pairs of -log sigmoid(r_d(chosen) -
    r_d(rejected)) logits(h) = sum_d w_d W_d h = (sum_d w_d W_d) h,  sum_d w_d = 1

so that every choice of weights is an ordinary model: `merge` writes it, and any server serves it.
Checked against the authors' public code: the loss, the heads, the weighted logits. Theirs adds
noise of 0.001 to each head at the start, here they are equal; their decoding guided by process
rewards is not here. The equations' numbers in the paper were not seen.

Read: the config preference_by_dim (prompt, chosen, rejected, dimension). Keys: those of `Settings`
in trl_recipe.py and dimension_recipe.py (`weights`: of the model that is written at the end) and
any field of TRL's DPOConfig. Written to output_dir: the merged model with its card,
heads.safetensors, metrics.json. A stated failure is one line and exit 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from dimension_recipe import (
    COLUMNS,
    DimensionSettings,
    DimensionTrainer,
    load_dimensions,
    weights_of,
)
from dpo import LOGGED, length
from recipe import Stop, command_line, first_line, read_values
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import DPOConfig
from trl_recipe import (
    Recipe,
    adapter,
    conversations,
    guarded,
    load_tokenizer,
    loading,
    model_folder,
    start,
    train,
)


class Heads(torch.nn.Module):
    """Output layers over one hidden state; the `active` one answers. Stands where a model has its
    lm_head."""

    bias = None

    def __init__(self, weight: torch.Tensor, n: int) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(weight.detach().clone().repeat(n, 1, 1))
        self.active = 0

    @property
    def weight(self) -> torch.Tensor:
        return self.weights[self.active]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden, self.weight)


class HeadsTrainer(DimensionTrainer):
    """Scores each pair by the head of its dimension."""

    def turn_to(self, model: Any, dimension: int) -> None:
        for module in model.modules():  # LoRA keeps a copy of the layers that it trains in full
            if isinstance(module, Heads):
                module.active = dimension

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        losses = [(loss, n) for _, loss, n in self.dimension_losses(model, inputs)]
        return torch.stack([x for x, _ in losses]).sum() / sum(n > 0 for _, n in losses)


RECIPE = Recipe(
    Path(__file__).stem,
    "preference_by_dim",
    "pairs",
    COLUMNS,
    dict(LOGGED),
    HeadsTrainer,
    DPOConfig,
    length,
    DimensionSettings,
)


def with_heads(folder: str, args: DPOConfig, n: int) -> Any:
    """The model with n equal heads for its output layer, no longer tied to its input layer."""
    model = AutoModelForCausalLM.from_pretrained(folder, **args.model_init_kwargs)
    model.lm_head = Heads(model.get_output_embeddings().weight, n)
    model.config.tie_word_embeddings = False
    return model


def merged(weights_D_V_H: torch.Tensor, shares: list[float]) -> torch.Tensor:
    """sum_d w_d W_d."""
    return torch.einsum(
        "d,dvh->vh", torch.tensor(shares, dtype=torch.float32), weights_D_V_H.float()
    ).to(weights_D_V_H.dtype)


def save(trainer: Any, dims: list[str], shares: list[float], out: Path) -> None:
    """heads.safetensors, and an ordinary model of the weighted heads."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
        state = model.state_dict()
    if not trainer.args.should_save:
        return
    weights = state.pop("lm_head.weights").detach().cpu()
    save_file(
        {d: w.contiguous() for d, w in zip(dims, weights, strict=True)}, out / "heads.safetensors"
    )
    state["lm_head.weight"] = merged(weights, shares)
    plain = AutoModelForCausalLM.from_config(model.config, dtype=weights.dtype)
    plain.generation_config = model.generation_config
    plain.save_pretrained(out, state_dict=state)
    trainer.processing_class.save_pretrained(out)


def run(own: DimensionSettings, args: DPOConfig) -> dict[str, Any]:
    """Train, and what metrics.json holds."""
    rows, held_out, dims = load_dimensions(RECIPE, own)
    shares = weights_of(own, dims)
    RECIPE.logged.update({f"margin/{d}": f"reward_margin_{d}" for d in dims})
    folder = model_folder(own, args, lambda: conversations(RECIPE, rows))
    set_seed(args.seed)
    with loading(own):
        model, tokenizer = with_heads(folder, args, len(dims)), load_tokenizer(own, folder)
        reference = None
        if not own.lora:
            reference = AutoModelForCausalLM.from_pretrained(folder, **args.model_init_kwargs)
        args.model_init_kwargs = None
        trainer = guarded(HeadsTrainer)(
            model=model,
            ref_model=reference,
            args=args,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=adapter(own, modules_to_save=["lm_head"]),
        )
    if args.precompute_ref_log_probs:
        trainer.ref_model = None
    trainer.dims = dims
    saved, own.save_model = own.save_model, False
    found = train(RECIPE, own, trainer, rows)
    if saved:
        save(trainer, dims, shares, Path(args.output_dir))
    return found | {
        "dimensions": dims,
        "weights": shares,
        **{f"pairs_{d}": rows["head"].count(k) for k, d in enumerate(dims)},
    }


def merge(file: Path | None, overrides: list[str]) -> None:
    """Write the model of other weights of a finished run's heads."""
    given = read_values(file, overrides)
    if missing := [key for key in ("model", "weights", "output_dir") if not given.get(key)]:
        raise Stop(f"missing: {', '.join(missing)}; give {missing[0]}=...")
    try:
        heads = load_file(Path(given["model"]) / "heads.safetensors")
        model = AutoModelForCausalLM.from_pretrained(given["model"], dtype="auto")
    except (OSError, ValueError) as e:
        raise Stop(f"no model with heads in {given['model']}: {first_line(e)}") from e
    dims = list(heads)
    if unknown := sorted(set(given["weights"]) - set(dims)):
        raise Stop(
            f"weights names {unknown[0]!r}, which is no head of {given['model']}; it has:"
            f" {', '.join(dims)}"
        )
    shares = weights_of(DimensionSettings("", "", weights=given["weights"]), dims)
    with torch.no_grad():
        model.lm_head.weight.copy_(merged(torch.stack([heads[d] for d in dims]), shares))
    model.save_pretrained(given["output_dir"])
    AutoTokenizer.from_pretrained(given["model"]).save_pretrained(given["output_dir"])
    print(
        f"{', '.join(f'{d} {w:.2f}' for d, w in zip(dims, shares, strict=True))}:"
        f" {given['output_dir']}"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["merge"]:
        del sys.argv[1]
        raise SystemExit(command_line(merge.__doc__, merge, "nothing was written"))
    raise SystemExit(start(RECIPE, run, __doc__))
