"""Numbers with their units, as people read them."""

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def size(count_bytes: int) -> str:
    """A number of bytes, such as `1.3 GB`."""
    for unit, factor in _UNITS:
        if count_bytes >= factor:
            return f"{count_bytes / factor:,.1f} {unit}"
    return f"{count_bytes} bytes"
