"""Small look-alikes of published corpora: file names, columns, types, nesting and compression as on the hub, words of
our own. Each is written below a folder `corpora`, as `hf download` leaves it."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow
import zstandard
from pyarrow import parquet

Expected = dict[str, list[str]]
"""The texts of each domain."""
Rows = Sequence[Mapping[str, object]]
RECORDS = 60


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _parquet(path: Path, rows: Rows, schema: pyarrow.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), path)


def _jsonl_zst(path: Path, rows: Rows) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    _write(path, zstandard.ZstdCompressor().compress(lines.encode()))


def _prose(name: str, count: int = RECORDS) -> list[str]:
    return [f"{name} {number}: " + "a token of the corpus é\n" * (3 + number % 5) for number in range(count)]


def open_web_math(corpora: Path) -> Expected:
    """Parquet with a column of JSON text."""
    texts = _prose("page")
    rows = [
        {
            "url": f"https://x.org/{n}",
            "text": text,
            "date": "2023-01-01 00:00:00",
            "metadata": '{"extraction_info": {}}',
        }
        for n, text in enumerate(texts)
    ]
    for part in range(2):
        name = f"train-{part:05}-of-00114-5a023365406cb9c4.parquet"
        _parquet(corpora / "open-web-math/data" / name, rows[part::2])
    _write(corpora / "open-web-math/README.md", b"card")
    _write(corpora / "open-web-math/.cache/huggingface/download/data/a.parquet", b"kept by the hub's command")
    return {"open-web-math": texts}


def proof_pile_2(corpora: Path) -> Expected:
    """Zstandard JSON lines in three sets, an empty file among them, and splits that are not read."""
    found: Expected = {}
    sets = {"arxiv": "arXiv_000", "open-web-math": "shard-0000", "algebraic-stack": "python0000"}
    for domain, name in sets.items():
        folder = corpora / "proof-pile-2" / domain
        found[domain] = _prose(domain)
        meta: object = {"timestamp": "2023", "url": "x"} if domain == "arxiv" else '{"size": 1, "ext": "py"}'
        _jsonl_zst(folder / "train" / f"{name}.jsonl.zst", [{"text": text, "meta": meta} for text in found[domain]])
        _jsonl_zst(folder / "validation" / f"{name}.jsonl.zst", [{"text": "validation", "meta": meta}])
    _jsonl_zst(corpora / "proof-pile-2/algebraic-stack/train/github-coq-train-0001.jsonl.zst", [])
    return found


def slimpajama(corpora: Path) -> Expected:
    """Zstandard JSON lines with an object beside the text, in chunks of which one is read."""
    texts = _prose("web")
    rows = [{"text": text, "meta": {"redpajama_set_name": "RedPajamaC4"}} for text in texts]
    _jsonl_zst(corpora / "slimpajama/train/chunk1/example_train_0.jsonl.zst", rows)
    _jsonl_zst(corpora / "slimpajama/train/chunk2/example_train_5910.jsonl.zst", [{"text": "other", "meta": {}}])
    return {"slimpajama": texts}


def starcoderdata(corpora: Path) -> Expected:
    """A folder of parquet for each language, and folders with other columns."""
    texts = _prose("code", 400)
    rows = [
        {
            "max_stars_repo_path": f"a/{n}.py",
            "max_stars_repo_name": f"owner/{n // 3}",
            "max_stars_count": None if n % 2 else n,
            "id": str(n),
            "content": text,
        }
        for n, text in enumerate(texts)
    ]
    folder = corpora / "starcoderdata"
    _parquet(folder / "python/train-00000-of-00059.parquet", rows[:200])
    _parquet(folder / "c-sharp/train-00000-of-00045.parquet", rows[200:])
    other = [{"commit": "0", "old_file": "a"}]
    for name in ("git-commits-cleaned", "github-issues-filtered-structured"):
        _parquet(folder / name / "train-00000-of-00064.parquet", other)
    for name in ("jupyter-scripts-dedup-filtered", "jupyter-structured-clean-dedup"):
        _parquet(folder / name / "train-00000-of-00025.parquet", other)
    return {"starcoderdata": texts}


def math_curated(corpora: Path) -> Expected:
    """Two JSON files that are one array each, on one line and on several."""
    questions, answers = _prose("question"), _prose("answer")
    meta = [
        {"type": "MATH_AnsAug", "query": question, "original_question": question[:12], "response": answer}
        for question, answer in zip(questions, answers, strict=True)
    ]
    _write(corpora / "metamathqa/MetaMathQA-395K.json", json.dumps(meta).encode())
    instruct = [
        {"source": "data/CoT/gsm_rft.json", "output": answer, "instruction": question}
        for question, answer in zip(questions, answers, strict=True)
    ]
    _write(corpora / "mathinstruct/MathInstruct.json", json.dumps(instruct, indent=4, ensure_ascii=False).encode())
    texts = [f"{question}\n{answer}" for question, answer in zip(questions, answers, strict=True)]
    return {"metamath": texts, "mathinstruct": texts}


def general_curated(corpora: Path) -> Expected:
    """Parquet with a list of structs, and one JSON array whose records have other fields and nulls beside."""
    found: Expected = {"tulu": [], "openhermes": []}
    tulu, hermes = [], []
    for number, words in enumerate(_prose("words")):
        tulu.append(
            {
                "dataset": "sharegpt",
                "id": f"sharegpt_{number}",
                "messages": [
                    {"role": "user", "content": words},
                    {"role": "assistant", "content": "" if number == 7 else f"yes {number}"},
                    {"role": "user", "content": "and?"},
                ],
            }
        )
        answer = "" if number == 7 else f"yes {number}"
        found["tulu"].append(f"user:\n{words}\n\nassistant:\n{answer}\n\nuser:\nand?")
        hermes.append(
            {
                "custom_instruction": None,
                "source": "airoboros2.2",
                "conversations": [
                    {"from": "system", "value": "Be brief.", "weight": None},
                    {"from": "human", "value": words, "weight": 0.0},
                    {"from": "gpt", "value": f"no {number}", "weight": 1.0},
                ],
                "skip_prompt_formatting": False,
            }
        )
        found["openhermes"].append(f"system:\nBe brief.\n\nuser:\n{words}\n\nassistant:\nno {number}")
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    columns = [("dataset", pyarrow.string()), ("id", pyarrow.string()), ("messages", pyarrow.list_(message))]
    name = "train-00000-of-00003-99ee8754042a69f6.parquet"
    _parquet(corpora / "tulu-v2/data" / name, tulu, pyarrow.schema(columns))
    _write(corpora / "openhermes-2.5/openhermes2_5.json", json.dumps(hermes, indent=2).encode())
    return found


LOOK_ALIKES: dict[str, Callable[[Path], Expected]] = {
    "open-web-math": open_web_math,
    "proof-pile-2": proof_pile_2,
    "slimpajama": slimpajama,
    "starcoderdata": starcoderdata,
    "math-curated": math_curated,
    "general-curated": general_curated,
}
"""By the name of the recipe that reads it."""
