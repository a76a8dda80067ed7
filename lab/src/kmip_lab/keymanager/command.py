"""The command ``keymanager``: simulated key managers in a process of their own."""

import math
import signal
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
import trio
from OpenSSL import SSL

from gateway import tls
from gateway.config import Address
from gateway.errors import TlsError
from kmip_lab.faults import NATURES, Fault, FaultFile, Nature
from kmip_lab.keymanager.costs import COST_NAMES
from kmip_lab.keymanager.journal import Journal
from kmip_lab.keymanager.replication import Replication
from kmip_lab.keymanager.roles import promote as promote_in
from kmip_lab.keymanager.roles import roles_file
from kmip_lab.keymanager.server import KeyManager
from kmip_lab.keymanager.store import Store

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_POLICY: Final = click.Choice([policy.name.lower() for policy in tls.Policy])
_DIRECTORY: Final = click.Path(exists=True, file_okay=False, path_type=Path)
_NEW_FILE: Final = click.Path(dir_okay=False, path_type=Path)


async def serve_many(
    key_managers: Sequence[KeyManager], addresses: Sequence[Address], faults: Path | None = None
) -> None:
    """Serve each key manager on its address until SIGTERM or SIGINT; say on stdout when each is ready.

    ``faults`` is a file to watch. Raises OSError, in an exception group, where an address can't be had.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            if faults is not None:
                file = FaultFile(faults, {one.name: one.faults for one in key_managers}, _complain)
                file.look()  # they are on before the first client comes
                nursery.start_soon(file.watch)
            for key_manager, address in zip(key_managers, addresses, strict=True):
                port = await nursery.start(key_manager.serve, (address.host, address.port))
                bound = Address(address.host, port)
                click.echo(f"key manager {key_manager.name} listening on {bound} (simulated: not for production)")
            async for _ in signals:
                nursery.cancel_scope.cancel()


def _costs(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """NAME=SECONDS, by name."""
    costs = {}
    for value in values:
        name, _, seconds = value.partition("=")
        if name not in COST_NAMES:
            raise click.BadParameter(f"there is no cost called {name!r}")
        try:
            costs[name] = float(seconds)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not NAME=SECONDS") from None
        if not 0 <= costs[name] < math.inf:
            raise click.BadParameter(f"{value!r} is not a number of seconds from 0 on")
    return costs


def _about(fault: Fault, nature: Nature) -> str:
    parameters = ", ".join((*nature.needs, *(f"[{parameter}]" for parameter in nature.takes)))
    return f"{fault.value}: {nature.does}." + (f" Parameters: {parameters}." if parameters else "")


def _complain(words: str) -> None:
    click.echo(words, err=True)


def _addresses(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[Address]:
    try:
        return [Address.parse(value) for value in values]
    except ValueError as error:
        raise click.BadParameter(f"it {error}") from None


#: For --help; \b keeps click from filling the lines.
_EPILOG: Final = """\b
Costs are of operations ("Get", "CreateKeyPair"), of "handshake", and of what
s_speed measures: "Wrap" is a Get that wraps, "CreateRSA" and "CreateECC" are
Create Key Pair. With a cost for CreateRSA, a few RSA key pairs that were made
beforehand are given out again and again.

\b
--cluster is for replication. Each key manager keeps a store of its own in the
directory, and may be in a process of its own. roles.json there says, a line
for each key manager of the cluster, who is master and how it replicates:
  {"atlanta-001": {"role": "master", "links": {
      "atlanta-002": {"synchronous": true, "delay": 0.001},
      "london-001": {"delay": 0.04}}},
   "atlanta-002": {"role": "standby"}, "london-001": {"role": "master"}}
A change is at the other "delay" seconds after it was made. A write is answered
when the synchronous ones have it; not longer than "patience" (1) seconds, and
not at all where they are gone: then the master goes on alone until they have
caught up. A standby refuses all but Query and Discover Versions; with
"serves_reads": true it refuses changes only. The file may be changed at any
time; to promote a standby:
  kmip-lab promote atlanta-002 --instead-of atlanta-001 --cluster DIR

\b
The file of --faults names key managers, and the faults that each of them has
from now on; without the file, or without its name there, it has none:
  {"atlanta-001": [{"fault": "slow", "seconds": 2, "operations": ["Get"]},
                   {"fault": "idle_close", "seconds": 30}],
   "london-001": [{"fault": "standby", "times": 3}]}
It is looked at every 50 ms: replace it, rather than write to it.

Faults that take them lift themselves after "times" requests, and meet only requests that contain one of "operations"
and name one of the objects in "unique_identifiers".

""" + "\n\n".join(_about(fault, nature) for fault, nature in NATURES.items())


@click.command(epilog=_EPILOG)
@click.option(
    "--bind",
    "addresses",
    metavar="HOST:PORT",
    multiple=True,
    default=["127.0.0.1:15696"],
    show_default=True,
    callback=_addresses,
    help="Where to listen; each is a key manager of its own.",
)
@click.option("--name", "names", multiple=True, help="The key managers' names, as many as there are --bind.")
@click.option("--certificate", type=_FILE, required=True, help="The server certificate, PEM.")
@click.option("--private-key", type=_FILE, required=True, help="Its private key, PEM.")
@click.option("--client-ca", type=_FILE, required=True, help="The CA that clients' certificates come from, PEM.")
@click.option("--tls-policy", type=_POLICY, default="compatible", show_default=True, help="TLS versions and suites.")
@click.option("--handshake-cost", type=click.FloatRange(0), default=0, help="Seconds of the HSM per full handshake.")
@click.option("--operation-cost", type=click.FloatRange(0), default=0, help="Seconds of the HSM per operation.")
@click.option(
    "--cost",
    "costs",
    metavar="NAME=SECONDS",
    multiple=True,
    callback=_costs,
    help="Seconds of one kind of work; see below.",
)
@click.option("--resumption/--no-resumption", default=True, help="Whether clients may resume sessions [default: yes].")
@click.option("--store", type=_NEW_FILE, help="SQLite file for the objects, shared by all [default: in memory].")
@click.option("--cluster", type=_DIRECTORY, help="Directory for replication, in place of --store; see below.")
@click.option(
    "--pending-for", type=click.FloatRange(0), help="Answer asynchronously where asked to; execute seconds later."
)
@click.option("--journal", type=_NEW_FILE, help="File to note executed operations in, as JSON lines.")
@click.option("--faults", type=_NEW_FILE, help="JSON file of faults to have, watched for changes.")
def keymanager(
    addresses: list[Address],
    names: tuple[str, ...],
    certificate: Path,
    private_key: Path,
    client_ca: Path,
    tls_policy: str,
    handshake_cost: float,
    operation_cost: float,
    costs: dict[str, float],
    resumption: bool,
    store: Path | None,
    cluster: Path | None,
    pending_for: float | None,
    journal: Path | None,
    faults: Path | None,
) -> None:
    """Run simulated key managers: real KMIP over mutual TLS, for demos, tests and measurements.

    NOT FOR PRODUCTION: keys are kept unprotected. All key managers of one command share one store, or replicate with
    --cluster; each has an HSM of its own, which does one thing at a time and takes its time for it.
    """
    if names and len(names) != len(addresses):
        raise click.UsageError(f"there are {len(addresses)} --bind and {len(names)} --name")
    if cluster is not None and store is not None:
        raise click.UsageError("with --cluster, each key manager has a store of its own: there is no --store")
    if cluster is not None and not names:
        raise click.UsageError("with --cluster, --name says which of its key managers these are")
    names = names or tuple(f"key-manager-{number + 1}" for number in range(len(addresses)))
    replications: list[Replication | None] = [None] * len(names)
    try:
        context = tls.server_context(certificate, private_key, client_ca, tls_policy)
        if cluster is not None:
            replications = [Replication(cluster, name, complain=_complain) for name in names]
        if not resumption:
            context.set_options(SSL.OP_NO_TICKET)
            context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        shared = Store(store or ":memory:")
        notes = None if journal is None else Journal(journal)
    except (TlsError, OSError, ValueError, sqlite3.Error) as error:
        raise click.ClickException(str(error)) from None
    key_managers = [
        KeyManager(
            name,
            shared if replication is None else replication.store,
            context=context,
            handshake_cost=handshake_cost,
            operation_cost=operation_cost,
            costs=costs,
            journal=notes,
            pending_for=pending_for,
            replication=replication,
        )
        for name, replication in zip(names, replications, strict=True)
    ]
    try:
        trio.run(serve_many, key_managers, addresses, faults)
    except* OSError as errors:
        raise click.ClickException("; ".join(str(error) for error in errors.exceptions)) from None


@click.command()
@click.argument("name")
@click.option("--cluster", type=_DIRECTORY, required=True, help="Directory of the cluster, as of keymanager --cluster.")
@click.option("--instead-of", "failed", metavar="NAME", help="The master that becomes a standby in the same stroke.")
def promote(name: str, cluster: Path, failed: str | None) -> None:
    """Make NAME, a standby among simulated key managers, the master; it is from its next request on."""
    try:
        promote_in(cluster, name, instead_of=failed)
    except KeyError as error:
        raise click.ClickException(f"{roles_file(cluster)}: there is no {error.args[0]} in this cluster") from None
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{roles_file(cluster)}: {error}") from None
    click.echo(f"{name} is master" + (f", and {failed} a standby" if failed else ""))
