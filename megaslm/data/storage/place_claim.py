"""Who fills a place on object storage: one working folder, and it no other place.

URL/unfinished.json names the working folder by a token that the folder keeps in .upload.json, beside the URL. So no two
jobs write at one place, and what a folder has noted is not taken for what has arrived at another place.
"""

import uuid
from pathlib import Path

from pydantic import BaseModel

from megaslm.data.storage.remote import NotThere, RemoteSettings, read_bytes
from megaslm.data.storage.uploads import remove_remote, write_bytes
from megaslm.errors import DataError
from megaslm.jobs.durable import write_file
from megaslm.jobs.read_back import read_back

UPLOAD = ".upload.json"
"""The file of a working folder that says which place it fills."""
_UNFINISHED = "unfinished.json"


class _Upload(BaseModel):
    url: str
    token: str
    """Made up at random."""


class _Claim(BaseModel):
    token: str
    """Of the working folder."""
    plan: str
    """What is being made."""


class PlaceClaim:
    """The claim of a working folder to a URL."""

    def __init__(self, url: str, working: Path, settings: RemoteSettings) -> None:
        """Nothing is asked or written yet."""
        self._url = url
        self._marker = f"{url}/{_UNFINISHED}"
        self._working = working
        self._settings = settings

    def plan(self) -> str | None:
        """The plan for which this folder fills the place; null where nobody does.

        Raises DataError where another folder fills the place, or this folder another place.
        """
        token = self._upload().token
        try:
            content = read_bytes(self._marker, self._settings)
        except NotThere:
            return None
        found = read_back(_Claim, content, self._marker, f"remove what is at {self._url} and begin anew")
        if found.token != token:
            raise DataError(
                f"{self._url} is being filled from another working folder; let that job go on, or stop it and remove "
                f"{self._url}"
            )
        return found.plan

    def make(self, plan: str) -> None:
        """Claim the place."""
        claim = _Claim(token=self._upload().token, plan=plan)
        write_bytes(self._marker, claim.model_dump_json().encode("utf-8"), self._settings)

    def release(self) -> None:
        """Give the place up, where it is this folder's."""
        if self.plan() is not None:
            remove_remote(self._marker, self._settings)

    def is_of_this_place(self) -> bool:
        """Whether the folder fills this place, and no other or none."""
        path = self._working / UPLOAD
        return path.is_file() and self._noted(path).url == self._url

    def _upload(self) -> _Upload:
        """What the folder is for, noted when it is first asked."""
        path = self._working / UPLOAD
        if not path.is_file():
            self._working.mkdir(parents=True, exist_ok=True)
            write_file(path, _Upload(url=self._url, token=uuid.uuid4().hex).model_dump_json())
        found = self._noted(path)
        if found.url != self._url:
            raise DataError(
                f"--work {self._working} holds the unfinished work for {found.url}; name another folder for {self._url}"
            )
        return found

    def _noted(self, path: Path) -> _Upload:
        return read_back(
            _Upload, path.read_bytes(), str(path), f"remove {self._working} and what is at {self._url}, and begin anew"
        )
