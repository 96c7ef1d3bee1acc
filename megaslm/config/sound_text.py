"""Names and paths that end up in command lines and manifests on other machines: what is sound for each."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _sound(pattern: str, meaning: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {meaning}")
        return value

    return AfterValidator(check)


_HOST_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PORT_PATTERN = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
Port = Annotated[int, Field(ge=1, le=65535)]
Address = Annotated[
    str,
    _sound(
        # Zones of IPv6 addresses are left out: each host calls its interfaces as it likes.
        rf"{_HOST_PATTERN}|(?=.*:)[0-9A-Fa-f:.]+",
        "a host's name, of letters, digits, `.`, `_` and `-`, or its IPv4 or IPv6 address without a zone",
    ),
]
HostAndPort = Annotated[
    str,
    _sound(
        rf"{_HOST_PATTERN}:{_PORT_PATTERN}",
        "HOST:PORT, the host of letters, digits, `.`, `_` and `-`, the port 65535 at most",
    ),
]
LocalPath = Annotated[str, _sound(r"[^-\0\n][^\0\n]*", "a path on one line that does not begin with `-`")]
PathInContainer = Annotated[str, _sound(r"/[^\0\n:]*", "an absolute path without `:`")]
SlurmName = Annotated[str, _sound(r"[A-Za-z0-9_][A-Za-z0-9_.,-]*", "letters, digits and `_.,-`")]
SlurmTime = Annotated[
    str,
    _sound(
        r"[0-9]+|[0-9]+:[0-9]{2}(?::[0-9]{2})?|[0-9]+-[0-9]+(?::[0-9]{2}){0,2}",
        "a time as sbatch takes it, such as 12:00:00 or 2-00:00:00",
    ),
]
# The verb and a pod's number follow, and a host's name has 63 characters at most.
JobName = Annotated[
    str,
    Field(max_length=40),
    _sound(r"[a-z](?:[a-z0-9-]*[a-z0-9])?", "lower-case letters, digits and `-`, beginning with a letter"),
]
ObjectName = Annotated[str, _sound(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", "lower-case letters, digits, `-` and `.`")]
Image = Annotated[
    str, _sound(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", "an image as `docker pull` takes it: letters, digits and `._/:@-`")
]
