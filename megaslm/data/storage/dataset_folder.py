"""A dataset as runs read it: a local folder, or a remote one of which all but the shards lies in a cache."""

from dataclasses import dataclass
from pathlib import Path

from megaslm.config.credentials import refuse_credentials
from megaslm.config.home import home_expanded
from megaslm.config.schema import Split
from megaslm.data.dataset.row_reader import RowReader
from megaslm.data.dataset.shard_index import Shard


@dataclass(frozen=True)
class DatasetFolder:
    """Where a dataset is."""

    path: Path
    """The local folder with manifest, tokenizer and indices."""
    url: str | None = None
    """Where its shards are fetched from; null where they are in the folder."""

    @property
    def place(self) -> str:
        """What messages call it."""
        return self.url or str(self.path)

    def reader(self, split: Split, domain: str, part: str | None = None, *, checked: bool = False) -> RowReader:
        """The rows of a domain or of a part of it; shards that are missing are fetched when they are asked for.

        With `checked` a shard is compared with its checksum when it is opened.
        """
        fetch = None if self.url is None else self._fetch
        return RowReader(self.path, split, domain, part, fetch=fetch, checked=checked)

    def _fetch(self, path: Path, shard: Shard) -> None:
        from megaslm.data.storage.remote_dataset import fetch_shard

        fetch_shard(f"{self.url}/{path.relative_to(self.path).as_posix()}", path, shard)


def open_dataset(place: str, cache: str) -> DatasetFolder:
    """The dataset at a local folder or a URL, which is described in a folder of `cache`.

    Raises DataError where a remote dataset is not there, is damaged, or is not the one that the cache holds, and
    ConfigError where the URL holds credentials.
    """
    from megaslm.data.storage.remote import is_remote

    refuse_credentials(place)
    if not is_remote(place):
        return DatasetFolder(Path(place))
    from megaslm.data.storage.remote_dataset import fetch_description

    return DatasetFolder(fetch_description(place, home_expanded(cache)), place.rstrip("/"))
