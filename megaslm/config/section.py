"""The base class of configuration sections, and checked types for names, numbers and paths.

Settings must not hold credentials: they are printed, and kept beside every run and in every manifest.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from megaslm.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Split = Literal["train", "heldout"]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""Names of domains and streams, which become folders and parts of dotted keys."""
_HIDDEN = "***"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# A password may hold a slash. `:8080/` is a port. `container@account` in Azure's abfs:// is not a secret.
_PASSWORD = re.compile(r"(?<=://)[^\s/@:]*:(?!\d+(?:/|$))[^\s@]*(?=@)")
_USER_OF_WEB = re.compile(r"(?<=\bhttp://)[^\s/@]+(?=@)|(?<=\bhttps://)[^\s/@]+(?=@)")
_PARAMETER = re.compile(
    r"(?<=[?&])((?:[\w.-]*(?:token|secret|signature|password|credential|access_?key|api_?key)(?:_?id)?|sig|key)=)[^\s&]+",
    re.IGNORECASE,
)
_NAME = re.compile(
    r"(?:^|[_-])(?:token|secret|password|passwd|credentials?|(?:api|access|secret|private)[_-]?key(?:[_-]id)?)$",
    re.IGNORECASE,
)

REMEDY = (
    "set credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or your store's variables), "
    "and copy files here that need a signed URL"
)


class NewName(NamedTuple):
    """The name of a renamed setting."""

    name: str
    """The last part of its dotted key; the other parts are those of the old one."""
    values: Mapping[bool, str] = MappingProxyType({})
    """Where the setting was true or false: what it is now."""


OldNames = Mapping[tuple[str, ...], NewName]
"""Renamed settings by their old dotted keys, as parts."""


class Section(BaseModel):
    """A frozen group of settings that rejects unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


def home_expanded(path: str | Path) -> Path:
    """The path with `~` or `~name` replaced by the home folder. Raises ConfigError where no user has that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: no home folder is known for {Path(path).parts[0]!r}; write the path in full, from /"
        ) from error


def _matching(pattern: str, meaning: str) -> AfterValidator:
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
    _matching(
        # IPv6 zones are rejected: they name an interface, and interfaces have other names on other hosts.
        rf"{_HOST_PATTERN}|(?=.*:)[0-9A-Fa-f:.]+",
        "a host's name, of letters, digits, `.`, `_` and `-`, or its IPv4 or IPv6 address without a zone",
    ),
]
HostAndPort = Annotated[
    str,
    _matching(
        rf"{_HOST_PATTERN}:{_PORT_PATTERN}",
        "HOST:PORT, the host of letters, digits, `.`, `_` and `-`, the port 65535 at most",
    ),
]
LocalPath = Annotated[str, _matching(r"[^-\0\n][^\0\n]*", "a path on one line that does not begin with `-`")]
PathInContainer = Annotated[str, _matching(r"/[^\0\n:]*", "an absolute path without `:`")]
SlurmName = Annotated[str, _matching(r"[A-Za-z0-9_][A-Za-z0-9_.,-]*", "letters, digits and `_.,-`")]
SlurmTime = Annotated[
    str,
    _matching(
        r"[0-9]+|[0-9]+:[0-9]{2}(?::[0-9]{2})?|[0-9]+-[0-9]+(?::[0-9]{2}){0,2}",
        "a time as sbatch takes it, such as 12:00:00 or 2-00:00:00",
    ),
]
# The verb and a pod's number are appended, and a host name has at most 63 characters.
JobName = Annotated[
    str,
    Field(max_length=40),
    _matching(r"[a-z](?:[a-z0-9-]*[a-z0-9])?", "lower-case letters, digits and `-`, beginning with a letter"),
]
ObjectName = Annotated[str, _matching(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", "lower-case letters, digits, `-` and `.`")]
HUB_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
HubName = Annotated[
    str,
    _matching(HUB_NAME_PATTERN, "OWNER/NAME as on the Hugging Face hub, such as open-web-math/open-web-math"),
]
HubRevision = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9._/-]*", "a commit, a branch or a tag")]
HubPattern = Annotated[str, _matching(r"[^-\0\n][^\0\n]*", "a pattern on one line that does not begin with `-`")]
Image = Annotated[
    str, _matching(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", "an image as `docker pull` takes it: letters, digits and `._/:@-`")
]


def without_credentials(text: str) -> str:
    """The text with passwords, tokens and signatures in its URLs replaced by stars."""
    for pattern in (_PASSWORD, _USER_OF_WEB):
        text = pattern.sub(_HIDDEN, text)
    return _PARAMETER.sub(rf"\1{_HIDDEN}", text)


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name, such as api_key, holds a secret."""
    return _NAME.search(name) is not None


def is_url_with_credentials(value: str) -> bool:
    """Whether the value is a URL that holds a password, a token or a signature."""
    return _URL.match(value) is not None and without_credentials(value) != value


def refuse_credentials(place: str) -> None:
    """Raise ConfigError where a URL holds credentials."""
    if is_url_with_credentials(place):
        shown = without_credentials(place)
        raise ConfigError(f"{shown}: the URL holds credentials, which would be printed and kept; {REMEDY}")
