"""Which files a source of a recipe means."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from megaslm.config.recipe import Source
from megaslm.data.storage.remote import is_remote, list_remote
from megaslm.data.text.documents import InputFile
from megaslm.data.text.python_stdlib import standard_library_files
from megaslm.errors import DataError

USUAL_SUFFIXES: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
    "text": (".txt",),
    "tree": ("",),
}


def find_files(source: Source) -> list[InputFile]:
    """Every file of a source, each once: paths in the recipe's order, the files of a folder or a glob sorted.

    Raises DataError where a path leads to no file.
    """
    if source.reads_standard_library:
        return standard_library_files(source.reader)
    found: dict[str, InputFile] = {}
    for pattern in source.paths:
        matches = _remote_files(pattern, source) if is_remote(pattern) else _local_files(pattern, source)
        if not matches:
            raise DataError(f"domain {', '.join(source.domain_names)}: {_why_nothing(pattern, source)}")
        for file in matches:
            found.setdefault(file.path, file)
    return list(found.values())


def describe(path: Path, label: str, group: str | None = None) -> InputFile:
    """A local file as it is now."""
    status = path.stat()
    return InputFile(str(path), label, status.st_size, str(status.st_mtime_ns), group=group)


def _local_files(pattern: str, source: Source) -> list[InputFile]:
    paths = [path for place in _places(pattern) for path in _files_of(place, source)]
    return [describe(path, label=path.as_posix()) for path in paths]


def _remote_files(pattern: str, source: Source) -> list[InputFile]:
    """Files of a URL; in a folder those that the source's endings and exclusions leave."""
    found = list_remote(pattern)
    return [
        InputFile(file.url, file.url, file.size, file.version, is_remote=True)
        for file in found
        if file.url == pattern or _is_wanted(file.url.removeprefix(pattern.rstrip("/") + "/"), source)
    ]


def _places(pattern: str) -> list[Path]:
    """The files and folders that a path or a glob means."""
    path = Path(pattern).expanduser()
    if path.exists():
        return [path]
    parts = path.parts
    first = next((number for number, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    if first == len(parts):
        return []
    return sorted(Path(*parts[:first]).glob(str(Path(*parts[first:]))))


def _files_of(place: Path, source: Source) -> Iterable[Path]:
    return [place] if place.is_file() else _walk(place, source)


def _walk(folder: Path, source: Source) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if _is_wanted(path.relative_to(folder).as_posix(), source) and path.is_file():
            yield path


def _is_wanted(inside: str, source: Source) -> bool:
    """Whether a file of a folder is read, by its path inside the folder."""
    suffixes = source.suffixes or USUAL_SUFFIXES[source.reader]
    return inside.endswith(suffixes) and not any(fnmatchcase(inside, pattern) for pattern in source.exclude)


def _why_nothing(pattern: str, source: Source) -> str:
    suffixes = source.suffixes or USUAL_SUFFIXES[source.reader]
    wanted = f"; in folders, files that end in {' or '.join(suffixes)} are read" if any(suffixes) else ""
    return f"no file matches {pattern!r} (relative to {Path.cwd()}){wanted}"
