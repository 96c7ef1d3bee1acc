"""Numbers with their units, as people read them."""

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def size(count_bytes: int) -> str:
    """A number of bytes, such as `1.3 GB`."""
    for unit, factor in _UNITS:
        if count_bytes >= factor:
            return f"{count_bytes / factor:,.1f} {unit}"
    return f"{count_bytes} bytes"


def operations(count: float) -> str:
    """A number of floating-point operations, such as `2.25 GFLOP`."""
    for unit, factor in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kFLOP"


def duration(seconds: float) -> str:
    """A time, such as `4.2 s`, `3:05 min` or `27:14:09 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
