"""``kmip-lab certs``: a development set of certificates."""

from pathlib import Path

import click

from kmip_lab.certs import CertificatesExistError, write_development_set


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--rsa", is_flag=True, help="RSA-2048 keys instead of ECDSA P-256.")
@click.option("--force", is_flag=True, help="Overwrite a set that is already there.")
def certs(directory: Path, *, rsa: bool, force: bool) -> None:
    """Write certificates for development into DIRECTORY: CAs, and server, gateway and client certificates."""
    try:
        written = write_development_set(directory, "rsa" if rsa else "ecdsa", force=force)
    except CertificatesExistError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"can't write {directory}: {error.strerror}; choose another directory") from None
    for path in written:
        click.echo(path)
