"""Datasets on object storage, as those who write them need it: part by part, so that no disk must hold them all.

In the order in which a crash does the least harm: a part's shards before its index, the index before the local shards
go, the manifest last.
"""

import hashlib
import shutil
from pathlib import Path

from megaslm.config.schema import Split
from megaslm.data.dataset.manifest import BESIDE_ROWS, MANIFEST, TOKENIZER, Manifest, Part, write_manifest
from megaslm.data.dataset.merged_index import joined, read_part_index, read_part_indices
from megaslm.data.dataset.shard_index import INDEX, ShardIndex, check_size, write_index
from megaslm.data.storage.place_claim import UPLOAD, PlaceClaim
from megaslm.data.storage.remote import DEFAULTS, NotThere, RemoteSettings, list_remote, read_bytes
from megaslm.data.storage.remote_dataset import read_remote_manifest
from megaslm.data.storage.uploads import has_arrived, upload_file
from megaslm.errors import DataError
from megaslm.jobs.durable import write_file

_EXTENDS = "more parts of the dataset that is there"


class RemoteOutput:
    """A dataset at a URL that comes into being from a local working folder of the same layout.

    Every step may be repeated, after a kill too: what has arrived is not sent again.
    """

    def __init__(self, url: str, working: Path, settings: RemoteSettings = DEFAULTS) -> None:
        """Nothing is asked or written yet."""
        self._url = url.rstrip("/")
        self._working = working
        self._settings = settings
        self._claim = PlaceClaim(self._url, working, settings)

    @property
    def place(self) -> str:
        """The URL."""
        return self._url

    def finished(self) -> Manifest | None:
        """The manifest of the dataset that is finished at the URL; null where none is."""
        try:
            return read_remote_manifest(self._url, self._settings)
        except NotThere:
            return None

    def beside(self, name: str) -> bytes | None:
        """A file at the URL; null where there is none."""
        try:
            return read_bytes(f"{self._url}/{name}", self._settings)
        except NotThere:
            return None

    def begin(self, plan: str) -> None:
        """Claim the URL for a plan, any text that says what is being made, or go on with the same one.

        Raises DataError where anything else is there: a finished dataset, files, an unfinished dataset of another plan
        or of another working folder; and where the working folder belongs to another place.
        """
        found = self._claim.plan()
        if found is None:
            self._require_empty()
            self._claim.make(plan)
        elif found != plan:
            raise DataError(
                f"{self._url} holds the unfinished dataset of another recipe, reference or of other files; remove it "
                "or choose another output"
            )

    def extend(self, manifest: Manifest) -> None:
        """Bring the indices of the dataset that is finished at the URL into the working folder; its shards stay there.

        Readers of the dataset find the new parts when the new manifest is there. Raises Damaged where an index is not
        what the manifest tells, DataError where another working folder adds parts.
        """
        if self._claim.plan() is None:
            self._claim.make(_EXTENDS)
        for split, domains in manifest.splits.items():
            for domain, share in domains.items():
                for part in share.parts:
                    folder = self._working / split / domain / part.name
                    if not (folder / INDEX).is_file():
                        folder.mkdir(parents=True, exist_ok=True)
                        url = f"{self._url}/{split}/{domain}/{part.name}/{INDEX}"
                        write_file(folder / INDEX, read_bytes(url, self._settings).decode("utf-8"))
                    read_part_index(folder.parent, part)

    def keep_part(self, split: Split, domain: str, part: Part) -> None:
        """Send a finished part of the working folder, prove that it arrived, and remove its local shards.

        Its index.json stays. Raises Damaged where the local part is not what its record tells, DataError where the
        store does not take it.
        """
        folder = self._working / split / domain / part.name
        index = read_part_index(folder.parent, part)
        place = f"{self._url}/{split}/{domain}/{part.name}"
        there = self._sizes(place)
        if not self._has_arrived(place, there, index, part):
            for shard in index.shards:
                local, url = folder / shard.stored.basename, f"{place}/{shard.stored.basename}"
                check_size(local, shard)
                if url not in there or not has_arrived(local, url, self._settings):
                    upload_file(local, url, self._settings)
            upload_file(folder / INDEX, f"{place}/{INDEX}", self._settings)
        for shard in index.shards:
            (folder / shard.stored.basename).unlink(missing_ok=True)

    def finish(self, manifest: Manifest) -> None:
        """Send what remains, the manifest last, once every part is there. Raises DataError where one is not."""
        there = self._sizes(self._url)
        for split, domains in manifest.splits.items():
            for domain, share in domains.items():
                folder = self._working / split / domain
                merged = joined(read_part_indices(folder, share.parts))
                expected = {shard.stored.basename: shard.stored.bytes for shard in merged.shards}
                for name, size in expected.items():
                    self._require_size(f"{self._url}/{split}/{domain}/{name}", size, there)
                write_index(folder, merged)
                upload_file(folder / INDEX, f"{self._url}/{split}/{domain}/{INDEX}", self._settings)
        beside = [name for name in BESIDE_ROWS if (self._working / name).is_file()]
        for name in (*(f"{TOKENIZER}/{file}" for file in manifest.tokenizer_files), *beside):
            upload_file(self._working / name, f"{self._url}/{name}", self._settings)
        write_manifest(self._working, manifest)
        upload_file(self._working / MANIFEST, f"{self._url}/{MANIFEST}", self._settings)
        self._claim.release()

    def tidy_up(self) -> None:
        """Remove from the working folder what is at the URL now, and the claim, which a kill may have left."""
        if not self._claim.is_of_this_place():
            return
        self._claim.release()
        for name in ("train", "heldout", TOKENIZER):
            shutil.rmtree(self._working / name, ignore_errors=True)
        for name in (MANIFEST, *BESIDE_ROWS, UPLOAD):
            (self._working / name).unlink(missing_ok=True)

    def _has_arrived(self, place: str, there: dict[str, int], index: ShardIndex, part: Part) -> bool:
        """Whether all of a part is there: its index, which is sent last, and the shards that it lists."""
        shards = {f"{place}/{shard.stored.basename}": shard.stored.bytes for shard in index.shards}
        if f"{place}/{INDEX}" not in there or not shards.items() <= there.items():
            return False
        content = read_bytes(f"{place}/{INDEX}", self._settings)
        return hashlib.sha256(content).hexdigest() == part.index_sha256

    def _require_empty(self) -> None:
        there = self._sizes(self._url)
        if f"{self._url}/{MANIFEST}" in there:
            raise DataError(f"{self._url} holds a finished dataset; remove it or choose another output")
        if there:
            raise DataError(f"{self._url} is not empty and holds no dataset ({min(there)}); choose another output")

    def _require_size(self, url: str, expected: int, there: dict[str, int]) -> None:
        if there.get(url) != expected:
            found = f"has {there[url]} bytes" if url in there else "is missing"
            raise DataError(f"{url} {found}, expected {expected} bytes; remove the dataset and make it again")

    def _sizes(self, place: str) -> dict[str, int]:
        """URL to size of everything below `place`."""
        try:
            return {found.url: found.size for found in list_remote(place, self._settings)}
        except NotThere:
            return {}
