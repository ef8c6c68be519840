"""What a release must not hold: addresses and paths, personal data, unsafe texts.

    scrub(manifest)              a copy without private keys, URLs, hosts, paths
    screen(folder)               {"found": {"EMAIL_ADDRESS": {"prompts": 3, ...}, ...}, ...}
    public_copy(folder, "drop")  runs/demo/dataset -> runs/demo/dataset-public

Personal data: counts only, what was matched is never kept. Presidio's pattern recognizers decide
(checksums and number plans included); a regular expression over whole Arrow columns first leaves
out the texts that can't match, so they see few. They run one by one, without a language model, and
nothing goes over the network. Names and postal addresses have no form and are not looked for.

Unsafe, decided on the side of caution:
- an answer whose `harmless` reward is under its pass threshold, or is missing, and every other
  answer with the same text;
- a prompt (its rewrites and its source text included) whose source marks it: STRATA or CATEGORIES.
The folder itself keeps everything.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import PublishError
from ..run import PersonalData
from ..run.files import read_json, readable
from . import papers, schemas
from .card import PublishedManifest
from .schemas import Row, row_batches

WITHHELD = "(withheld)"
_KEYS = """
base_url replicas transport prices api_key_env files decontaminate_from extra_body headers_env
ca_file run_dir dataset_dir out_dir hostname username cwd argv
"""
_PRIVATE_KEYS = frozenset(_KEYS.split())
_URL = re.compile(r"\b[a-z][a-z0-9+.-]{0,30}://[^\s\"'<>]+", re.I)
_ADDRESS = re.compile(
    r"\b(?:localhost|\d{1,3}(?:\.\d{1,3}){3})(?::\d+)?\b"
    r"|(?<![\w.-])[\w.-]{1,64}@[\w-]{1,63}\.[\w.-]+"
)
_PATH = re.compile(
    r"(?<![\w/:<.])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[^\s/\\\"'<>,;]+[/\\])*([^\s/\\\"'<>,;]*)"
)


Recognizer = Callable[[str], bool]
# weaker patterns, as any nine digits for a social security number, need context that nothing here
# reads
LEAST_SCORE = 0.3
_SIDES = {
    "prompts": ("prompt",),
    "source_prompts": ("source_prompt",),
    "answers": ("chosen", "rejected", "completion", "completions", "response", "thoughts"),
}

How = Literal["drop", "redact"]
Key = tuple[str, str]
DIM = "harmless"
_STRATA = """
one_safe both_unsafe unlabelled harmless-base red-team-attempts unsafe harmful
"""
_CATEGORIES = """
unsafe;harmful;endangering national security;insulting behavior;discriminatory behavior;
endangering public health;copyright issues;violence;drugs;privacy violation;economic crime;
mental manipulation;human trafficking;physical harm;sexual content;cybercrime;
disrupting public order;environmental damage;psychological harm;white-collar crime;animal abuse
"""
STRATA = frozenset(_STRATA.split())
CATEGORIES = frozenset(_CATEGORIES.replace("\n", "").split(";"))
_PARALLEL = ("completions", "flags", "finish_reasons", "lengths")


def scrub(value: Any) -> Any:
    """A copy without private keys, and with every string scrubbed."""
    if isinstance(value, Mapping):
        return {str(k): scrub(v) for k, v in value.items() if k not in _PRIVATE_KEYS}
    if isinstance(value, (list, tuple)):
        return [scrub(v) for v in value]
    return scrub_text(value) if isinstance(value, str) else value


def scrub_text(value: str) -> str:
    """The text with URLs and addresses withheld, and of a file path only its last part
    (`/home/me/tiny` -> `tiny`)."""
    value = _ADDRESS.sub(WITHHELD, _URL.sub(WITHHELD, value))
    return _PATH.sub(lambda m: m[1], value)


class Kind(NamedTuple):
    """An entity type: its recognizer in Presidio, and what every text that holds one matches."""

    recognizer: str
    needs: str


KINDS = {
    "EMAIL_ADDRESS": Kind("EmailRecognizer", "@"),
    "PHONE_NUMBER": Kind("PhoneRecognizer", r"\pN(?:[^\pN]{0,6}\pN){5}"),
    "IP_ADDRESS": Kind("IpRecognizer", r"[0-9]\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:"),
    "CREDIT_CARD": Kind("CreditCardRecognizer", r"\pN(?:[ -]?\pN){12}"),
    "IBAN_CODE": Kind("IbanRecognizer", r"[A-Za-z]{2}[0-9]{2}"),
    "US_SSN": Kind("UsSsnRecognizer", r"\pN(?:[- .]?\pN){8}"),
}


def recognizers() -> dict[str, Recognizer]:
    """For each entity type, whether a text holds one.

    Raises:
        PublishError: Presidio is not installed.
    """
    try:
        found = import_module("presidio_analyzer.predefined_recognizers")
        offline = import_module("tldextract").TLDExtract(cache_dir=None, suffix_list_urls=())
    except ImportError as e:
        raise PublishError(
            "publish.pii needs presidio-analyzer, which is not installed: pip install"
            " 'mora-data[pii]'"
        ) from e
    made = {kind: getattr(found, KINDS[kind].recognizer)() for kind in KINDS}
    # its own check of the domain would fetch the list of public suffixes; the list that tldextract
    # ships is enough
    made["EMAIL_ADDRESS"].validate_result = lambda address: bool(offline(address).fqdn)
    return {kind: _recognizer(found, kind) for kind, found in made.items()}


def screen(folder: Path) -> PersonalData:
    """How many texts hold each entity type; every row of `scored` is read, of all other configs
    where there is no `scored`.

    Raises:
        PublishError: Presidio is not installed.
    """
    by_kind = recognizers()
    names = sorted({p.parent.name for p in folder.glob("*/*.parquet")})
    names = ["scored"] if "scored" in names else names
    texts = dict.fromkeys(_SIDES, 0)
    found = {kind: dict.fromkeys(_SIDES, 0) for kind in by_kind}
    for name in names:
        for side, column in _columns(folder / name):
            texts[side] += len(column)
            for kind, recognize in by_kind.items():
                likely = column.filter(pc.match_substring_regex(column, KINDS[kind].needs))
                found[kind][side] += sum(recognize(text) for text in likely.to_pylist())
    by = f"presidio-analyzer {version('presidio-analyzer')}"
    return {"by": by, "configs": names, "texts": texts, "found": found}


def _recognizer(found: Any, kind: str) -> Recognizer:
    return lambda text: any(hit.score >= LEAST_SCORE for hit in found.analyze(text, [kind], None))


def _columns(config: Path) -> Iterator[tuple[str, pa.Array]]:
    """(side, its texts) of one config, a row group at a time; a conversation counts as one text."""
    for path in sorted(config.glob("*.parquet")):
        file = pq.ParquetFile(path)
        sides = {c: side for side, columns in _SIDES.items() for c in columns}
        have = [c for c in sides if c in file.schema_arrow.names]
        for k in range(file.num_row_groups):
            rows = file.read_row_group(k, columns=have)
            for c in have:
                yield sides[c], _texts(rows[c].combine_chunks())


def _texts(values: Any) -> pa.Array:
    """Strings as they are, a list of strings one by one, each list of messages as its contents in
    one text."""
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if not pa.types.is_list(values.type):
        return values
    if not pa.types.is_struct(values.type.value_type):
        return values.flatten()
    contents = values.flatten().field("content")
    offsets = pc.subtract(values.offsets, values.offsets[0])
    return pc.binary_join(pa.ListArray.from_arrays(offsets, contents), "\n")


def public_copy(folder: Path, how: How) -> Path:
    """Write `<folder>-public` beside the folder, replacing an old one; the same folder gives the
    same bytes.

    Raises:
        PublishError: there is nothing to judge answers by, no pair is left, or the disk refuses.
    """
    path = folder / "provenance/manifest.json"
    with readable(path, "build again"):
        published: PublishedManifest = orjson.loads(path.read_bytes())
        described = published["folder"]
        threshold = described["floors"].get(DIM)
        scored = DIM in described["dimensions"] and DIM not in described["unscored"]
    if threshold is None or not scored:
        raise PublishError(
            f"publish.unsafe={how} needs {DIM} rewards and their floor, which this dataset lacks:"
            " set publish.unsafe=gate"
        )
    out = folder.with_name(f"{folder.name}-public")
    with schemas.replacement(out) as fresh:
        _PublicCopy(folder, how, float(threshold)).write(fresh, published)
    return out


class _PublicCopy:
    """One folder's unsafe texts and prompts, and the rows without them."""

    def __init__(self, folder: Path, how: How, threshold: float) -> None:
        self._folder, self._how, self._threshold = folder, how, threshold
        self._files: dict[str, dict[str, list[Path]]] = {}  # config -> split -> files
        for path in sorted(folder.glob("*/*.parquet")):
            by_split = self._files.setdefault(path.parent.name, {})
            by_split.setdefault(path.name.split("-")[0], []).append(path)
        self._texts: set[bytes] = set()
        self._prompts: set[str] = set()
        self._pairs: dict[str, Counter[Key]] = {}  # config -> surviving pairs per prompt and arm
        for name in self._files:
            for row in self._rows(name):
                if row["stratum"] in STRATA or str(row["category"]).casefold() in CATEGORIES:
                    self._prompts.add(row["prompt_id"])
                self._texts.update(
                    _digest(text)
                    for text, reward in _answers(row)
                    if text and (reward is None or reward < threshold)
                )
        if how == "drop":  # for the weights of pairs, and so that aligned configs stay aligned
            for name in self._files:
                if schemas.family_of(name) in ("preference", "reward_modeling", "by_dim"):
                    keys = (_key(row) for row in self._rows(name) if not self._is_lost(row))
                    self._pairs[name] = Counter(keys)

    def write(self, out: Path, published: PublishedManifest) -> None:
        """The screened rows, and the card and its neighbours about them."""
        dims = published["folder"]["dimensions"]
        counts: dict[str, dict[str, int]] = {}
        for config, by_split in self._files.items():
            seen = counts[config] = {"rows": 0, "rows_dropped": 0, "rows_changed": 0, "texts": 0}
            schema = schemas.schema(config, dims)
            for split, files in by_split.items():
                writer = schemas.ShardWriter(out / config, split, schema)
                try:
                    for rows in row_batches(files):
                        kept = (self._screened(row, config, seen) for row in rows)
                        writer.add(
                            pa.RecordBatch.from_pylist([r for r in kept if r is not None], schema)
                        )
                    writer.close()
                    writer.finalize()
                finally:
                    writer.discard()
        order = [c["name"] for c in published["folder"]["configs"]]
        if not schemas.counts_of(out).get(schemas.DEFAULT_CONFIG):
            raise PublishError(
                "publish.unsafe=drop leaves no pair: set publish.unsafe=redact or gate"
            )
        published["manifest"] |= {
            "fingerprint": schemas.fingerprint_of(out),
            "pii": screen(out) if published["manifest"].get("pii") else None,
        }
        published["folder"] = {
            **published["folder"],
            **papers.describe(out, order, dims),
            "unsafe": {
                "how": self._how,
                "floor": self._threshold,
                "prompts": len(self._prompts),
                "answers": len(self._texts),
                "configs": {name: counts[name] for name in order if name in counts},
            },
        }
        report = read_json(self._folder / "provenance" / "report.json")  # of what was built
        papers.write_papers(out, published, report or None)

    def _rows(self, name: str) -> Iterator[Row]:
        for files in self._files[name].values():
            yield from chain.from_iterable(row_batches(files))

    def _screened(self, row: Row, config: str, seen: dict[str, int]) -> Row | None:
        """What may stay of a row, None for nothing."""
        n_texts = sum(self._is_unsafe(text) for text, _ in _answers(row))
        prompt = row["prompt_id"] in self._prompts
        if self._how == "drop":
            kept = self._without_unsafe(row, config)
        else:
            kept = self._redacted(row) if n_texts or prompt else row
        seen["rows"] += 1
        seen["rows_dropped"] += kept is None
        seen["rows_changed"] += kept is not None and bool(n_texts or prompt)
        seen["texts"] += n_texts + prompt
        return kept

    def _without_unsafe(self, row: Row, config: str) -> Row | None:
        if self._is_lost(row):
            return None
        if config not in self._pairs:
            return self._with_safe_answers(row) if "completions" in row else row
        key = _key(row)
        if schemas.family_of(config) != "by_dim":
            return {**row, "weight": 1.0 / self._pairs[config][key]}
        aligned = [c for name, c in self._pairs.items() if schemas.family_of(name) == "by_dim"]
        return row if all(c[key] for c in aligned) else None

    def _with_safe_answers(self, row: Row) -> Row:
        """A row of `scored` without its unsafe answers; positions of pairs follow."""
        keep = [i for i, (text, _) in enumerate(_answers(row)) if not self._is_unsafe(text)]
        place = {old: new for new, old in enumerate(keep)}
        lists = [k for k in row if k in _PARALLEL or k.startswith("rewards_")]
        pairs = [
            (place[a], place[b])
            for a, b in zip(row["pair_chosen"], row["pair_rejected"], strict=True)
            if a in place and b in place
        ]
        return {
            **row,
            **{k: [row[k][i] for i in keep] for k in lists},
            "pair_chosen": [a for a, _ in pairs],
            "pair_rejected": [b for _, b in pairs],
        }

    def _redacted(self, row: Row) -> Row:
        def hide(text: str) -> str:
            return _mark(text) if self._is_unsafe(text) else text

        out = dict(row)
        if row["prompt_id"] in self._prompts:
            out["prompt"] = [{**m, "content": _mark(m["content"])} for m in out["prompt"]]
            out["source_prompt"] = _mark(out["source_prompt"])
        for name in {"chosen", "rejected", "completion"} & out.keys():
            out[name] = [{**m, "content": hide(m["content"])} for m in out[name]]
        if "response" in out:
            out["response"] = hide(out["response"])
        if "completions" in out:
            out["completions"] = [hide(text) for text in out["completions"]]
        return out

    def _is_lost(self, row: Row) -> bool:
        """Whether nothing of the row may stay: its prompt is unsafe, or an answer (in `scored`: all
        of them)."""
        if row["prompt_id"] in self._prompts:
            return True
        unsafe = [self._is_unsafe(text) for text, _ in _answers(row)]
        return bool(unsafe) and (all if "completions" in row else any)(unsafe)

    def _is_unsafe(self, text: str) -> bool:
        return bool(text) and _digest(text) in self._texts


def _answers(row: Row) -> list[tuple[str, float | None]]:
    """Each answer of a row with its `harmless` reward."""
    if "completions" in row:
        return list(zip(row["completions"], row[f"rewards_{DIM}"], strict=True))
    if "chosen" in row:
        return [(row[s][0]["content"], row[f"{s}_reward_{DIM}"]) for s in ("chosen", "rejected")]
    if "completion" in row:
        return [(row["completion"][0]["content"], row[f"reward_{DIM}"])]
    return [(row["response"], row[f"score_{DIM}"])] if "response" in row else []


def _key(row: Row) -> Key:
    return row["prompt_id"], row["arm"]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _mark(text: str) -> str:
    """What stands in a text's place: other for another text, so that chosen and rejected still
    differ."""
    return f"[redacted {_digest(text).hex()[:8]}]"
