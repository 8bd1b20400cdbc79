"""When a schedule is due: cron lines, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from alignment.errors import ConfigError


def next_time(cron: str, after: datetime) -> datetime:
    """The first due time after ``after``, in UTC. Raises ConfigError for anything but five cron fields."""
    from croniter import CroniterError, croniter

    example = 'write minute, hour, day, month and weekday, such as "0 3 * * *" for three o\'clock (UTC) each night'
    if len(cron.split()) != 5 or cron.startswith("@"):
        raise ConfigError(f"{cron!r} has {len(cron.split())} fields and a cron line needs 5; {example}.")
    try:
        return croniter(cron, after.astimezone(UTC)).get_next(datetime).astimezone(UTC)
    except (CroniterError, ValueError, KeyError) as error:
        raise ConfigError(f"{cron!r} is no cron line ({error}); {example}.") from None
