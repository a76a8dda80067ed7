"""The commands about the audit trail: ``kmip-gateway audit verify`` and ``audit reopen``."""

import sys
from pathlib import Path

import click

from gateway.audit.verify import Verifier
from gateway.config.key_files import audit_key
from gateway.control_cli import reopen_audit_file

_BROKEN = 1


@click.group()
def audit() -> None:
    """Verify the files of an audit trail, or have a running gateway reopen its file."""


@audit.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--key-file", type=click.Path(path_type=Path), help="The key of the trail: [audit] key_file.")
@click.option("--from-middle", is_flag=True, help="Accept that the first line is not the first of a file.")
@click.option("--ended", is_flag=True, help="Require that the last line is that of a gateway that was stopped.")
def verify(files: tuple[Path, ...], key_file: Path | None, from_middle: bool, ended: bool) -> None:
    """Check that no line of FILES is missing or changed. Give rotated files in their order, the oldest first.

    A dash stands for standard input. The exit status is 0 if all lines are whole and in order, 1 if not, and 2 for a
    file that can't be read.
    """
    try:
        key = None if key_file is None else audit_key(key_file)
        verifier = Verifier(key, from_middle=from_middle)
        for path in files:
            if str(path) == "-":
                verifier.read("standard input", sys.stdin.buffer)
            else:
                with path.open("rb") as lines:
                    verifier.read(str(path), lines)
    except OSError as error:
        raise click.UsageError(f"{error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise click.UsageError(f"--key-file: {error}") from None
    broken = verifier.finish(ended=ended)
    for notice in verifier.notices:
        click.echo(f"note: {notice}")
    if broken:
        click.echo(broken, err=True)
        sys.exit(_BROKEN)
    click.echo(verifier.summary())


audit.add_command(reopen_audit_file)
