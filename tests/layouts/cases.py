"""Small files in the layouts and containers that people keep, and what each one says.

    case("name", what to write, what is asked)

What is asked is one text per prompt: turns joined by " / ", a system turn behind "S:", a dropped
row as "!reason". A case that is refused has a pattern of the message, and what is asked once the
fix that the message names is typed. `rated` are the answers with their ratings, of all rows.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

Q, A, B, Q2 = "Why is the sky blue?", "Light scatters.", "It is not.", "And at dusk?"
OTHER = "How deep is the sea?"
USER, SAID, MORE = (
    {"role": "user", "content": Q},
    {"role": "assistant", "content": A},
    {"role": "user", "content": Q2},
)
SAID_B = {"role": "assistant", "content": B}
SYSTEM = {"role": "system", "content": "Be brief."}
GPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
ROWS = [{"prompt": Q}, {"prompt": OTHER}]
BOTH = [Q, OTHER]
PAIR = [(A, {"preferred": 1.0}), (B, {"preferred": 0.0})]
SCORED = [(A, {"preferred": 1.0, "score": 8.0}), (B, {"preferred": 0.0, "score": 3.0})]
HH = {
    "chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}",
    "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}",
}


@dataclass(frozen=True)
class Case:
    """One file or folder, and what is read from it."""

    name: str
    write: Callable[[Path], Path]
    asks: list[str]
    refused: str = ""
    rated: list[tuple[str, dict[str, float]]] | None = None
    given: dict[str, Any] = field(default_factory=dict)  # settings


CASES: list[Case] = []


def file(name: str, data: bytes | str, asks: list[str], label: str = "", **more: Any) -> None:
    """A file by its name and bytes."""
    raw = data.encode() if isinstance(data, str) else data

    def write(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        return path

    CASES.append(Case(label or name, write, asks, **more))


def rows(label: str, content: Any, *asks: str, **more: Any) -> None:
    """JSON lines."""
    listed = content if isinstance(content, list) else [content]
    file("rows.jsonl", lines(listed), list(asks), label, **more)


def folder(label: str, files: dict[str, bytes | str], asks: list[str], **more: Any) -> None:
    """A folder of files."""

    def write(tmp: Path) -> Path:
        for name, data in files.items():
            path = tmp / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)
        return tmp / "data"

    CASES.append(Case(label, write, asks, **more))


def lines(listed: list[Any]) -> str:
    return "".join(json.dumps(r) + "\n" for r in listed)


def table(listed: list[dict[str, Any]], delimiter: str = ",", end: str = "\r\n") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(listed[0]), delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(listed)
    return out.getvalue()


def parquet(listed: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(listed), out)
    return out.getvalue()


def arrow(listed: list[dict[str, Any]], stream: bool) -> bytes:
    out, made = io.BytesIO(), pa.Table.from_pylist(listed)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, made.schema) as writer:
        writer.write_table(made)
    return out.getvalue()


def zipped(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            z.writestr(name, data)
    return out.getvalue()


def tarred(files: dict[str, str], mode: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data.encode())
            tar.addfile(info, io.BytesIO(data.encode()))
    return out.getvalue()


def zst(data: str) -> bytes:
    return bytes(pa.compress(data.encode(), "zstd", asbytes=True))


# questions in a column

for column in "prompt question instruction query goal Question Goal Behavior input text".split():
    rows(f"column {column}", {column: Q, "id": 1}, Q)
rows("prompt and category", [{"prompt": Q, "category": "sky"}], Q)
rows("prompt and its reply", {"prompt": Q, "response": A}, Q)
rows("prompt and system", {"system": "Be brief.", "prompt": Q}, f"S:Be brief. / {Q}")
rows(
    "OpenOrca",
    {"id": "1", "system_prompt": "Be brief.", "question": Q, "response": A},
    f"S:Be brief. / {Q}",
)
rows("an empty system column", {"system": "", "prompt": Q}, Q)
rows("prompt of turns", {"prompt": [SYSTEM, USER]}, f"S:Be brief. / {Q}")
rows("text and label", {"text": Q, "label": 1}, Q)
rows("null among prompts", [{"prompt": None}, {"prompt": Q}], "!null_text", Q)
rows(
    "nan as a text",
    [{"prompt": "nan"}, {"prompt": "NA"}, {"prompt": Q}],
    "!null_text",
    "!null_text",
    Q,
)
rows("a number among prompts", [{"prompt": 7}, {"prompt": Q}], "!wrong_type", Q)
rows("an empty prompt", [{"prompt": " "}, {"prompt": Q}], "!empty_prompt", Q)
rows(
    "control characters",
    [{"prompt": "Why\x00?"}, {"prompt": "A\x1b[31mB"}, {"prompt": "Tab\tand\nline?"}],
    "!control_character",
    "!control_character",
    "Tab\tand\nline?",
)
rows(
    "Alpaca",
    {"instruction": "Name it.", "input": "France", "output": "Paris."},
    "Name it.\n\nFrance",
)
rows("Alpaca without input", {"instruction": Q, "input": "", "output": A}, Q)
rows(
    "Alpaca, an input that says there is none",
    [
        {"instruction": Q, "input": said, "output": A}
        for said in ("No input", "< noinput >", "No input.", "<N/A>", "[None]", "noInput!")
    ],
    *[Q] * 6,
)
rows(
    "Alpaca, an input that only begins so",
    {"instruction": Q, "input": "No input is needed.", "output": A},
    f"{Q}\n\nNo input is needed.",
)
rows(
    "Alpaca, mapped as documented",
    [{"instruction": "Name it.", "input": x, "output": A} for x in ("France", "Peru")],
    "Name it.\n\nFrance",
    "Name it.\n\nPeru",
    given={"source.columns.prompt": "instruction"},
)
rows(
    "Alpaca with system",
    {"instruction": Q, "input": "", "system": "Be brief."},
    f"S:Be brief. / {Q}",
)
rows(
    "Dolly",
    {"instruction": "Sum it up.", "context": "The sea.", "response": A},
    "Sum it up.\n\nThe sea.",
)
rows(
    "HarmBench",
    {"Behavior": "Explain it", "ContextString": "Of locks.", "Tags": "x"},
    "Explain it\n\nOf locks.",
)
rows("AlpacaEval", {"instruction": Q, "output": A, "generator": "m", "dataset": "koala"}, Q)
rows("XSTest", {"id": 1, "prompt": Q, "type": "homonyms", "label": "safe", "note": ""}, Q)
rows(
    "TruthfulQA",
    {"Type": "Adversarial", "Category": "Sky", "Question": Q, "Best Answer": A, "Source": "x"},
    Q,
)
rows("TruthfulQA, multiple choice", {"question": Q, "mc1_targets": {A: 1, B: 0}}, Q)
rows("MT-Bench", {"question_id": 81, "category": "writing", "turns": [Q, Q2]}, Q)
rows("a mapped column", {"ask": Q, "topic": "sky"}, Q, given={"source.columns.prompt": "ask"})
rows(
    "a mapped field of a column",
    {"data": {"ask": Q}},
    Q,
    given={"source.columns.prompt": "data.ask"},
)
rows(
    "mapped turns",
    {"dlg": [USER, SAID, MORE]},
    f"{Q} / {A} / {Q2}",
    given={"source.columns.messages": "dlg"},
)
rows(
    "mapped input",
    {"question": Q, "passage": "Text."},
    f"{Q}\n\nText.",
    given={"source.columns.prompt": "question", "source.columns.input": "passage"},
)

# conversations

rows("messages", {"messages": [USER]}, Q)
rows("messages, finished", {"messages": [USER, SAID]}, Q)
rows(
    "messages, several turns",
    {"messages": [SYSTEM, USER, SAID, MORE]},
    f"S:Be brief. / {Q} / {A} / {Q2}",
)
rows("messages, an empty system turn", {"messages": [{"role": "system", "content": ""}, USER]}, Q)
rows(
    "messages, developer",
    {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    f"S:Be brief. / {Q}",
)
rows(
    "messages, parts", {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}]}, Q
)
rows(
    "messages, two parts",
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}],
            }
        ]
    },
    "A\nB",
)
rows(
    "messages, a picture",
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    "!not_text",
)
rows(
    "messages, a tool",
    [{"messages": [USER, {"role": "tool", "content": "7"}]}, {"messages": [USER]}],
    "!unknown_role",
    Q,
)
rows(
    "messages, Gemini parts",
    {
        "messages": [
            {"role": "user", "parts": [{"text": Q}]},
            {"role": "model", "parts": [{"text": A}]},
        ]
    },
    Q,
)
rows("messages as JSON", {"messages": json.dumps([USER, SAID])}, Q)
rows("messages as Python writes them", {"messages": repr([USER, SAID])}, Q)
rows(
    "messages as a dict of lists",
    {"messages": {"role": ["user", "assistant"], "content": [Q, A]}},
    Q,
)
rows(
    "messages beside a system column",
    {"system": "Be brief.", "messages": [USER]},
    f"S:Be brief. / {Q}",
)
rows(
    "no_robots",
    {"prompt": Q, "prompt_id": "1", "messages": [SYSTEM, USER, SAID], "category": "Chat"},
    f"S:Be brief. / {Q}",
)
rows(
    "conversation, WildChat",
    {"conversation": [{**USER, "language": "English"}, SAID], "model": "m"},
    Q,
)
rows("ShareGPT", {"conversations": GPT}, Q)
rows(
    "ShareGPT, system and turns",
    {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            *GPT,
            {"from": "human", "value": Q2},
        ]
    },
    f"S:Be brief. / {Q} / {A} / {Q2}",
)
rows(
    "ShareGPT, system in a column",
    {"system": "Be brief.", "conversations": GPT},
    f"S:Be brief. / {Q}",
)
rows(
    "ShareGPT, other names",
    {
        "conversations": [
            {"from": "user", "value": Q},
            {"from": "chatgpt" if False else "assistant", "value": A},
        ]
    },
    Q,
)
rows("ShareGPT as JSON", {"conversations": json.dumps(GPT)}, Q)
rows(
    "ShareGPT that starts with the model", {"conversations": GPT[1:] + GPT}, "!starts_without_user"
)
rows(
    "Capybara",
    {"source": "x", "conversation": [{"input": Q, "output": A}, {"input": Q2, "output": B}]},
    f"{Q} / {A} / {Q2}",
)
rows("UltraChat", {"id": "1", "data": [Q, A, Q2, B]}, f"{Q} / {A} / {Q2}")
rows(
    "oasst messages",
    [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": Q},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": A},
    ],
    Q,
    "!not_a_first_turn",
)
rows(
    "two layouts in one file",
    [{"prompt": Q}, {"conversations": GPT}, {"question": OTHER}],
    Q,
    Q,
    OTHER,
)

# transcripts in a text

rows(
    "ChatML",
    {
        "text": f"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>\n"
    },
    f"S:Be brief. / {Q}",
)
rows("ChatML, open", {"prompt": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n"}, Q)
rows(
    "Llama 3",
    {
        "text": f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{Q}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{A}<|eot_id|>"
    },
    Q,
)
rows(
    "Llama 2",
    {
        "text": f"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{Q} [/INST] {A} </s><s>[INST] {Q2} [/INST]"
    },
    f"S:Be brief. / {Q} / {A} / {Q2}",
)
rows("Mistral", {"text": f"<s>[INST] {Q} [/INST] {A}</s>"}, Q)
rows("Zephyr", {"text": f"<|user|>\n{Q}</s>\n<|assistant|>\n{A}</s>"}, Q)
rows(
    "Gemma",
    {
        "text": f"<bos><start_of_turn>user\n{Q}<end_of_turn>\n<start_of_turn>model\n{A}<end_of_turn>\n"
    },
    Q,
)
rows(
    "Guanaco",
    {"text": f"### Human: {Q}### Assistant: {A}### Human: {Q2}### Assistant: {B}"},
    f"{Q} / {A} / {Q2}",
)
rows("Phi-3", {"text": f"<|user|>\n{Q}<|end|>\n<|assistant|>\n{A}<|end|>\n<|endoftext|>"}, Q)
rows("OLMo", {"text": f"<|endoftext|><|user|>\n{Q}\n<|assistant|>\n{A}<|endoftext|>"}, Q)
rows(
    "Alpaca's template",
    {
        "text": f"Below is an instruction that describes a task. Write a response.\n\n### Instruction:\n{Q}\n\n### Response:\n{A}"
    },
    Q,
)
rows(
    "Alpaca's template with input",
    {
        "text": f"Below is an instruction.\n\n### Instruction:\nName it.\n\n### Input:\nFrance\n\n### Response:\n{A}"
    },
    "Name it.\n\nFrance",
)
rows("Vicuna", {"text": f"USER: {Q} ASSISTANT: {A}</s>USER: {Q2} ASSISTANT:"}, f"{Q} / {A} / {Q2}")
rows("Beaver", {"prompt": f"BEGINNING OF CONVERSATION: USER: {Q} ASSISTANT:"}, Q)
rows("User and Assistant", {"text": f"User: {Q}\nAssistant: {A}"}, Q)
rows(
    "a reply marked within a line",
    [{"text": f"User: {Q}\nAssistant: {A}"}, {"text": f"User: {Q} Assistant: {A}"}],
    Q,
    "!stray_marker",
)
rows(
    "LLaMA-Factory's turns before an instruction",
    [
        {"instruction": Q2, "input": "", "output": B, "history": [[Q, A]]},
        {"instruction": OTHER, "input": "", "output": B, "history": []},
    ],
    f"{Q} / {A} / {Q2}",
    OTHER,
)
rows(
    "turns before a question",
    {"question": Q2, "history": [{"role": "user", "content": Q}, {"role": "bot", "content": A}]},
    f"{Q} / {A} / {Q2}",
)
rows(
    "Human and Assistant",
    {"text": f"Human: {Q}\nSecond line.\nAssistant: {A}\nHuman: {Q2}\nAssistant:"},
    f"{Q}\nSecond line. / {A} / {Q2}",
)
rows(
    "HH-RLHF with one line break between turns",
    {"chosen": f"Human: {Q}\nAssistant: {A}", "rejected": f"Human: {Q}\nAssistant: {B}"},
    Q,
    rated=PAIR,
)
rows(
    "HH-RLHF with a name in a turn",
    [HH, {**HH, "chosen": f"\n\nHuman: {Q}\nAssistant: x\n\nAssistant: {A}"}],
    Q,
    "!context_mismatch",
)
rows("HH-like prompt", {"prompt": f"\n\nHuman: {Q}\n\nAssistant:"}, Q)
rows(
    "HH-like prompt without the first blank lines",
    {"prompt": f"Human: {Q}\n\nAssistant: {A}\n\nHuman: {Q2}\n\nAssistant:"},
    f"{Q} / {A} / {Q2}",
)
rows(
    "a prompt that speaks of marks",
    {"prompt": "Assistant: is that a job title?"},
    "Assistant: is that a job title?",
)
rows("a prompt with JSON in it", {"prompt": '[{"a": 1}] is what?'}, '[{"a": 1}] is what?')
rows("a prompt that is JSON of no turns", {"prompt": '{"a": 1}'}, '{"a": 1}')
rows(
    "a marked row among plain ones",
    [{"prompt": OTHER}, {"prompt": f"Human: {Q}\n\nAssistant:"}],
    OTHER,
    Q,
)
rows(
    "red team", {"transcript": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rating": 1.0, "tags": None}, Q
)

# labels that a table holds as texts

TEXTS = {True: "True", False: "false"}
file(
    "kto.csv",
    table([{"prompt": Q, "completion": t, "label": TEXTS[t == A]} for t in (A, B)]),
    [Q, Q],
    rated=PAIR,
)
file(
    "safety.csv",
    table([{"prompt": Q, "response": A, "is_safe": "True", "severity_level": "2"}]),
    [Q],
    rated=[(A, {"safe": 1.0, "severity": 2.0})],
)
file(
    "choice.csv",
    table([{"prompt": Q, "response_0": B, "response_1": A, "better_response_id": "1"}]),
    [Q],
    rated=[(B, {"preferred": 0.0}), (A, {"preferred": 1.0})],
)
file(
    "pku.csv",
    table(
        [
            {
                "prompt": Q,
                "response_0": A,
                "response_1": B,
                "is_response_0_safe": "True",
                "is_response_1_safe": "False",
                "response_0_severity_level": "0",
                "response_1_severity_level": "3",
                "better_response_id": "0",
                "safer_response_id": "0",
            }
        ]
    ),
    [Q],
    rated=[
        (A, {"severity": 0.0, "safe": 1.0, "better": 1.0, "safer": 1.0, "preferred": 1.0}),
        (B, {"severity": 3.0, "safe": 0.0, "better": 0.0, "safer": 0.0, "preferred": 0.0}),
    ],
)
file(
    "helpsteer.csv",
    table([{"prompt": Q, "response": A, "helpfulness": "3", "correctness": "4"}]),
    [Q],
    rated=[(A, {"helpfulness": 3.0, "correctness": 4.0})],
)

# preferences

rows(
    "Prometheus preferences",
    {"orig_instruction": Q, "orig_response_A": A, "orig_response_B": B, "orig_preference": "A"},
    Q,
    rated=PAIR,
)
rows("JudgeBench", {"question": Q, "response_A": A, "response_B": B, "label": "A>B"}, Q, rated=PAIR)
rows("pair", {"prompt": Q, "chosen": A, "rejected": B}, Q, rated=PAIR)
for label, answers in {
    "kto": {"completion": 42, "label": True},
    "pair": {"chosen": 42, "rejected": 41},
    "choice": {"response_0": 42, "response_1": 41, "choice": 0},
}.items():
    rows(f"{label}, numbers for answers", {"prompt": Q, **answers}, Q, rated=[])
rows("pair, question", {"question": Q, "chosen": A, "rejected": B}, Q, rated=PAIR)
rows("pair, query", {"query": Q, "chosen": A, "rejected": B}, Q, rated=PAIR)
rows(
    "pair, Orca",
    {"system": "Be brief.", "question": Q, "chosen": A, "rejected": B},
    f"S:Be brief. / {Q}",
    rated=PAIR,
)
rows(
    "pair with scores",
    {"prompt": Q, "chosen": A, "rejected": B, "score_chosen": 8.0, "score_rejected": 3.0},
    Q,
    rated=SCORED,
)
rows(
    "pair with scores inside",
    {"prompt": Q, "chosen": A, "rejected": B, "metadata": {"score_chosen": 8, "score_rejected": 3}},
    Q,
    rated=SCORED,
)
rows(
    "pair with scores as text",
    {"prompt": Q, "chosen": A, "rejected": B, "chosen-rating": "8", "rejected-rating": "3.0"},
    Q,
    rated=SCORED,
)
rows(
    "pair with equal scores",
    {"prompt": Q, "chosen": A, "rejected": B, "score_chosen": 5, "score_rejected": 5},
    Q,
    rated=[(A, {"preferred": 0.5, "score": 5.0}), (B, {"preferred": 0.5, "score": 5.0})],
)
rows(
    "pair with N/A",
    {"prompt": Q, "chosen": A, "rejected": B, "score_chosen": "N/A", "score_rejected": 5},
    Q,
    rated=[(A, {"preferred": 1.0}), (B, {"preferred": 0.0, "score": 5.0})],
)
rows(
    "pair of conversations",
    {"prompt": Q, "chosen": [USER, SAID], "rejected": [USER, SAID_B]},
    Q,
    rated=PAIR,
)
rows(
    "pair of conversations with a system turn",
    {"prompt": Q, "chosen": [SYSTEM, USER, SAID], "rejected": [SYSTEM, USER, SAID_B]},
    f"S:Be brief. / {Q}",
    rated=PAIR,
)
rows(
    "pair of single turns",
    {"prompt": [USER], "chosen": [SAID], "rejected": [SAID_B]},
    Q,
    rated=PAIR,
)
rows(
    "pair of turns without a list",
    {"conversations": GPT[:1], "chosen": GPT[1], "rejected": {"from": "gpt", "value": B}},
    Q,
    rated=PAIR,
)
rows("pair, implicit turns", {"chosen": [USER, SAID], "rejected": [USER, SAID_B]}, Q, rated=PAIR)
rows(
    "pair, implicit turns as JSON",
    {"chosen": json.dumps([USER, SAID]), "rejected": json.dumps([USER, SAID_B])},
    Q,
    rated=PAIR,
)
rows(
    "pair, implicit in ChatML",
    {
        "chosen": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{A}<|im_end|>",
        "rejected": f"<|im_start|>user\n{Q}<|im_end|>\n<|im_start|>assistant\n{B}<|im_end|>",
    },
    Q,
    rated=PAIR,
)
rows(
    "pair whose contexts differ",
    [
        {"chosen": [USER, SAID], "rejected": [MORE, SAID_B]},
        {"chosen": [USER, SAID], "rejected": [USER, SAID_B]},
    ],
    "!context_mismatch",
    Q,
    rated=PAIR,
)
rows("HH", HH, Q, rated=PAIR)
rows(
    "HH with its prompt in a column",
    {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "chosen": A, "rejected": B},
    Q,
    rated=PAIR,
)
rows(
    "a reply that begins like a transcript",
    {"prompt": Q, "chosen": "User: x\nAssistant: y", "rejected": B},
    Q,
    rated=[("User: x\nAssistant: y", {"preferred": 1.0}), (B, {"preferred": 0.0})],
)
rows("a side that is missing", {"prompt": Q, "chosen": A, "rejected": None}, Q, rated=PAIR[:1])
rows(
    "OpenAI",
    {
        "input": {"messages": [USER], "tools": []},
        "preferred_output": [SAID],
        "non_preferred_output": [SAID_B],
    },
    Q,
    rated=PAIR,
)
rows("LLaMA-Factory, old ranking", {"instruction": Q, "input": "", "output": [A, B]}, Q, rated=PAIR)
rows(
    "H4",
    {
        "prompt": Q,
        "prompt_id": "1",
        "chosen": [USER, SAID],
        "rejected": [USER, SAID_B],
        "messages": [USER, SAID],
        "score_chosen": 8.0,
        "score_rejected": 3.0,
    },
    Q,
    rated=SCORED,
)
rows(
    "arena",
    {
        "question_id": "1",
        "model_a": "x",
        "model_b": "y",
        "winner": "model_b",
        "conversation_a": [USER, SAID_B],
        "conversation_b": [USER, SAID],
    },
    Q,
    rated=[(B, {"preferred": 0.0}), (A, {"preferred": 1.0})],
)
rows(
    "arena, tie",
    {"winner": "tie (bothbad)", "conversation_a": [USER, SAID], "conversation_b": [USER, SAID_B]},
    Q,
    rated=[(A, {"preferred": 0.5}), (B, {"preferred": 0.5})],
)
rows(
    "arena, later turns",
    {
        "winner": "model_a",
        "conversation_a": [USER, SAID, MORE, SAID],
        "conversation_b": [USER, SAID_B, MORE, SAID],
    },
    Q,
    rated=[(A, {}), (B, {})],
)
rows(
    "arena, Kaggle",
    {
        "id": 1,
        "prompt": json.dumps([Q]),
        "response_a": json.dumps([A]),
        "response_b": json.dumps([B]),
        "winner_model_a": 1,
        "winner_model_b": 0,
        "winner_tie": 0,
    },
    Q,
    rated=PAIR,
)
rows(
    "HelpSteer2 preference",
    {"split": "train", "prompt": Q, "response_1": A, "response_2": B, "preference_strength": -2},
    Q,
    rated=PAIR,
)
rows(
    "HelpSteer3",
    {
        "domain": "x",
        "context": [USER, SAID, MORE],
        "response1": A,
        "response2": B,
        "overall_preference": 3,
    },
    f"{Q} / {A} / {Q2}",
    rated=[(A, {"preferred": 0.0}), (B, {"preferred": 1.0})],
)
rows(
    "PKU, single dimension",
    {"prompt": Q, "response_0": A, "response_1": B, "better_response_id": 0},
    Q,
    rated=PAIR,
)
rows(
    "WebGPT",
    {"question": {"full_text": Q}, "answer_0": A, "answer_1": B, "score_0": 0.5, "score_1": -0.5},
    Q,
    rated=[(A, {"preferred": 1.0, "score": 0.5}), (B, {"preferred": 0.0, "score": -0.5})],
)
rows(
    "summaries",
    {"info": {"post": "Long."}, "summaries": [{"text": A}, {"text": B}], "choice": 0},
    "Summarize this post.\n\nLong.",
    rated=PAIR,
)
rows(
    "AlpacaFarm",
    {"instruction": Q, "input": "", "output_1": A, "output_2": B, "preference": 1},
    Q,
    rated=PAIR,
)
rows(
    "SHP",
    {"history": Q, "human_ref_A": A, "human_ref_B": B, "score_A": 9, "score_B": 2, "labels": 1},
    Q,
    rated=[(A, {"preferred": 1.0, "score": 9.0}), (B, {"preferred": 0.0, "score": 2.0})],
)

# rated answers

rows(
    "answers with ratings",
    {"prompt": Q, "answers": [{"text": A, "ratings": {"x": 5}}, {"text": B, "ratings": {"x": 1}}]},
    Q,
    rated=[(A, {"x": 5.0}), (B, {"x": 1.0})],
)
rows(
    "Nectar",
    {
        "prompt": f"\n\nHuman: {Q}\n\nAssistant: ",
        "answers": [
            {"answer": A, "model": "m", "rank": 1.0},
            {"answer": B, "model": "n", "rank": 2.0},
        ],
    },
    Q,
    rated=[(A, {"rank": 1.0, "preferred": 1.0}), (B, {"rank": 2.0, "preferred": 0.0})],
)
rows(
    "Stack Exchange",
    {"question": Q, "answers": [{"text": A, "pm_score": 4}, {"text": B, "pm_score": 1}]},
    Q,
    rated=[(A, {"pm_score": 4.0}), (B, {"pm_score": 1.0})],
)
rows(
    "Distilabel",
    {"instruction": Q, "generations": [A, B], "ratings": [5.0, None]},
    Q,
    rated=[(A, {"score": 5.0}), (B, {})],
)
rows(
    "responses and scores",
    {"prompt": Q, "responses": [A, B], "scores": [0.9, 0.1]},
    Q,
    rated=[(A, {"score": 0.9}), (B, {"score": 0.1})],
)
rows(
    "responses and scores as JSON",
    {"prompt": Q, "responses": json.dumps([A, B]), "scores": "[0.9, 0.1]"},
    Q,
    rated=[(A, {"score": 0.9}), (B, {"score": 0.1})],
)
rows(
    "a list that is said to be ranked",
    {"prompt": Q, "response": [A, B]},
    Q,
    rated=PAIR,
    given={"source.columns.ranked": "response"},
)
rows(
    "oasst tree",
    {
        "message_tree_id": "1",
        "prompt": {
            "text": Q,
            "role": "prompter",
            "replies": [{"text": A, "rank": 0}, {"text": B, "rank": 1}],
        },
    },
    Q,
    rated=[(A, {"rank": 0.0, "preferred": 1.0}), (B, {"rank": 1.0, "preferred": 0.0})],
)
rows(
    "KTO",
    [{"prompt": Q, "completion": A, "label": True}, {"prompt": Q, "completion": B, "label": False}],
    Q,
    Q,
    rated=PAIR,
)
rows("KTO of turns", {"prompt": [USER], "completion": [SAID], "label": True}, Q, rated=PAIR[:1])
rows(
    "BeaverTails",
    {"prompt": Q, "response": A, "category": {"violence": False}, "is_safe": True},
    Q,
    rated=[(A, {"safe": 1.0})],
)
rows(
    "PKU-SafeRLHF-QA",
    {
        "prompt": Q,
        "response": A,
        "is_safe": False,
        "harm_category": {"Drugs": True},
        "severity_level": 2,
    },
    Q,
    rated=[(A, {"safe": 0.0, "severity": 2.0})],
)
rows(
    "HelpSteer2",
    {
        "prompt": f"{Q}<extra_id_1>Assistant\n{A}<extra_id_1>User\n{Q2}",
        "response": B,
        "helpfulness": 3,
        "correctness": 4,
        "coherence": 4,
        "complexity": 2,
        "verbosity": 2,
    },
    f"{Q} / {A} / {Q2}",
    rated=[
        (B, {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 2, "verbosity": 2})
    ],
)
for label, rating in (("text", "4"), ("a number", 4), ("a decimal", "4.0")):
    rows(
        f"UltraFeedback, ratings as {label}",
        {
            "source": "flan",
            "instruction": Q,
            "completions": [
                {
                    "response": A,
                    "annotations": {
                        "helpfulness": {"Rating": rating},
                        "honesty": {"Rating": "N/A"},
                    },
                }
            ],
        },
        Q,
        rated=[(A, {"helpfulness": 4.0})],
    )
rows(
    "PKU-SafeRLHF",
    {
        "prompt": Q,
        "response_0": A,
        "response_1": B,
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "better_response_id": 0,
        "safer_response_id": 0,
    },
    Q,
    rated=[
        (A, {"better": 1, "safer": 1, "safe": 1, "preferred": 1}),
        (B, {"better": 0, "safer": 0, "safe": 1, "preferred": 0}),
    ],
)
rows(
    "best of four, text of scores",
    {"prompt": Q, "completions": [A, B], "scores": ["4", "N/A"]},
    Q,
    rated=[(A, {"score": 4.0}), (B, {})],
)

rows(
    "Self-Instruct",
    {"id": "1", "instruction": "Name it.", "instances": [{"input": "France", "output": "Paris."}]},
    "Name it.\n\nFrance",
)
rows(
    "Self-Instruct without input", {"instruction": Q, "instances": [{"input": "", "output": A}]}, Q
)
rows(
    "Prometheus",
    {"orig_instruction": Q, "orig_response": A, "orig_score": "4", "orig_criteria": "x"},
    Q,
    rated=[(A, {"score": 4.0})],
)

# JSON files

file("lines.jsonl", lines(ROWS), BOTH)
file("x.ndjson", lines(ROWS), BOTH)
file("x.jsonlines", lines(ROWS), BOTH)
file("array.json", json.dumps(ROWS), BOTH)
file("pretty.json", json.dumps(ROWS, indent=2), BOTH)
file("array.jsonl", json.dumps(ROWS), BOTH)
file("pretty-objects.jsonl", "\n".join(json.dumps(r, indent=2) for r in ROWS), BOTH)
file("one-line-objects.jsonl", "".join(json.dumps(r) for r in ROWS), BOTH)
file("commas-at-ends.jsonl", ",\n".join(json.dumps(r) for r in ROWS), BOTH)
file("array-by-lines.jsonl", "[\n" + ",\n".join(json.dumps(r) for r in ROWS) + "\n]\n", BOTH)
file("trailing-comma.json", '[{"prompt": "' + Q + '",},\n {"prompt": "' + OTHER + '"},]', BOTH)
file("comma-in-a-text.json", '[{"prompt": "Why ,] so?",}]', ["Why ,] so?"])
file("cr.jsonl", lines(ROWS).replace("\n", "\r"), BOTH)
file("crlf.jsonl", lines(ROWS).replace("\n", "\r\n"), BOTH)
file("bom.jsonl", "\ufeff" + lines(ROWS), BOTH)
file("utf16.jsonl", lines(ROWS).encode("utf-16"), BOTH)
file("lines.json", lines(ROWS), BOTH)
file("by-id.json", json.dumps({"a1": ROWS[0], "b2": ROWS[1]}), BOTH)
file("nested.json", json.dumps({"data": {"rows": ROWS}}), BOTH)
file("wrapped.json", json.dumps({"version": 1, "data": ROWS}), BOTH)
file("splits.json", json.dumps({"train": ROWS, "test": [{"prompt": "Held out?"}]}), BOTH)
file("only-test.json", json.dumps({"test": ROWS}), BOTH, refused="holds the splits test")
file("columns.json", json.dumps({"prompt": BOTH, "id": [1, 2]}), BOTH)
file("pandas.json", json.dumps({"prompt": {"0": Q, "1": OTHER}, "id": {"0": 1, "1": 2}}), BOTH)
file(
    "pandas-split.json",
    json.dumps({"columns": ["prompt"], "index": [0, 1], "data": [[Q], [OTHER]]}),
    BOTH,
)
file("texts.json", json.dumps(BOTH), BOTH)
file("one.json", json.dumps(ROWS[0]), [Q])
file("one-chat.json", json.dumps({"messages": [USER, SAID]}), [Q])
file(
    "damaged.jsonl",
    '{"prompt": "' + Q + '"}\n{"prompt": \n' + json.dumps(ROWS[1]),
    [Q, "!bad_json", OTHER],
)
file("damaged.json", lines(ROWS[:1]) + '{"prompt": \n' + lines(ROWS[1:]), [Q, "!bad_json", OTHER])
file("damaged-first.jsonl", '{"prompt": \n' + lines(ROWS), ["!bad_json", *BOTH])

# tables

file("x.csv", table(ROWS), BOTH)
file("lf.csv", table(ROWS, end="\n"), BOTH)
file("cr.csv", table(ROWS, end="\r"), BOTH)
file("bom.csv", "\ufeff" + table(ROWS), BOTH)
file("utf16.csv", table(ROWS).encode("utf-16"), BOTH)
file("x.tsv", table(ROWS, "\t"), BOTH)
file("semicolon.csv", table([{**r, "id": 1} for r in ROWS], ";"), BOTH)
file("nan.csv", table([{"prompt": "nan", "n": 1}, {"prompt": Q, "n": 2}]), ["!null_text", Q])
file("messages.csv", table([{"messages": json.dumps([USER, SAID])}]), [Q])
file("python.csv", table([{"messages": repr([USER, SAID])}]), [Q])
file("pandas-index.csv", table([{"": i, **r} for i, r in enumerate(ROWS)]), BOTH)
file("pairs.csv", table([{"prompt": Q, "chosen": A, "rejected": B}]), [Q], rated=PAIR)
file("x.parquet", parquet(ROWS), BOTH)
file("turns.parquet", parquet([{"messages": [USER, SAID]}]), [Q])
file("x.arrow", arrow(ROWS, True), BOTH)
file("file.arrow", arrow(ROWS, False), BOTH)
file("x.feather", arrow(ROWS, False), BOTH)
file("x.txt", f"{Q}\n\n{OTHER}\n", BOTH)
file("cr.txt", f"{Q}\r{OTHER}\r", BOTH)

# packed, misnamed

file("x.jsonl.gz", gzip.compress(lines(ROWS).encode()), BOTH)
file("x.jsonl.zst", zst(lines(ROWS)), BOTH)
file("x.jsonl.xz", lzma.compress(lines(ROWS).encode()), BOTH)
file("x.jsonl.bz2", bz2.compress(lines(ROWS).encode()), BOTH)
file("x.csv.gz", gzip.compress(table(ROWS).encode()), BOTH)
file("x.parquet.gz", gzip.compress(parquet(ROWS)), BOTH)
file("x.json.zst", zst(json.dumps(ROWS)), BOTH)
file("x.zip", zipped({"rows.jsonl": lines(ROWS)}), BOTH)
file(
    "split.zip",
    zipped({"d/train.csv": table(ROWS), "d/test.csv": table(ROWS), "d/README.md": "x"}),
    BOTH,
)
file("x.tar.gz", tarred({"rows.jsonl": lines(ROWS)}, "w:gz"), BOTH)
file("x.tgz", tarred({"a/train.jsonl": lines(ROWS), "a/test.jsonl": "{}"}, "w:gz"), BOTH)
file("x.tar", tarred({"rows.csv": table(ROWS)}, "w"), BOTH)
file("named-gz.jsonl.gz", lines(ROWS), BOTH)
file("gz-without-name.jsonl", gzip.compress(lines(ROWS).encode()), BOTH)
file("parquet-named.jsonl", parquet(ROWS), BOTH)
file("no-suffix", lines(ROWS), BOTH)

# folders

folder(
    "a test split beside",
    {"train.jsonl": lines(ROWS), "test.jsonl": lines([{"prompt": "Held out?"}])},
    BOTH,
)
folder(
    "validation beside",
    {
        "data/train-00000-of-00002.parquet": parquet(ROWS[:1]),
        "data/train-00001-of-00002.parquet": parquet(ROWS[1:]),
        "data/validation-00000-of-00001.parquet": parquet(ROWS),
    },
    BOTH,
)
folder(
    "the test split, asked for",
    {"train.jsonl": lines(ROWS), "test.jsonl": lines([{"prompt": "Held out?"}])},
    ["Held out?"],
    given={"source.split": "test"},
)
folder(
    "only a test split", {"test.jsonl": lines(ROWS)}, BOTH, refused="no file of the split 'train'"
)
folder(
    "papers beside",
    {
        "rows.jsonl": lines(ROWS),
        "README.md": "# x",
        "README.txt": "x",
        "LICENSE": "x",
        "dataset_infos.json": "{}",
        "notes.txt": "not a prompt",
    },
    BOTH,
)
folder(
    "a drifted file", {"a.jsonl": lines(ROWS[:1]), "b.jsonl": lines([{"question": OTHER}])}, BOTH
)
folder(
    "a file of nothing known",
    {"a.jsonl": lines(ROWS[:1]), "b.jsonl": lines([{"ask": OTHER, "n": 1}])},
    BOTH,
    refused="b.jsonl has no layout",
)
folder(
    "hive partitions",
    {"lang=en/part-0.parquet": parquet(ROWS[:1]), "lang=de/part-0.parquet": parquet(ROWS[1:])},
    [OTHER, Q],
)
folder(
    "hive splits",
    {
        "split=train/0.parquet": parquet(ROWS),
        "split=test/0.parquet": parquet([{"prompt": "Held out?"}]),
    },
    BOTH,
)
folder(
    "save_to_disk",
    {
        "data-00000-of-00001.arrow": arrow(ROWS, True),
        "dataset_info.json": "{}",
        "state.json": "{}",
        "cache-1.arrow": arrow([{"prompt": "Stale?"}], True),
    },
    BOTH,
)
folder(
    "save_to_disk with splits",
    {
        "dataset_dict.json": '{"splits": ["train", "test"]}',
        "train/data-00000-of-00001.arrow": arrow(ROWS, True),
        "test/data-00000-of-00001.arrow": arrow([{"prompt": "Held out?"}], True),
    },
    BOTH,
)
folder("texts alone", {"a.txt": Q, "b.txt": OTHER}, BOTH)

# refused, with the way on

rows(
    "unknown columns",
    [{"ask": Q, "n": 1}, {"ask": OTHER, "n": 2}],
    *BOTH,
    refused=r"columns are ask, n, where ask is 'Why is the sky blue\?'",
)
file(
    "no header.csv",
    f"1,{Q},science\n2,{OTHER},science\n",
    [],
    refused="if these names are a row, write `prompt` and the like above them",
)
rows("unknown columns, the longer asks", {"title": "Sky", "body": Q}, Q, refused="no layout")
rows(
    "an unknown name of turns",
    {"dlg": [USER, SAID]},
    Q,
    refused="--set source.columns.messages=dlg",
)
rows(
    "a column with a blank",
    {"my question": Q},
    Q,
    refused="--set 'source.columns.prompt=my question'",
)
rows("a field inside", {"row": {"ask": Q}}, Q, refused="--set source.columns.prompt=row.ask")
rows("turns inside", {"row": {"dlg": [USER, SAID]}}, Q, refused="source.columns.messages=row.dlg")
rows(
    "two questions",
    {"prompt": "Answer it.", "question": Q},
    "Answer it.",
    refused="may ask in 'prompt'",
)
rows(
    "SQuAD",
    {"context": "The sky.", "question": Q, "answers": {"text": ["x"]}},
    Q,
    refused="'context' .* may belong to it",
)
rows(
    "prompt and input",
    {"prompt": "Name it.", "input": "France"},
    "Name it.",
    refused="'input' .* may belong to it",
)
rows(
    "answers as questions",
    {"prompt": Q, "chosen": A, "rejected": B},
    Q,
    refused="holds answers",
    given={"source.columns.prompt": "chosen"},
)
rows(
    "a mapped column that is not there",
    {"ask": Q},
    Q,
    refused="no column 'asked'.*did you mean 'ask'",
    given={"source.columns.prompt": "asked"},
)
rows(
    "a layout that it is not",
    {"prompt": Q},
    Q,
    refused="no first row of .* is of the layout messages",
    given={"source.layout": "messages"},
)
rows(
    "no questions at all", {"chosen": A, "rejected": B}, refused="no text that could be a question"
)
rows("numbers alone", {"a": 1, "b": 2}, refused="no text that could be a question")
rows("rows that are lists", [[[Q, A]]], refused="has to be an object")
file("latin1.csv", f"prompt\n{Q} \u00e9\n".encode("latin-1"), [], refused="save it as UTF-8")
file("doubled.csv", f"prompt,prompt\n{Q},{OTHER}\n", [], refused="names the column 'prompt' twice")
file(
    "lfs.parquet",
    "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    [],
    refused="git lfs pull",
)
file("page.jsonl", "<!DOCTYPE html><html></html>", [], refused="a web page")
file("x.xlsx", zipped({"xl/workbook.xml": "x"}), [], refused="an Excel workbook")
file("x.pkl", b"\x80\x04\x95\x00", [], refused="a pickle, which is never opened")
file("empty.zip", zipped({"a.png": "x"}), [], refused="no data file in")
