"""Batches as they are named on a command line."""

from bigbatch.core.checks import UserError


def batches_of(option: str, text: str) -> list[int]:
    """The batches of "8,32,128", or of a range such as "8..1024" or "2^3..2^10:4", each twice, or 4 times, the one before.

    Raises:
        UserError: If it is neither.

    >>> batches_of("--batches", "2^3..100"), batches_of("--batches", "16..1024:4"), batches_of("--batches", "2^3,32")
    ([8, 16, 32, 64], [16, 64, 256, 1024], [8, 32])
    """
    try:
        if ".." not in text:
            return [_power(part) for part in text.split(",")]
        ends, _, factor = text.partition(":")
        low, high = (_power(part) for part in ends.split(".."))
        times = _power(factor or "2")
        if not (0 < low <= high and times > 1):
            raise ValueError
    except ValueError:
        raise UserError(f"{option} {text}: must be batches such as 64,256,1024, or a range such as 2^3..2^13 or 8..8192:4") from None
    found = [low]
    while found[-1] * times <= high:
        found.append(found[-1] * times)
    return found


def _power(text: str) -> int:
    base, power, exponent = text.partition("^")
    return int(base) ** int(exponent) if power else int(base.replace("_", ""))
