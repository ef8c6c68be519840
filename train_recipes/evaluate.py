# /// script
# requires-python = ">=3.11"
# dependencies = ["accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0"]
# ///
"""Answers of a trained model to held-out prompts, without a server, and how far it moved from its
reference.

    python evaluate.py --config evaluate/smoke.yaml dataset=runs/demo/dataset model=runs/dpo-smoke
    output_dir=runs/answers mora-data evaluate sft=http://host:8000/v1
    mora=runs/answers/answers.jsonl --dataset runs/demo --judge-base-url http://judge:8000/v1

Each line of output_dir/answers.jsonl: prompt (messages), answer, tokens, finish_reason, and with a
reference model `kl`, the sum over the answer's tokens of log p(model) - log p(reference): a
one-sample estimate of the KL divergence, in nats (for an unbiased one, temperature=1 top_p=1).
`plain` prompts are the source's own, `fused` ones are apart. The same command goes on where it
stopped; a batch's seed comes from its prompts, so that the answers are the same. With choices=FILE,
choices.jsonl holds each question's mc1 (its likeliest answer is the true one) and mc2 (the true
answers' share of the probability), by the sum of log p of an answer's tokens after the question in
the chat template, without examples before it. A stated failure is one line, exit 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import torch
import yaml
from recipe import Stop, command_line, dataset_name, first_line, read_values, with_template
from transformers import AutoModelForCausalLM, AutoTokenizer

COLUMNS = ("prompt", "source_prompt", "arm")


@dataclasses.dataclass
class Settings:
    """The keys of the YAML file and of key=value."""

    dataset: str  # local folder, or Hub id
    model: str  # folder (an adapter, too) or Hub id
    output_dir: str
    revision: str | None = None  # tag, branch or commit of the dataset on the Hub
    config: str = "prompt_only"
    split: str = "test"
    sets: list[str] = dataclasses.field(default_factory=lambda: ["plain", "fused"])
    limit: int | None = None  # prompts per set
    model_revision: str | None = None
    reference: str | None = None  # model to measure the KL divergence from
    # TruthfulQA's multiple choice (mc_task.json, or the Hub's Parquet file): adds choices.jsonl
    choices: str | None = None
    dtype: str = "auto"
    temperature: float = 1.0  # as in the build; 0 takes the likeliest token
    top_p: float = 0.95
    max_new_tokens: int = 512
    samples: int = 1
    batch_size: int = 16
    use_cpu: bool = False
    cpu_threads: int | None = None
    seed: int = 0


def read_settings(file: Path | None, overrides: list[str]) -> Settings:
    own = read_values(file, overrides, lambda values: Settings(**values))
    if not own.use_cpu and not torch.accelerator.is_available():
        raise Stop(
            "no GPU is visible: give use_cpu=true to answer on the CPU (practical for tiny models)"
        )
    return own


def load_prompts(own: Settings) -> list[list[dict[str, str]]]:
    """The conversations of the sets asked for, each once, in the dataset's order."""
    try:
        rows = datasets.load_dataset(
            dataset_name(own.dataset, own.revision),
            own.config,
            split=own.split,
            revision=own.revision,
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        raise Stop(
            f"can't load {own.split} of {own.config} of dataset {own.dataset}: {first_line(e)}"
        ) from e
    if missing := [c for c in COLUMNS if c not in rows.column_names]:
        raise Stop(f"config {own.config!r} lacks {', '.join(missing)}: take config=prompt_only")
    found: dict[str, list[dict[str, str]]] = {}
    unclear = 0
    for part in own.sets:
        here: list[list[dict[str, str]]] = []
        for row in rows:
            if part == "fused" and row["arm"] != "identity":
                here.append(row["prompt"])
            elif part == "plain" and (row["arm"] == "identity" or len(row["prompt"]) == 1):
                plain = [{"role": "user", "content": row["source_prompt"]}]
                here.append(row["prompt"] if row["arm"] == "identity" else plain)
            elif part == "plain":
                unclear += 1
        distinct = list({json.dumps(m): m for m in here}.values())
        found |= {json.dumps(m): m for m in distinct[: own.limit]}
    if unclear:
        print(
            f"{unclear} conversations of several turns have no plain form and are left out",
            file=sys.stderr,
        )
    if not found:
        raise Stop(f"no prompt in {own.split} of {own.config} of {own.dataset} for sets={own.sets}")
    return list(found.values())


def load_choices(file: Path) -> list[tuple[str, dict[str, list[tuple[str, bool]]]]]:
    """Each question with the answers, and their truth, of mc1 and mc2."""
    try:
        if file.suffix == ".parquet":
            rows = pq.read_table(file).to_pylist()
        else:
            text = file.read_text("utf-8")
            is_lines = file.suffix == ".jsonl"
            rows = [json.loads(x) for x in text.splitlines()] if is_lines else json.loads(text)
        return [
            (r["question"], {m: as_pairs(r[f"{m}_targets"]) for m in ("mc1", "mc2")}) for r in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise Stop(
            f"can't read choices from {file}: {first_line(e)}; it needs question, mc1_targets and"
            " mc2_targets"
        ) from e


def as_pairs(targets: dict[str, Any]) -> list[tuple[str, bool]]:
    if "choices" in targets:
        targets = dict(zip(targets["choices"], targets["labels"], strict=True))
    return [(answer, bool(true)) for answer, true in targets.items()]


@torch.inference_mode()
def choose(
    model: Any, tokenizer: Any, question: str, sets: dict[str, list[tuple[str, bool]]], batch: int
) -> dict[str, Any]:
    """The row of one question."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    start = tokenizer(asked, add_special_tokens=False)["input_ids"]
    answers = list(dict.fromkeys(answer for pairs in sets.values() for answer, _ in pairs))
    total: dict[str, float] = {}
    for first in range(0, len(answers), batch):
        part = answers[first : first + batch]
        said = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in part]
        longest = max(map(len, said))
        ids = torch.tensor(
            [start + s + [tokenizer.pad_token_id] * (longest - len(s)) for s in said],
            device=model.device,
        )
        mask = torch.tensor(
            [[1] * (len(start) + len(s)) + [0] * (longest - len(s)) for s in said],
            device=model.device,
        )
        found = (logprobs(model, ids, mask, len(start)) * mask[:, len(start) :]).sum(1)
        total |= dict(zip(part, found.tolist(), strict=True))
    best, right = max(sets["mc1"], key=lambda pair: total[pair[0]])
    most = max(total.values())
    weights = [(math.exp(total[answer] - most), true) for answer, true in sets["mc2"]]
    return {
        "prompt": question,
        "answer": best,
        "mc1": float(right),
        "mc2": sum(w for w, true in weights if true) / sum(w for w, _ in weights),
    }


def load_model(name: str, revision: str | None, own: Settings) -> Any:
    try:
        dtype = "float32" if own.use_cpu and own.dtype == "auto" else own.dtype
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype)
    except (OSError, ValueError, KeyError) as e:
        raise Stop(f"can't load model {name}: {first_line(e)}") from e
    return model.to("cpu" if own.use_cpu else torch.accelerator.current_accelerator()).eval()


@torch.inference_mode()
def answer(
    model: Any, reference: Any, tokenizer: Any, prompts: list[Any], own: Settings
) -> list[dict[str, Any]]:
    """One row per prompt and sample."""
    rendered = [
        tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
        for p in prompts
    ]
    text = [t for t in rendered for _ in range(own.samples)]
    given = tokenizer(text, return_tensors="pt", padding=True, add_special_tokens=False).to(
        model.device
    )
    torch.manual_seed(int(hashlib.sha256(f"{own.seed}{text}".encode()).hexdigest()[:8], 16))
    sampling: dict[str, Any] = {"do_sample": False}
    if own.temperature:
        sampling = {
            "do_sample": True,
            "temperature": own.temperature,
            "top_p": own.top_p,
            "top_k": 0,
        }
    out = model.generate(
        **given, max_new_tokens=own.max_new_tokens, pad_token_id=tokenizer.pad_token_id, **sampling
    )
    start, rows = given["input_ids"].shape[1], []
    said = out[:, start:]
    ended = (said == tokenizer.eos_token_id).cumsum(1)
    # up to and with the first end token
    there = (ended == 0) | ((ended == 1) & (said == tokenizer.eos_token_id))
    kl = None
    if reference is not None:
        mask = torch.cat([given["attention_mask"], there.long()], 1)
        kl = (
            ((logprobs(model, out, mask, start) - logprobs(reference, out, mask, start)) * there)
            .sum(1)
            .tolist()
        )
    for i, ids in enumerate(said):
        n = int(there[i].sum())
        row = {
            "prompt": prompts[i // own.samples],
            "answer": tokenizer.decode(ids[:n], skip_special_tokens=True).strip(),
            "tokens": n,
            "finish_reason": "stop" if bool(ended[i].any()) else "length",
        }
        rows.append(row if kl is None else {**row, "kl": round(kl[i], 4)})
    return rows


def logprobs(model: Any, ids: torch.Tensor, mask: torch.Tensor, start: int) -> torch.Tensor:
    """Log-probability of each token from `start` on."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = (
        model(input_ids=ids, attention_mask=mask, position_ids=positions)
        .logits[:, start - 1 : -1]
        .float()
    )
    return logits.log_softmax(-1).gather(-1, ids[:, start:, None])[..., 0]


def run(own: Settings) -> tuple[int, Path]:
    """Answer what is not answered yet; the number of rows and their file."""
    prompts = load_prompts(own)
    torch.set_num_threads(own.cpu_threads or torch.get_num_threads())
    file, about = Path(own.output_dir) / "answers.jsonl", Path(own.output_dir) / "settings.yaml"
    settings = yaml.safe_dump(
        {
            k: v
            for k, v in dataclasses.asdict(own).items()
            if k not in ("cpu_threads", "use_cpu", "limit", "choices")
        }
    )
    if file.is_file() and (not about.is_file() or about.read_text("utf-8") != settings):
        raise Stop(f"{file} holds answers of other settings: give another output_dir, or remove it")
    file.parent.mkdir(parents=True, exist_ok=True)
    about.write_text(settings, "utf-8")
    whole = file.read_text("utf-8").rpartition("\n")[0].splitlines() if file.is_file() else []
    size = own.batch_size * own.samples
    rows = (
        [json.loads(line) for line in whole[: len(whole) // size * size]]
        if len(whole) < len(prompts) * own.samples
        else whole
    )
    todo = prompts[len(rows) // own.samples :]
    questions = load_choices(Path(own.choices)) if own.choices else []
    if todo or questions:
        model = load_model(own.model, own.model_revision, own)
        reference = load_model(own.reference, None, own) if own.reference else None
        tokenizer = AutoTokenizer.from_pretrained(
            own.model, revision=own.model_revision, padding_side="left"
        )
        with_template(tokenizer, own.model)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        if todo:
            file.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
        for first in range(0, len(todo), own.batch_size):
            new = answer(model, reference, tokenizer, todo[first : first + own.batch_size], own)
            with file.open("a", encoding="utf-8") as f:
                f.write("".join(json.dumps(r) + "\n" for r in new))
            print(
                f"{len(prompts) - len(todo) + first + len(new) // own.samples} of {len(prompts)}"
                " prompts",
                file=sys.stderr,
            )
        chosen = [
            choose(model, tokenizer, question, sets, own.batch_size)
            for question, sets in questions[: own.limit]
        ]
        if chosen:
            means = ", ".join(
                f"{m} {sum(r[m] for r in chosen) / len(chosen):.3f}" for m in ("mc1", "mc2")
            )
            print(f"{len(chosen)} questions: {means}", file=sys.stderr)
            file.with_name("choices.jsonl").write_text(
                "".join(json.dumps(r) + "\n" for r in chosen), "utf-8"
            )
    return len(prompts) * own.samples, file


def work(file: Path | None, overrides: list[str]) -> None:
    n, answers = run(read_settings(file, overrides))
    print(f"{n} answers in {answers}")


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, work, "the same command goes on"))
