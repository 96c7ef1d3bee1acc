"""Text files to a dataset, from beginning to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.data import prepare as prepare_module
from megaslm.data.manifest import Manifest, read_manifest
from megaslm.data.packing import count_targets
from megaslm.data.prepare import prepare
from megaslm.data.python_stdlib import standard_library_files
from megaslm.data.shards import RowReader, check_layout, part_name
from megaslm.data.tokenizer import FolderEncoder, tokenizer_sha256
from megaslm.errors import DataError, MegaSLMError

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["the", "a", "loss", "token", "of", "reference", "model", "rho", "every", "corpus", "shard", "</s>", "é\n"]


def text(seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(WORDS, random.integers(5, 120)))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight files of two domains; three documents share a book."""
    folder = tmp_path_factory.mktemp("corpus")
    for domain in ("clean", "noisy"):
        (folder / domain).mkdir()
        for file in range(4):
            seeds = range(1000 * file, 1000 * file + (30 if domain == "clean" else 60))
            records = [{"text": domain + " " + text(seed), "book": f"{domain} {seed // 3}"} for seed in seeds]
            lines = "".join(json.dumps(record) + "\n" for record in records)
            (folder / domain / f"{file}.jsonl").write_text(lines, encoding="utf-8")
    return folder


def recipe_of(corpus: Path, **changes: object) -> Recipe:
    source = {"reader": "jsonl", "group_field": "book"}
    given = {
        "name": "words",
        "licence": "CC0",
        "seq_len": 32,
        "tokenizer": {"train_sentencepiece": {"vocab_size": 330, "sample_bytes": 40_000}},
        "sources": [{"domain": name, "paths": [str(corpus / name)], **source} for name in ("clean", "noisy")],
        "heldout_fraction": 0.1,
        "part_bytes": 20_000,
        "shard_bytes": 4_000,
    }
    return Recipe.model_validate({**given, **changes})


@pytest.fixture(scope="session")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "dataset"
    prepare(recipe_of(corpus), output, workers=1)
    return output


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def documents_of(dataset: Path, manifest: Manifest, split: str, domain: str) -> list[str]:
    """The texts that the rows of a domain hold."""
    encoder, texts = FolderEncoder(dataset / "tokenizer"), []
    for part in manifest.splits[split][domain].parts:  # type: ignore[index]
        reader = RowReader(dataset, split, domain, part=part.name)  # type: ignore[arg-type]
        tokens = reader.rows(0, len(reader))["tokens"]
        stream = np.concatenate([tokens[0, :1], tokens[:, 1:].ravel()])
        for ids in np.split(stream, np.flatnonzero(stream == manifest.eos_id) + 1):
            if ids.size > 1:
                texts.append(encoder.decode(ids[:-1]))
    return texts


def test_every_document_is_there_once_in_the_split_of_its_group(corpus: Path, dataset: Path) -> None:
    manifest = read_manifest(dataset)
    for domain in ("clean", "noisy"):
        found = {split: documents_of(dataset, manifest, split, domain) for split in ("train", "heldout")}
        records = [
            json.loads(line)
            for path in sorted((corpus / domain).iterdir())
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        assert sorted(found["train"] + found["heldout"]) == sorted(record["text"] for record in records)
        books = {
            split: {record["book"] for record in records if record["text"] in set(texts)}
            for split, texts in found.items()
        }
        assert books["heldout"]
        assert not books["train"] & books["heldout"]
        order = [record["text"] for record in records]
        assert found["train"] == sorted(found["train"], key=order.index)


def test_the_manifest_counts_what_is_there(corpus: Path, dataset: Path) -> None:
    manifest = read_manifest(dataset)
    check_layout(dataset)
    assert manifest.domains == ("clean", "noisy")
    assert manifest.licences == {"clean": "CC0", "noisy": "CC0"}
    assert manifest.tokenizer_sha256 == tokenizer_sha256(dataset / "tokenizer")
    assert [source.path for source in manifest.sources] == [
        str(corpus / domain / f"{file}.jsonl") for domain in ("clean", "noisy") for file in range(4)
    ]
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            reader = RowReader(dataset, split, domain)
            rows = reader.rows(0, len(reader))
            assert len(reader) == share.rows == sum(part.rows for part in share.parts)
            assert count_targets(rows["tokens"], manifest.eos_id) == share.tokens
            assert set(rows["domain"].tolist()) == {manifest.domains.index(domain)}
            assert share.documents == len(documents_of(dataset, manifest, split, domain))
    assert len(manifest.splits["train"]["noisy"].parts) > 1
    assert sorted(path.name for path in dataset.iterdir()) == ["heldout", "manifest.json", "tokenizer", "train"]


def test_the_number_of_workers_does_not_matter(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, int, int]] = []
    prepare(recipe_of(corpus), tmp_path / "two", workers=2, on_progress=lambda *call: calls.append(call))
    assert content(tmp_path / "two") == content(dataset)
    manifest = read_manifest(dataset)
    tokens = sum(share.tokens for domains in manifest.splits.values() for share in domains.values())
    assert [call[0] for call in calls] == list(range(1, calls[0][1] + 1))
    assert calls[-1][3] == tokens


PLAIN_STREAMING = """
import sys, types
import transformers
names = ["torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"]
if __import__("importlib.util").util.find_spec("torchvision") is None:
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules["torchvision.datasets"].VisionDataset = object
    sys.modules["torchvision.transforms.functional"].to_tensor = None
import streaming
for folder in sys.argv[1:]:
    rows = list(streaming.StreamingDataset(local=folder, batch_size=1, shuffle=False))
    print(len(rows), sum(int(row["tokens"].astype("int64").sum()) for row in rows), rows[0]["tokens"].dtype)
assert not [name for name in sys.modules if name.startswith("megaslm")]
"""


@pytest.mark.parametrize("compression", [None, pytest.param("zstd", marks=pytest.mark.slow)])
def test_streaming_alone_reads_it(corpus: Path, tmp_path: Path, compression: str | None) -> None:
    dataset = tmp_path / "dataset"
    manifest = prepare(recipe_of(corpus, compression=compression), dataset, workers=1)
    places = [(split, domain) for split, domains in manifest.splits.items() for domain in domains]
    expected = []
    for split, domain in places:
        reader = RowReader(dataset, split, domain)
        total = int(reader.rows(0, len(reader))["tokens"].astype(np.int64).sum())
        expected.append(f"{len(reader)} {total} uint16")
    folders = [str(dataset / split / domain) for split, domain in places]
    result = subprocess.run(
        [sys.executable, "-c", PLAIN_STREAMING, *folders],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert result.stdout.splitlines() == expected, result.stderr


def test_an_interrupted_run_goes_on_where_it_stopped(
    corpus: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, ran = tmp_path / "dataset", []
    run_task = prepare_module.run_task

    def stop_at_third(job: prepare_module.Job) -> object:
        ran.append(job.task.number)
        if len(ran) == 3:
            # As after a kill: a part that has its name and no marker, and one half written.
            run_task(job)
            folder = output / "train" / job.task.source.domain
            shutil.copytree(folder / part_name(job.task.part), folder / f".unfinished-{part_name(job.task.part)}")
            raise KeyboardInterrupt
        return run_task(job)

    monkeypatch.setattr(prepare_module, "run_task", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(recipe_of(corpus), output, workers=1)
    with pytest.raises(DataError, match="not a dataset, or unfinished"):
        read_manifest(output)
    prepare(recipe_of(corpus), output, workers=1)
    assert sorted(ran) == sorted([*range(ran[-1] + 1), 2])
    assert content(output) == content(dataset)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_is_finished_by_the_next(corpus: Path, dataset: Path, tmp_path: Path, workers: int) -> None:
    output = tmp_path / "dataset"
    (tmp_path / "recipe.json").write_text(recipe_of(corpus).model_dump_json())
    script = (
        "import sys; from pathlib import Path\n"
        "from megaslm.config.recipe import Recipe; from megaslm.data.prepare import prepare\n"
        "if __name__ == '__main__':\n"
        "    recipe = Recipe.model_validate_json(Path('recipe.json').read_text())\n"
        f"    prepare(recipe, Path('dataset'), workers={workers})\n"
    )
    (tmp_path / "run.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "run.py"], cwd=tmp_path, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(output.glob(".prepare/task-*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    prepare(recipe_of(corpus), output, workers=1)
    assert content(output) == content(dataset)


def test_a_finished_dataset_is_left_as_it_is(corpus: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    monkeypatch.setattr(prepare_module, "run_task", lambda job: pytest.fail("a task ran"))
    assert prepare(recipe_of(corpus), dataset) == read_manifest(dataset)
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before


@pytest.mark.parametrize("change", ["size", "content", "gone"])
def test_changed_files_are_noticed(corpus: Path, tmp_path: Path, change: str) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    recipe = recipe_of(tmp_path / "corpus")
    prepare(recipe, tmp_path / "dataset", workers=1)
    path = tmp_path / "corpus" / "noisy" / "2.jsonl"
    if change == "gone":
        path.unlink()
    else:
        written = path.read_text(encoding="utf-8")
        path.write_text(written.replace("noisy", "nosy" if change == "size" else "nasty"), encoding="utf-8")
    with pytest.raises(DataError, match=r"noisy/2.jsonl (has changed|is gone) since .*dataset was prepared"):
        prepare(recipe, tmp_path / "dataset", workers=1)


def test_files_that_change_during_an_interruption_begin_it_anew(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    recipe = recipe_of(tmp_path / "corpus")
    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(recipe, tmp_path / "dataset", workers=1)
    path = tmp_path / "corpus" / "noisy" / "2.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("noisy", "nasty"), encoding="utf-8")
    prepare(recipe, tmp_path / "dataset", workers=1)
    prepare(recipe, tmp_path / "afresh", workers=1)
    assert content(tmp_path / "dataset") == content(tmp_path / "afresh")


def test_a_folder_of_another_recipe_is_refused(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    other = recipe_of(corpus, seq_len=16)
    with pytest.raises(DataError, match="holds the finished dataset 'words' of another recipe"):
        prepare(other, dataset, workers=1)
    small = recipe_of(corpus, seq_len=100_000)
    with pytest.raises(DataError, match="less than one row"):
        prepare(small, tmp_path / "unfinished", workers=1)
    with pytest.raises(DataError, match="holds the unfinished dataset of another recipe"):
        prepare(other, tmp_path / "unfinished", workers=1)


def test_a_folder_of_something_else_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="is not empty and holds no dataset"):
        prepare(recipe_of(corpus), tmp_path, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_folder_that_another_process_works_in_is_refused(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_task, refusals = prepare_module.run_task, []

    def prepare_again(job: prepare_module.Job) -> object:
        with pytest.raises(DataError, match="another process is preparing this dataset") as caught:
            prepare(recipe_of(corpus), tmp_path / "dataset", workers=1)
        refusals.append(caught)
        return run_task(job)

    monkeypatch.setattr(prepare_module, "run_task", prepare_again)
    prepare(recipe_of(corpus), tmp_path / "dataset", workers=1)
    assert refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seq_len": 100_000},
            r"recipe words: the text to train on has \d+ targets, less than one row of seq_len = 100000",
        ),
        ({"source": {"keep_fraction": 1e-12}}, "cannot train a tokenizer of 330 pieces on 0 bytes"),
        (
            {"tokenizer": {"train_sentencepiece": {"vocab_size": 30_000}}},
            "lower tokenizer.train_sentencepiece.vocab_size",
        ),
        ({"tokenizer": {"huggingface": "nowhere"}}, "tokenizer.huggingface: nowhere is not a folder"),
        ({"tokenizer": {"huggingface": "."}}, r"no tokenizer.json; "),
        ({"tokenizer": {"sentencepiece": "nowhere.model"}}, "tokenizer.sentencepiece: nowhere.model is not a file"),
        ({"source": {"paths": ["nowhere/*.jsonl"]}}, r"domain noisy: no file matches 'nowhere/\*\.jsonl'"),
        ({"source": {"text_field": "content"}}, r"noisy/0.jsonl, line 1 has no field 'content'; it has text, book"),
    ],
)
def test_what_cannot_be_prepared_is_named(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = {"domain": "noisy", "reader": "jsonl", "paths": [str(corpus / "noisy")], **changes.pop("source", {})}  # type: ignore[dict-item]
    with pytest.raises(DataError, match=message):
        prepare(recipe_of(corpus, sources=[source], **changes), tmp_path / "dataset", workers=1)
    with pytest.raises(DataError):
        read_manifest(tmp_path / "dataset")


def test_a_domain_without_text_is_named(corpus: Path, tmp_path: Path) -> None:
    sources = [
        {"domain": name, "reader": "jsonl", "paths": [str(corpus / name)], "keep_fraction": share}
        for name, share in (("clean", 1e-12), ("noisy", 1.0))
    ]
    with pytest.raises(DataError, match="domain clean has no text to train on; look at its paths, keep_fraction"):
        prepare(recipe_of(corpus, sources=sources), tmp_path / "dataset", workers=1)


@pytest.mark.slow
def test_a_bad_line_is_named_by_a_worker_process_too(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "corpus")
    with (tmp_path / "corpus" / "noisy" / "3.jsonl").open("a") as file:
        file.write("{\n")
    recipe = recipe_of(tmp_path / "corpus", tokenizer={"huggingface": str(dataset / "tokenizer")})
    with pytest.raises(DataError, match=r"noisy/3.jsonl, line 61 is not JSON"):
        prepare(recipe, tmp_path / "dataset", workers=2)


def test_a_worker_that_dies_is_told_apart_from_a_mistake(
    corpus: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "run_task", _die)
    recipe = recipe_of(corpus, tokenizer={"huggingface": str(dataset / "tokenizer")})
    with pytest.raises(MegaSLMError, match="a worker process of prepare died") as caught:
        prepare(recipe, tmp_path / "dataset", workers=2)
    assert not isinstance(caught.value, DataError)


def _die(job: object) -> None:
    os._exit(9)


def test_a_sentencepiece_file_and_a_huggingface_folder_serve_as_tokenizers(
    corpus: Path, dataset: Path, tmp_path: Path
) -> None:
    from sentencepiece import SentencePieceTrainer

    texts = [text(seed) for seed in range(200)]
    with (tmp_path / "words.model").open("wb") as model:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=300, byte_fallback=True, minloglevel=2,
            model_type="bpe", normalization_rule_name="identity",
        )  # fmt: skip
    recipe = recipe_of(corpus, tokenizer={"sentencepiece": str(tmp_path / "words.model")})
    assert prepare(recipe, tmp_path / "a", workers=1).vocab_size == 300
    recipe = recipe_of(corpus, tokenizer={"huggingface": str(dataset / "tokenizer")})
    manifest = prepare(recipe, tmp_path / "b", workers=1)
    assert manifest.tokenizer_sha256 == read_manifest(dataset).tokenizer_sha256
    assert manifest.splits == read_manifest(dataset).splits


def test_rows_of_a_large_vocabulary_are_wide(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(dataset / "tokenizer", tokenizer)
    state = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = state["model"]["vocab"]
    vocabulary |= {f"unused {number}": number for number in range(len(vocabulary), 70_000)}
    (tokenizer / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    prepare(recipe_of(corpus, tokenizer={"huggingface": str(tokenizer)}), tmp_path / "wide", workers=1)
    wide, narrow = (RowReader(folder, "train", "clean") for folder in (tmp_path / "wide", dataset))
    assert wide[0]["tokens"].dtype == np.uint32
    assert np.array_equal(wide.rows(0, len(wide))["tokens"], narrow.rows(0, len(narrow))["tokens"])


@pytest.mark.slow
def test_the_standard_library_holds_whole_modules_out(tmp_path: Path) -> None:
    recipe = load(Recipe, ROOT / "data" / "python-stdlib.yaml", ["sources.1.keep_fraction=0.1"]).value
    manifest = prepare(recipe, tmp_path / "dataset", workers=2)
    assert manifest.splits["heldout"]["docs"].tokens >= 40_000
    group_of = {file.path.read_bytes(): file.group for file in standard_library_files("python-source")}
    texts = {split: documents_of(tmp_path / "dataset", manifest, split, "source") for split in manifest.splits}
    groups = {split: {group_of[each.encode()] for each in texts[split]} for split in texts}
    assert groups["train"]
    assert not groups["train"] & groups["heldout"]
    documented = documents_of(tmp_path / "dataset", manifest, "heldout", "docs")
    trained = "\n".join(documents_of(tmp_path / "dataset", manifest, "train", "docs"))
    assert not [each for each in documented if each in trained and len(each) > 1000]
    assert yaml.safe_load((ROOT / "data" / "python-stdlib.yaml").read_text())["licence"] in manifest.licences["docs"]
