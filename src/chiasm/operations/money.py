"""Money: exact decimals outside, whole billionths of a US dollar in the database."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

_SCALE = 9
_UNIT = Decimal(1).scaleb(-_SCALE)


def nanodollars(dollars: Decimal) -> int:
    """Rounded up, so that no spend is lost: at most a billionth of a dollar too much."""
    return int(dollars.scaleb(_SCALE).to_integral_value(ROUND_CEILING))


def dollars(nanodollars: int) -> Decimal:
    """As exact as it was kept."""
    return nanodollars * _UNIT


def shown(amount: Decimal) -> str:
    """`$12.50`; small amounts with as many digits as they need: `$0.0003`."""
    digits = f"{abs(amount):.9f}".rstrip("0")
    whole, _, part = digits.partition(".")
    return f"{'-' if amount < 0 else ''}${int(whole):,}.{part.ljust(2, '0')}"
