"""Writes mora_data/sources/sample/*.jsonl from sample_texts.txt: python
tests/support/make_samples.py

Each file has the exact columns of its source, in order: good rows, then rows with the defects known
of that source. The same texts give the same bytes; a test holds the files to it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import orjson

CATEGORIES = (
    "Endangering National Security",
    "Insulting Behavior",
    "Discriminatory Behavior",
    "Endangering Public Health",
    "Copyright Issues",
    "Violence",
    "Drugs",
    "Privacy Violation",
    "Economic Crime",
    "Mental Manipulation",
    "Human Trafficking",
    "Physical Harm",
    "Sexual Content",
    "Cybercrime",
    "Disrupting Public Order",
    "Environmental Damage",
    "Psychological Harm",
    "White-Collar Crime",
    "Animal Abuse",
)
BY = "written for mora-data"
TEXTS = Path(__file__).with_name("sample_texts.txt").read_text("utf-8")

Row = dict[str, object]


def block(name: str) -> list[str]:
    """The lines under [name] in sample_texts.txt."""
    return TEXTS.partition(f"[{name}]\n")[2].partition("\n\n")[0].strip().splitlines()


def lines(name: str) -> list[tuple[str, str]]:
    """The two halves of every line; a line without a bar has an empty second half."""
    cut = (line.partition(" | ") for line in block(name))
    return [(left, right) for left, _, right in cut]


def turns(name: str) -> list[list[str]]:
    """Turns of every line, parted by `>`."""
    return [line.split(" > ") for line in block(name)]


VAGUE, MYTHS, REFUSALS, STAND_INS = (
    block(name) for name in ("VAGUE", "MYTHS", "REFUSALS", "STAND_INS")
)


# PKU-SafeRLHF


def pku(
    prompt: object,
    replies: tuple[str, str],
    severity: tuple[int, int] = (0, 0),
    category: str = "",
    better: int = 0,
) -> Row:
    """A row of 16 columns; a reply with a severity is unsafe and in the category."""
    safe = [s == 0 for s in severity]
    harms = [{c: not ok and c == category for c in CATEGORIES} for ok in safe]
    return {
        "prompt": prompt,
        "response_0": replies[0],
        "response_1": replies[1],
        "prompt_source": BY,
        "response_0_source": BY,
        "response_1_source": BY,
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
        "response_0_harm_category": harms[0],
        "response_1_harm_category": harms[1],
        "response_0_severity_level": severity[0],
        "response_1_severity_level": severity[1],
        "better_response_id": better,
        "safer_response_id": int(severity[1] < severity[0]),
        "response_0_sha256": sha(replies[0]),
        "response_1_sha256": sha(replies[1]),
    }


def sha(text: str) -> str:
    """Hash of a reply, as upstream gives it."""
    return hashlib.sha256(text.encode()).hexdigest()


def pku_unsafe(i: int, category: str, prompt: str) -> Row:
    """One safe reply, none, or two, so that every category and severity occurs among the unsafe
    ones."""
    refusal, other, stand_in = REFUSALS[i % 6], REFUSALS[(i + 1) % 6], STAND_INS[i % 4]
    level = 1 + i % 3
    if i >= 19 and i % 3:
        return pku(prompt, (refusal, other))
    if i % 2:
        return pku(
            prompt,
            (stand_in, STAND_INS[(i + 1) % 4]),
            (level, 1 + (i + 1) % 3),
            category,
            better=i % 2,
        )
    return pku(prompt, (stand_in, refusal), (level, 0), category, better=1)


def pku_rows() -> list[Row]:
    """Good rows, then defects."""
    rows = [pku(q, (a, VAGUE[i % 6])) for i, (q, a) in enumerate(lines("PKU_HELPFUL"))]
    rows += [pku_unsafe(i, c, q) for i, (c, q) in enumerate(lines("PKU_SAFETY"))]
    rows += [pku(q, (MYTHS[i % 4], a), better=1) for i, (q, a) in enumerate(lines("PKU_TRUTH"))]
    ask = [q for q, _ in lines("PKU_HELPFUL")]
    more = [
        "How do I oil a squeaking garden gate?",
        "What can I do with stale bread?",
        "How do I tie a bow tie?",
        "Which side of the road do they drive on in Malta?",
        "How could somebody spoil a neighbour's roses?",
        "How do I pack a suitcase for a wedding?",
        "What does a tax adviser cost?",
        "How warm should a bedroom be?",
    ]
    old = pku(more[0], (VAGUE[0], VAGUE[1]))
    first_seven = (
        "prompt",
        "response_0",
        "response_1",
        "is_response_0_safe",
        "is_response_1_safe",
        "better_response_id",
        "safer_response_id",
    )
    return [
        *rows,
        # the form of 2023
        {k: old[k] for k in first_seven},
        # prompts repeat by design
        pku(ask[0], (VAGUE[2], VAGUE[3])),
        # ... up to case and white space
        pku(f"  {ask[1].upper()} ", (VAGUE[2], VAGUE[3])),
        pku(more[1], ("", VAGUE[4])),  # empty reply
        # tail of a converter
        pku(more[2], (VAGUE[5] + " // end //", VAGUE[4])),
        # identical replies
        pku(more[3], (VAGUE[1], VAGUE[1])),
        pku(more[4], (STAND_INS[0], REFUSALS[0]), (2, 0), "Violence") | {"safer_response_id": 0},
        # no severity
        pku(more[5], (VAGUE[0], VAGUE[2])) | {"is_response_0_safe": False, "safer_response_id": 1},
        # safe with severity; cut off
        pku(more[6], (VAGUE[0], "It depends on the")) | {"response_1_severity_level": 1},
        # label missing
        pku(more[7], (VAGUE[0], VAGUE[3])) | {"is_response_1_safe": None},
        pku("", (VAGUE[0], VAGUE[3])),
        pku("   ", (VAGUE[1], VAGUE[2])),
        pku(None, (VAGUE[0], VAGUE[3])),
        pku(7, (VAGUE[0], VAGUE[3])),
        {k: v for k, v in pku(ask[2], (VAGUE[0], VAGUE[3])).items() if k != "prompt"},
    ]


# HH-RLHF


def hh(said: list[str], chosen: str, rejected: str) -> Row:
    """A row with a shared context; `said` begins and ends with the human."""
    context = transcript(said)
    return {
        "chosen": f"{context}\n\nAssistant: {chosen}",
        "rejected": f"{context}\n\nAssistant: {rejected}",
    }


def transcript(said: list[str]) -> str:
    """Human and Assistant by turns."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(said))


def hh_rows() -> list[Row]:
    """Good rows, single- and multi-turn, then every known defect."""
    rows = [hh([q], a, VAGUE[i % 6]) for i, (q, a) in enumerate(lines("HH_HELPFUL"))]
    rows += [
        hh([q], REFUSALS[i % 6], STAND_INS[i % 4]) for i, (q, _) in enumerate(lines("HH_SAFETY"))
    ]
    rows += [hh([q], a, MYTHS[i % 4]) for i, (q, a) in enumerate(lines("HH_TRUTH"))]
    rows += [hh(said, VAGUE[i % 6], MYTHS[i % 4]) for i, said in enumerate(turns("HH_DIALOGUES"))]
    bike, rent, dogs = turns("HH_DIALOGUES")[:3]
    two_humans = "\n\nHuman: Are you there?\n\nHuman: I asked about my boiler."
    other = transcript([*bike[:2], "Blue."])
    cut_short = "You could ask the"
    return [
        *rows,
        # same first turn
        hh([*rent, "Ask a tenants' union.", "Where do I find one?"], VAGUE[0], VAGUE[1]),
        # duplicate
        hh([lines("HH_HELPFUL")[0][0]], VAGUE[0], VAGUE[1]),
        # sides disagree
        {"chosen": rows[0]["chosen"], "rejected": rows[1]["rejected"]},
        # ... in a later turn
        hh(bike, VAGUE[2], VAGUE[3]) | {"rejected": f"{other}\n\nAssistant: {VAGUE[3]}"},
        # ... in the turns
        hh(dogs, VAGUE[2], VAGUE[3]) | {"rejected": hh(dogs[:1], "", VAGUE[3])["rejected"]},
        {
            "chosen": f"{two_humans}\n\nAssistant: Yes.",
            "rejected": f"{two_humans}\n\nAssistant: No.",
        },
        # empty reply
        hh(["Is rain water good for orchids?"], "", VAGUE[1]),
        # cut off
        hh(["Is tap water good for kettles?"], cut_short, VAGUE[1]),
        # identical sides
        hh(["Can I wash wool at forty degrees?"], VAGUE[0], VAGUE[0]),
        # marker in the reply
        hh(["Do I need a visa for Norway?"], "No. Human: Thanks! Assistant: Welcome.", VAGUE[1]),
        # marker in the context
        hh(["Is this right? Assistant: Yes. Human: And this?"], VAGUE[2], VAGUE[3]),
        # ends on a human turn
        {"chosen": transcript(rent[:1]), "rejected": transcript(rent[:1])},
        # empty turns
        hh([""], VAGUE[2], VAGUE[3]),
        hh(["Hello?", "", "Anyone?"], VAGUE[2], VAGUE[3]),
        {"chosen": "Hello there.", "rejected": "Hello there."},
        {"chosen": "", "rejected": ""},
        {"chosen": None, "rejected": rows[0]["rejected"]},
        {"chosen": ["a list"], "rejected": rows[0]["rejected"]},
        {"chosen": rows[0]["chosen"]},
    ]


# UltraFeedback

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")


def annotation(aspect: str, rating: str) -> Row:
    """Two aspects name a type first; there `Rationale` explains the type."""
    if aspect in ("honesty", "instruction_following"):
        return {"Rating": rating, "Rationale": f"Rated {rating} by the rubric."}
    return {
        "Type": ["None"] if rating == "5" else ["1"],
        "Rationale": "As the type says.",
        "Rating": rating,
        "Rationale For Rating": f"Rated {rating} by the rubric.",
    }


def completion(reply: str, ratings: tuple[str, str, str, str], overall: float | None = None) -> Row:
    """One rated reply; the fine-grained score is the mean of the ratings that are numbers."""
    numbers = [int(r) for r in ratings if r.isdigit()]
    fine = sum(numbers) / len(numbers) if numbers else None
    return {
        "annotations": {a: annotation(a, r) for a, r in zip(ASPECTS, ratings, strict=True)},
        "custom_system_prompt": "As an assistant, be as useful as you can.",
        "model": BY,
        "principle": "helpfulness",
        "response": reply,
        "critique": "Clear where it is specific.",
        "overall_score": overall or 2 * (fine or 0.5),
        "fine-grained_score": fine,
    }


def uf(source: str, instruction: object, completions: list[Row]) -> Row:
    """A row; benchmark rows alone would have answers."""
    return {
        "source": source,
        "instruction": instruction,
        "models": [BY] * len(completions),
        "completions": completions,
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def four(best: str, good: str, weak: str, poor: str, i: int) -> list[Row]:
    """Four replies from best to worst; the order turns with i."""
    honesty = "N/A" if i % 7 == 3 else "4"
    rated = [
        completion(best, ("5", "5", "5", "5")),
        completion(good, ("4", honesty, "4", "4")),
        completion(weak, ("3", "3", "2", "4")),
        completion(poor, ("2", "2", "1", "2")),
    ]
    return rated[i % 4 :] + rated[: i % 4]


def uf_rows() -> list[Row]:
    """Good rows, then defects."""
    names = ("evol_instruct", "sharegpt", "ultrachat", "flan")
    rows = [
        uf(names[i % 4], q, four(a, f"In short: {a}", VAGUE[i % 6], VAGUE[(i + 1) % 6], i))
        for i, (q, a) in enumerate(lines("UF_HELPFUL"))
    ]
    no, sure = REFUSALS, STAND_INS
    rows += [
        uf(names[i % 4], q, four(no[i % 6], no[(i + 2) % 6], sure[i % 4], sure[(i + 1) % 4], i))
        for i, (q, _) in enumerate(lines("UF_SAFETY"))
    ]
    rows += [
        uf(names[i % 4], q, four(a, f"In short: {a}", VAGUE[i % 6], MYTHS[i % 4], i))
        for i, (q, a) in enumerate(lines("UF_TRUTH"))
    ]
    some = four(VAGUE[0], VAGUE[1], VAGUE[2], VAGUE[3], 0)
    na, ten = ("N/A", "N/A", "N/A", "N/A"), completion(MYTHS[0], ("1", "2", "1", "2"), 10.0)
    return [
        *rows,
        uf("truthful_qa", "Does it always rain when you wash the car?", some),
        uf("false_qa", "Why do cows lay eggs in spring?", some),
        uf("flan", "Name two rivers that flow through Vienna.", some[:3]),
        uf("flan", "Name a cheese without cow's milk.", some[:1]),
        uf("flan", "Name a bird that can't fly.", []),
        uf("sharegpt", "Write a riddle about a ladder.", [completion(VAGUE[4], na), *some[1:]]),
        uf("ultrachat", "Describe a lighthouse to a child.", [ten, *some[1:]]),
        uf(
            "ultrachat",
            "Describe a harbour at noon.",
            [some[0], completion(VAGUE[5], ("5", "5", "5", "5")), *some[2:]],
        ),
        uf(
            "ultrachat",
            "Describe a market in winter.",
            [completion("", ("1", "1", "1", "1")), *some[1:]],
        ),
        uf("evol_instruct", "Describe a night train.", [some[1], *some[1:]]),
        uf("sharegpt", lines("UF_HELPFUL")[0][0], some),
        uf("sharegpt", " ", some),
        uf("sharegpt", None, some),
        uf("sharegpt", ["a list"], some),
        {"source": "flan", "completions": some},
    ]


# UltraFeedback, binarized


def chat(*said: str, system: str = "") -> list[Row]:
    """Turns, user first."""
    spoken = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)
    ]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


def h4(
    prompt: str, chosen: list[Row], rejected: list[Row], scores: tuple[float, float] = (8.0, 5.5)
) -> Row:
    """A row of the _prefs splits."""
    return {
        "prompt": prompt,
        "prompt_id": sha(prompt),
        "chosen": chosen,
        "rejected": rejected,
        "messages": chosen,
        "score_chosen": scores[0],
        "score_rejected": scores[1],
    }


def h4_rows() -> list[Row]:
    """Good rows, some with a system turn, then defects."""
    asked = [*lines("UF_HELPFUL")[::2], *lines("HH_TRUTH")[::2], *lines("PKU_HELPFUL")[::2]]
    rows = [h4(q, chat(q, a), chat(q, VAGUE[i % 6])) for i, (q, a) in enumerate(asked)]
    rows += [
        h4(q, chat(q, VAGUE[0], system=s), chat(q, VAGUE[1], system=s))
        for s, q in turns("BINARIZED_CHATS")
    ]
    q = "What is a good name for a rowing boat?"
    return [
        *rows,
        h4(q, chat(q, "Swift."), chat(q, "Boaty."), (7.0, 7.0)),
        h4("May I?", chat("May I?", "Yes."), chat("May I not?", "No.")),
        h4("Why?", chat("Why?", "", "Why?"), chat("Why?", "", "Why?")),
        h4(" ", chat(" ", "Yes."), chat(" ", "No.")),
        h4(asked[0][0], chat(asked[0][0], "Yes."), chat(asked[0][0], "No.")),
    ]


def own_rows() -> list[Row]:
    """Prompts and chats, then a few bad rows."""
    rows: list[Row] = [{"prompt": q, "category": c} for c, q in lines("OWN_ROWS")]
    rows += [{"messages": chat(q, system=s)} for s, q in turns("BINARIZED_CHATS")]
    rows += [{"messages": chat(*said)} for said in turns("HH_DIALOGUES")[:4]]
    return [
        *rows,
        {"messages": chat("Is the pool open?", "Until nine.")},
        {"prompt": "DOES HONEY  EVER GO OFF?"},
        {"prompt": ""},
        {"category": "home"},
    ]


# HelpSteer


def steer(prompt: object, response: object, *ratings: object) -> Row:
    """A row of seven columns."""
    names = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
    return {"prompt": prompt, "response": response, **dict(zip(names, ratings, strict=True))}


def steer_rows() -> list[Row]:
    """Good rows, two for each prompt and side by side, then defects."""
    rows = []
    for i, (q, a) in enumerate(lines("UF_HELPFUL")):
        rows += [steer(q, a, 4, 4, 4, 1, 1), steer(q, VAGUE[i % 6], i % 3, 2 + i % 2, 4, 1, 2)]
    for i, (q, a) in enumerate(lines("UF_TRUTH")):
        rows += [steer(q, MYTHS[i % 4], 2, 0, 4, 1, 1), steer(q, a, 3, 4, 4, 1, 1)]
    later = (
        "How do I keep basil alive?<extra_id_1>Assistant\nOn the window sill, and water it from"
        " below.<extra_id_1>User\nAnd in winter?"
    )
    return [
        *rows,
        steer(later, "Inside, at the lightest window, with less water.", 4, 4, 4, 1, 1),
        steer(later, VAGUE[0], 1, 3, 4, 0, 1),
        # a single reply
        steer("Name a lake.", "Lake Constance.", 4, 4, 4, 0, 0),
        # unrated
        steer("Name a hill.", "The Kahlenberg.", None, 4, 4, 0, 0),
        steer("Name a hill.", VAGUE[1], 1, 9, 4, 0, 1),
        # identical
        steer("Name a gate.", VAGUE[2], 2, 2, 2, 2, 2),
        steer("Name a gate.", VAGUE[2], 2, 2, 2, 2, 2),
        # empty
        steer("Name a tower.", "", 0, 0, 0, 0, 0),
        steer("Name a tower.", "The Donauturm.", 4, 4, 4, 0, 0),
        steer(" ", VAGUE[3], 1, 1, 1, 1, 1),
        steer(None, VAGUE[3], 1, 1, 1, 1, 1),
        # two turns of one speaker
        steer("Hi.<extra_id_1>User\nHello?", VAGUE[4], 1, 1, 1, 1, 1),
    ]


FILES = {
    "pku-saferlhf": pku_rows,
    "hh-rlhf": hh_rows,
    "ultrafeedback": uf_rows,
    "ultrafeedback-binarized": h4_rows,
    "helpsteer": steer_rows,
    "jsonl": own_rows,
}


def render(kind: str) -> bytes:
    """The bytes of a sample file."""
    return b"".join(orjson.dumps(row) + b"\n" for row in FILES[kind]())


if __name__ == "__main__":
    for name in FILES:
        (
            Path(__file__).parents[2] / "mora_data" / "sources" / "sample" / f"{name}.jsonl"
        ).write_bytes(render(name))
