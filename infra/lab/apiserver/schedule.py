"""The schedule of a CronJob and what can be wrong with it (five fields as in crontab(5), or ``@hourly``)."""

from __future__ import annotations

_DESCRIPTORS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")
_MONTH_NAMES = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAY_NAMES = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
_DAYS = {name: number for number, name in enumerate(_DAY_NAMES)}
# smallest and largest value, names
_FIELDS: tuple[tuple[int, int, dict[str, int]], ...] = (
    (0, 59, {}),
    (0, 23, {}),
    (1, 31, {}),
    (1, 12, _MONTHS),
    (0, 6, _DAYS),
)


class _BadError(ValueError):
    pass


def schedule_error(text: str) -> str:
    """What is wrong with a schedule, in the words of the cron library Kubernetes uses; empty when it is fine."""
    if text.startswith(("TZ=", "CRON_TZ=")):
        _, _, text = text.partition(" ")
        text = text.strip()
    if not text:
        return "empty spec string"
    if text.startswith("@"):
        return "" if text in _DESCRIPTORS or text.startswith("@every ") else f"unrecognized descriptor: {text}"
    fields = text.split()
    if len(fields) != len(_FIELDS):
        return f"expected exactly {len(_FIELDS)} fields, found {len(fields)}: [{' '.join(fields)}]"
    try:
        for field, (low, high, names) in zip(fields, _FIELDS, strict=True):
            for part in field.split(","):
                _part(part, low, high, names)
    except _BadError as error:
        return str(error)
    return ""


def _part(text: str, low: int, high: int, names: dict[str, int]) -> None:
    """One range of a list: ``*``, ``n``, ``a-b``, each with an optional ``/step``."""
    span, *steps = text.split("/")
    bounds = span.split("-")
    if bounds[0] in ("*", "?"):
        start, end = low, high
    else:
        start = _number(bounds[0], names)
        if len(bounds) > 2:
            raise _BadError(f"too many hyphens: {text}")
        end = _number(bounds[1], names) if len(bounds) == 2 else (high if steps else start)
    if len(steps) > 1:
        raise _BadError(f"too many slashes: {text}")
    step = _number(steps[0], {}) if steps else 1
    if start < low:
        raise _BadError(f"beginning of range ({start}) below minimum ({low}): {text}")
    if end > high:
        raise _BadError(f"end of range ({end}) above maximum ({high}): {text}")
    if start > end:
        raise _BadError(f"beginning of range ({start}) beyond end of range ({end}): {text}")
    if step == 0:
        raise _BadError(f"step of range should be a positive number: {text}")


def _number(text: str, names: dict[str, int]) -> int:
    if text.lower() in names:
        return names[text.lower()]
    if not text.isdigit():
        if text.startswith("-") and text[1:].isdigit():
            raise _BadError(f"negative number ({text}) not allowed: {text}")
        raise _BadError(f'failed to parse int from {text}: strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)
