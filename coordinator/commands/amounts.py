"""Bytes, counts and times as people read them. Needs nothing but the standard library."""


def format_bytes(num_bytes: int) -> str:
    if num_bytes < 1000:
        return f"{num_bytes} B"
    size = float(num_bytes)
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"


def format_count(number: int) -> str:
    """Of parameters: 7.31 M, 30.53 B."""
    return f"{number / 1e9:.2f} B" if number >= 10**9 else f"{number / 1e6:.2f} M"


def progress(done: int, total: int, seconds: float) -> str:
    """How far something is that has run for so long; from half a second on also its rate and the rest."""
    text = f"{format_bytes(done)} of {format_bytes(total)}"
    if seconds < 0.5 or done <= 0:
        return text
    left = (total - done) * seconds / done
    return f"{text}, {format_bytes(int(done / seconds))}/s, {_duration(left)} left"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60} min"
