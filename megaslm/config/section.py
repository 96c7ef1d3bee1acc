"""What every section of a configuration is made of: its base class, and checked names, numbers and paths.

Credentials have no place in settings: these are printed, and kept beside every run and in every manifest.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from megaslm.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
"""What domains and streams may be called: a name stands in folders and dotted keys."""
_HIDDEN = "***"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# A password may hold a slash. `:8080/` is a port, and `container@account` of Azure's abfs:// no secret.
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
    "set credentials in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your store asks for), "
    "and copy files here that only a signed URL gives"
)


OldNames = Mapping[tuple[str, ...], str]
"""Settings that have changed their name: the old dotted key, as its parts, and the last part of the new one."""


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


def home_expanded(path: str | Path) -> Path:
    """The path with the folder that `~` or `~name` stands for. Raises ConfigError where nobody has that name."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: no home folder is known for {Path(path).parts[0]!r}; write the path in full, from / on"
        ) from error


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


def without_credentials(text: str) -> str:
    """The text with stars for passwords, tokens and signatures in its URLs."""
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
        raise ConfigError(f"{shown}: the URL holds credentials, which are printed and kept; {REMEDY}")
