"""How numbers are written in the ledger, the figures and the page; ``None`` is never shown as a number."""

from __future__ import annotations

import math

MISSING = "n/a"


def count(value: int | None) -> str:
    """Return an integer with thousands separators: ``28,740``."""
    return MISSING if value is None else f"{value:,d}"


def compact(value: int | None) -> str:
    """Return an integer in at most six characters: ``9,999``, ``12.3k``, ``1.2M``."""
    if value is None or abs(value) < 10_000:
        return count(value)
    for unit, size in (("k", 1e3), ("M", 1e6), ("G", 1e9)):
        # 999.95 would be rounded up to a thousand of this unit: the next one takes it.
        if abs(value) < 999.95 * size:
            return f"{value / size:.1f}{unit}"
    return f"{value / 1e12:.1f}T"


def seconds(value: float | None) -> str:
    """Seconds with as many digits as are worth reading: ``0``, ``0.04``, ``4.2``, ``1,234``."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if value < 0.995:
        return f"{value:.2f}" if value >= 0.005 else "<0.01"
    return f"{value:.1f}" if value < 99.95 else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """Return a share in [0, 1] with one decimal: ``97.1 %``."""
    return MISSING if share is None else f"{100 * share:.1f} %"


def metric(value: float | None) -> str:
    """Return a value of a metric with four digits: ``0.1234``, ``38.21``, ``1,523``."""
    return MISSING if value is None or not math.isfinite(value) else fixed(value, decimals(value))


def decimals(value: float) -> int | None:
    """Return the number of decimals with which a number has four digits; None if it needs scientific notation."""
    if value == 0:
        return 0
    size = math.floor(math.log10(abs(value)))
    return max(3 - size, 0) if -5 < size < 7 else None


def fixed(value: float, digits: int | None) -> str:
    """Return a number with so many decimals, or in scientific notation."""
    return f"{value:.3e}" if digits is None else f"{value:,.{digits}f}"


def saving(share: float | None) -> str:
    """Return a saving: ``61 %``, ``3.4 %``; negative when it cost more: ``-12 %``."""
    if share is None:
        return MISSING
    points = 100 * share if share == 1 else min(100 * share, 99.9)
    # One decimal where a whole number would hide something: near nothing, and near everything.
    text = f"{points:.1f}" if abs(points) < 9.95 or 99 < points < 100 else f"{points:,.0f}"
    return f"{'0' if text in ('0.0', '-0.0') else text} %"


def digits(value: float) -> str:
    """Four digits, whole thousands in full: ``0.1234``, ``4,356``, ``1.23e+09``."""
    whole = value == round(value) or abs(value) >= 1000
    return f"{value:,.0f}" if whole and abs(value) < 1e7 else f"{value:.4g}"


def quantity(value: float | None, unit: str) -> str:
    """Return a figure with its unit if that is short; seconds as people would write the time: ``3.2 d``."""
    if value is None:
        return MISSING
    if unit != "s":
        return digits(value) + (f" {unit}" if unit in ("rows", "1/s") else "")
    for name, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0)):
        if abs(value) >= 2 * size:
            return f"{value / size:,.4g} {name}"
    return f"{value:.4g} s"
