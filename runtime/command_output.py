"""How the commands of this package fail and show that they are at work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from .errors import OptionInvalid, RuntimeFault


@contextmanager
def faults_as_lines() -> Iterator[None]:
    """The runtime's faults and the file system's as one line and exit code 1; a wrong option is wrong usage (2)."""
    try:
        yield
    except OptionInvalid as fault:
        raise click.UsageError(f"--{str(fault).replace('_', '-', 1)}") from fault
    except RuntimeFault as fault:
        raise click.ClickException(str(fault)) from fault
    except OSError as error:
        raise click.ClickException(f"{error.filename or ''}: {error.strerror}".removeprefix(": ")) from error


def percent_line(verb: str) -> Callable[[int, int], None] | None:
    """Percent on stderr, only where a person watches."""
    if not sys.stderr.isatty():
        return None
    shown = -1

    def report(done: int, total: int) -> None:
        nonlocal shown
        percent = 100 * done // max(total, 1)
        if percent != shown:
            shown = percent
            click.echo(f"\r{verb} {percent:3d} %" + ("\n" if percent == 100 else ""), nl=False, err=True)

    return report
