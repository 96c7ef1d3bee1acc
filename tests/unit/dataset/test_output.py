"""A dataset at a URL: what is sent again."""

from pathlib import Path

from megaslm.dataset.output import RemoteOutput
from megaslm.storage.remote import read_bytes
from megaslm.storage.uploads import write_bytes
from tests.toy import make_dataset


def test_a_shard_of_the_right_size_and_other_bytes_is_sent_again(tmp_path: Path) -> None:
    (part,) = make_dataset(tmp_path / "tokens", {("train", "a"): [8]}).splits["train"]["a"].parts
    (shard,) = (tmp_path / "tokens" / "train" / "a" / part.name).glob("*.mds*")
    content, url = shard.read_bytes(), "memory://test-output/dataset"
    there = f"{url}/train/a/{part.name}/{shard.name}"
    write_bytes(there, bytes(len(content)))
    RemoteOutput(url, tmp_path / "tokens").keep_part("train", "a", part)
    assert read_bytes(there) == content
