"""Credentials have no place in settings: these are printed, and kept beside every run and in every manifest."""

import re

from megaslm.errors import ConfigError

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
