# /// script
# requires-python = ">=3.11"
# dependencies = [
# "accelerate>=1.10", "datasets>=4.0", "peft>=0.17", "pyyaml>=6.0", "torch>=2.6",
# "transformers>=5.0", "trl>=1.10",
# ]
# ///
"""Sequential preference optimisation: one dimension after another, each stage's reference the
output of the one before.

    python sequential.py --config sequential/smoke.yaml dataset=runs/demo/dataset
    output_dir=runs/seq python sequential.py --config sequential/single-gpu-lora.yaml
    dataset=org/mora-pairs revision=v1.0.0 model=org/chat-7b \
        output_dir=runs/seq stages='[harmless, helpful, truthful]' replay=0.05

A stage is one run of dpo.py, which lies beside this file, in a process of its own. Its settings are
kept in output_dir/<number>-<dimension>/stage.yaml, its model in that folder. Stage k of dimension d
trains on the config `stageK_<d>` if that was built after the same dimensions, else on
`preference_<d>`. After a stop, the same command with resume=true goes on in the stage it stopped
in. On-policy: build the next stage's pairs with the model of the stage before, and name them in
stage_datasets. Keys: those of `Settings` below; every other one goes to dpo.py.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import datasets
import yaml
from recipe import Stop, command_line, dataset_name, first_line, read_values, shown, write_json

DPO = Path(__file__).with_name("dpo.py")
COLUMNS = ["prompt", "chosen", "rejected"]


@dataclasses.dataclass
class Settings:
    """This recipe's keys; every other key is one of dpo.py."""

    dataset: str  # local folder, or Hub id
    model: str  # of the first stage: folder, Hub id, or `tiny`
    output_dir: str
    # or names of configs
    stages: list[str] = dataclasses.field(
        default_factory=lambda: ["helpful", "harmless", "truthful"]
    )
    revision: str | None = None  # tag, branch or commit of the dataset on the Hub
    # pairs of earlier stages added to a stage, as a share of its own; 0.05 to 0.1 is usual
    replay: float = 0.0
    # stage -> dataset folder of its own (on-policy)
    stage_datasets: dict[str, str] = dataclasses.field(default_factory=dict)
    stage_launch: str | None = None  # flags of `accelerate launch`, which then starts each stage
    all_orders: bool = False  # train every order of the stages, each in output_dir/<a>-<b>-...
    resume: bool = False  # skip finished stages, go on in the one that stopped
    dry_run: bool = False  # print rows, tokens, steps and memory of each stage, train none
    seed: int = 0


@dataclasses.dataclass
class Stage:
    """One stage: its folder and where its pairs lie."""

    name: str
    folder: Path
    dataset: str
    config: str

    @property
    def finished(self) -> bool:
        return (self.folder / "metrics.json").is_file() and (self.folder / "stage.yaml").is_file()


def read_settings(file: Path | None, overrides: list[str]) -> tuple[Settings, dict[str, Any]]:
    """This recipe's settings, and those for dpo.py."""
    values = read_values(file, overrides)
    if missing := [key for key in ("dataset", "model", "output_dir") if not values.get(key)]:
        raise Stop(f"missing: {', '.join(missing)}; give {missing[0]}=...")
    if taken := [key for key in ("config", "dataset_mix", "save_model", "launch") if key in values]:
        raise Stop(
            f"{taken[0]} is set by the stages themselves: leave it out (see stages, replay and"
            " stage_launch)"
        )
    own = Settings(
        **{f.name: values.pop(f.name) for f in dataclasses.fields(Settings) if f.name in values}
    )
    stages, share = own.stages, own.replay
    if not isinstance(stages, list) or not stages or len(set(stages)) < len(stages):
        raise Stop(f"stages = {stages}: must be a list of dimensions, each once")
    if not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise Stop(f"replay = {share!r}: must be a number from 0 to 1")
    if unknown := set(own.stage_datasets) - set(stages):
        raise Stop(
            f"stage_datasets names {', '.join(sorted(unknown))}, which is not in stages = {stages}"
        )
    return own, values


def plan(own: Settings) -> list[Stage]:
    """The stages in order."""
    found = []
    for k, name in enumerate(own.stages):
        dataset = own.stage_datasets.get(name, own.dataset)
        revision = None if name in own.stage_datasets else own.revision
        try:
            configs = datasets.get_dataset_config_names(
                dataset_name(dataset, revision), revision=revision
            )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
            raise Stop(f"can't load dataset {dataset}: {first_line(e)}") from e
        config = config_of(name, own.stages[:k], configs)
        if config is None:
            raise Stop(
                f"dataset {dataset} has no config for stage {name!r}; it has: {', '.join(configs)}"
            )
        found.append(Stage(name, Path(own.output_dir) / f"{k + 1}-{name}", dataset, config))
    return found


def config_of(stage: str, earlier: list[str], configs: list[str]) -> str | None:
    """The config of a stage after the `earlier` ones: stageK_<stage> constrains exactly the
    dimensions of stages 1 .. K-1."""
    published = {int(m[1]): m[2] for c in configs if (m := re.fullmatch(r"stage(\d+)_(.+)", c))}
    for k, name in published.items():
        if name == stage and {published[j] for j in published if j < k} == set(earlier):
            return f"stage{k}_{stage}"
    return next((c for c in (f"preference_{stage}", stage) if c in configs), None)


def with_replay(own: Settings, stages: list[Stage], k: int) -> Path:
    """Folder of a dataset: stage k's splits, its train rows mixed with a seeded choice of the
    earlier stages' ones."""

    def rows(stage: Stage) -> datasets.DatasetDict:
        revision = None if stage.name in own.stage_datasets else own.revision
        return datasets.load_dataset(stage.dataset, stage.config, revision=revision).select_columns(
            COLUMNS
        )

    mine, folder = rows(stages[k]), stages[k].folder / "data"
    before = datasets.concatenate_datasets([rows(s)["train"] for s in stages[:k]]).shuffle(
        seed=own.seed
    )
    added = before.select(range(min(len(before), round(own.replay * len(mine["train"])))))
    mine["train"] = datasets.concatenate_datasets([mine["train"], added]).shuffle(seed=own.seed)
    print(
        f"stage {stages[k].name}: {len(mine['train'])} pairs, {len(added)} of them from earlier"
        " stages",
        file=sys.stderr,
    )
    for split, part in mine.items():
        part.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def run_stage(
    own: Settings, values: dict[str, Any], stages: list[Stage], k: int, model: str
) -> str:
    """Train stage k from `model` unless it is finished; the folder of its model, LoRA weights
    merged in."""
    stage = stages[k]
    local = stage.name in own.stage_datasets or bool(k and own.replay)
    later = {} if k == 0 else {"model_revision": None}
    settings = {
        **values,
        **later,
        "model": model,
        "output_dir": str(stage.folder),
        "seed": own.seed,
        "config": stage.config,
        "dataset": stage.dataset,
        "revision": None if local else own.revision,
    }
    if k and own.replay:
        settings |= {"dataset": str(stage.folder / "data"), "config": "default"}
    text, file = yaml.safe_dump(settings), stage.folder / "stage.yaml"
    if own.resume and file.is_file() and file.read_text("utf-8") != text:
        raise Stop(
            f"stage {stage.name} in {stage.folder} was begun with other settings: start anew with"
            " resume=false"
        )
    if not (own.resume and stage.finished):
        stage.folder.mkdir(parents=True, exist_ok=True)
        (stage.folder / "metrics.json").unlink(missing_ok=True)
        if k and own.replay:
            with_replay(own, stages, k)
        file.write_text(text, "utf-8")
        command = [sys.executable]
        if own.stage_launch:
            command += ["-m", "accelerate.commands.launch", *shlex.split(own.stage_launch)]
        flags = [f"resume={str(own.resume).lower()}", f"dry_run={str(own.dry_run).lower()}"]
        command += [str(DPO), "--config", str(file), *flags]
        print(f"stage {k + 1} of {len(stages)}: {shlex.join(command)}", file=sys.stderr, flush=True)
        if code := subprocess.run(command, check=False).returncode:
            raise Stop(
                f"stage {k + 1} ({stage.name}) ended with exit code {code}; mended, the same"
                " command with resume=true goes on there"
            )
    if (stage.folder / "adapter_config.json").is_file():
        return str(merged(stage.folder))
    return str(stage.folder)


def merged(folder: Path) -> Path:
    """The stage's adapter merged into its weights: the next stage's model and, its own adapter off,
    its reference."""
    out = folder / "merged"
    if not (out / "config.json").is_file():
        from peft import AutoPeftModelForCausalLM
        from transformers import AutoTokenizer

        model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype="auto").merge_and_unload()
        AutoTokenizer.from_pretrained(folder).save_pretrained(out)
        model.save_pretrained(out)
        del model
        gc.collect()
    return out


def write_results(own: Settings, stages: list[Stage], model: str) -> None:
    """metrics.json of all stages, and a card for the last model."""
    figures = [json.loads((s.folder / "metrics.json").read_text("utf-8")) for s in stages]
    found = {
        "recipe": "sequential",
        "dataset": own.dataset,
        "revision": own.revision,
        "replay": own.replay,
        "seed": own.seed,
        "model": own.model,
        "final_model": model,
        "stages": [
            {"stage": s.name, "config": s.config, **f} for s, f in zip(stages, figures, strict=True)
        ],
    }
    local = Path(own.dataset).is_dir()
    head = {"tags": ["trl", "dpo", "sequential"]} | ({} if local else {"datasets": [own.dataset]})
    where = shown(own.dataset) + ("" if local else f" at {own.revision or 'no tag (main)'}")
    columns = ("pairs", "steps", "loss_first", "loss_last", "reward_margin_last", "eval_accuracy")
    cells = [[f"{f[c]:.4g}" if f.get(c) is not None else "" for c in columns] for f in figures]
    rows = [
        f"| {s.folder.name} | {s.config} | {' | '.join(c)} |"
        for s, c in zip(stages, cells, strict=True)
    ]
    card = (
        f"---\n{yaml.safe_dump(head)}---\n# Sequential DPO on {Path(own.dataset).name}\n\nModel:"
        f" {shown(own.model)}. Data: {where}. Recipe: sequential, replay {own.replay}. Each stage's"
        f" reference is the model of the stage before.\n\n| stage | config | {' | '.join(columns)}"
        f" |\n|{'---|' * (len(columns) + 2)}\n"
        + "\n".join(rows)
        + "\n\nFigures of the runs on their own data: no evaluation.\n"
    )
    for folder in (Path(own.output_dir), *(s.folder for s in stages), Path(model)):
        (folder / "README.md").write_text(card, "utf-8")
    write_json(Path(own.output_dir) / "metrics.json", found)


def work(file: Path | None, overrides: list[str]) -> None:
    own, values = read_settings(file, overrides)
    if not own.all_orders:
        return run_order(own, values)
    for order in itertools.permutations(own.stages):
        run_order(
            dataclasses.replace(
                own, stages=list(order), output_dir=str(Path(own.output_dir, "-".join(order)))
            ),
            values,
        )


def run_order(own: Settings, values: dict[str, Any]) -> None:
    """All stages of one order."""
    stages, model = plan(own), own.model
    if own.dry_run:  # elsewhere, so that no result of an earlier run is touched
        with tempfile.TemporaryDirectory() as folder:
            for stage in stages:
                stage.folder = Path(folder, stage.folder.name)
            for k in range(len(stages)):
                run_stage(own, values, stages, k, model)
        return
    (Path(own.output_dir) / "metrics.json").unlink(missing_ok=True)
    for k in range(len(stages)):
        model = run_stage(own, values, stages, k, model)
    write_results(own, stages, model)
    print(
        f"{len(stages)} stages, {' -> '.join(own.stages)}: the model is {model};"
        f" {Path(own.output_dir) / 'metrics.json'}"
    )


if __name__ == "__main__":
    raise SystemExit(command_line(__doc__, work))
