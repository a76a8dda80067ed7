"""The commands ``keymanager``, which runs simulated key managers in one process, and ``promote``."""

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
    """Serve each key manager on its address until SIGTERM or SIGINT; print a line when each is ready.

    ``faults`` is a file to watch. Raises OSError, in an exception group, if an address is not available.
    """
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            if faults is not None:
                file = FaultFile(faults, {each.name: each.faults for each in key_managers}, _print_error)
                file.look()  # before the first client can connect
                nursery.start_soon(file.watch)
            for key_manager, address in zip(key_managers, addresses, strict=True):
                port = await nursery.start(key_manager.serve, (address.host, address.port))
                bound = Address(address.host, port)
                click.echo(f"key manager {key_manager.name} listening on {bound} (simulated: not for production)")
            async for _ in signals:
                nursery.cancel_scope.cancel()


def _costs(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, float]:
    """Parse each NAME=SECONDS of --cost; return the seconds by name."""
    costs = {}
    for value in values:
        name, _, seconds = value.partition("=")
        if name not in COST_NAMES:
            raise click.BadParameter(
                f"there is no cost {name!r}: use an operation, handshake, Wrap, CreateRSA or CreateECC"
            )
        try:
            costs[name] = float(seconds)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not NAME=SECONDS") from None
        if not 0 <= costs[name] < math.inf:
            raise click.BadParameter(f"{value!r}: seconds must be a finite number, 0 or more")
    return costs


def _describe(fault: Fault, nature: Nature) -> str:
    parameters = ", ".join((*nature.needs, *(f"[{parameter}]" for parameter in nature.takes)))
    return f"{fault.value}: {nature.does}." + (f" Parameters: {parameters}." if parameters else "")


def _print_error(message: str) -> None:
    click.echo(message, err=True)


def _issue_tickets(_connection: SSL.Connection) -> None:
    """Let OpenSSL issue a ticket for a resumed session, too, as most servers do; the gateway's listeners issue none."""


def _addresses(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[Address]:
    try:
        return [Address.parse(value) for value in values]
    except ValueError as error:
        raise click.BadParameter(f"it {error}") from None


#: The end of --help; \b keeps click from wrapping the lines.
_EPILOG: Final = """\b
The NAME of --cost is an operation ("Get", "CreateKeyPair"), "handshake", or a
measurement of s_speed: "Wrap" is a Get that wraps, "CreateRSA" and "CreateECC"
are Create Key Pair. With a cost for CreateRSA, a few RSA key pairs are
generated at the start, and returned again and again.

\b
--cluster is for replication. Each key manager keeps a store of its own in the
directory, and may run in a process of its own. The file roles.json in the
directory has the role of each key manager, and how it replicates as a master:
  {"atlanta-001": {"role": "master", "links": {
      "atlanta-002": {"synchronous": true, "delay": 0.001},
      "london-001": {"delay": 0.04}}},
   "atlanta-002": {"role": "standby"}, "london-001": {"role": "master"}}
A change arrives "delay" seconds (0) after it was made. A write is answered when
the synchronous replicas have it. If a replica is down, or takes longer than
"timeout" seconds (1), the master no longer waits for it until it has caught up.
A standby refuses all operations but Query and Discover Versions; with
"serves_reads": true it refuses only writes. The file may be changed at any
time. To promote a standby:
  kmip-lab promote atlanta-002 --instead-of atlanta-001 --cluster DIR

\b
The file of --faults has the faults of each key manager from now on. A key
manager that is not in the file has no faults:
  {"atlanta-001": [{"fault": "slow", "seconds": 2, "operations": ["Get"]},
                   {"fault": "idle_close", "seconds": 30}],
   "london-001": [{"fault": "standby", "times": 3}]}
It is read again within 50 ms after each change. Replace it in one step (mv): a
half-written file is reported as an error.

A fault with "times" ends after that many requests. With "operations" it affects only requests that contain one of them;
with "unique_identifiers", only requests that name one of these objects. Parameters in brackets are optional.

""" + "\n\n".join(_describe(fault, nature) for fault, nature in NATURES.items())


@click.command(epilog=_EPILOG)
@click.option(
    "--bind",
    "addresses",
    metavar="HOST:PORT",
    multiple=True,
    default=["127.0.0.1:15696"],
    show_default=True,
    callback=_addresses,
    help="Address to listen on. Each --bind starts a key manager.",
)
@click.option("--name", "names", multiple=True, help="Name of a key manager; as often as --bind, in the same order.")
@click.option("--certificate", type=_FILE, required=True, help="Server certificate, PEM.")
@click.option("--private-key", type=_FILE, required=True, help="Private key of the certificate, PEM.")
@click.option("--client-ca", type=_FILE, required=True, help="CA that issues the clients' certificates, PEM.")
@click.option(
    "--tls-policy", type=_POLICY, default="compatible", show_default=True, help="TLS versions and cipher suites."
)
@click.option(
    "--handshake-cost", type=click.FloatRange(0), default=0, help="Seconds that the HSM needs for a full handshake."
)
@click.option(
    "--operation-cost", type=click.FloatRange(0), default=0, help="Seconds that the HSM needs for an operation."
)
@click.option(
    "--cost",
    "costs",
    metavar="NAME=SECONDS",
    multiple=True,
    callback=_costs,
    help="Seconds that the HSM needs for one kind of work; see below.",
)
@click.option("--resumption/--no-resumption", default=True, help="Allow clients to resume TLS sessions [default: yes].")
@click.option(
    "--store", type=_NEW_FILE, help="SQLite file of the objects, which all key managers share [default: in memory]."
)
@click.option("--cluster", type=_DIRECTORY, help="Directory for replication, instead of --store; see below.")
@click.option(
    "--pending-for",
    type=click.FloatRange(0),
    help="Enable asynchronous operations; execute them this many seconds later.",
)
@click.option("--journal", type=_NEW_FILE, help="File to which executed operations are appended, as JSON lines.")
@click.option("--faults", type=_NEW_FILE, help="JSON file of faults, watched for changes; see below.")
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
    --cluster. Each has an HSM of its own, which executes one operation at a time; its costs are options.
    """
    if names and len(names) != len(addresses):
        raise click.UsageError(
            f"there are {len(addresses)} --bind and {len(names)} --name: give one --name for each --bind"
        )
    if cluster is not None and store is not None:
        raise click.UsageError(
            "--store can't be used with --cluster: each key manager keeps its objects in the directory"
        )
    if cluster is not None and not names:
        raise click.UsageError("--cluster needs --name: the names of these key managers in roles.json")
    names = names or tuple(f"key-manager-{number + 1}" for number in range(len(addresses)))
    replications: list[Replication | None] = [None] * len(names)
    try:
        context = tls.server_context(certificate, private_key, client_ca, tls_policy)
        context.set_tlsext_servername_callback(_issue_tickets)
        if cluster is not None:
            replications = [Replication(cluster, name, on_error=_print_error) for name in names]
        if not resumption:
            context.set_options(SSL.OP_NO_TICKET)
            context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        shared = Store(store or ":memory:")
        open_journal = None if journal is None else Journal(journal)
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
            journal=open_journal,
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
@click.option(
    "--cluster", type=_DIRECTORY, required=True, help="Directory of the cluster: that of keymanager --cluster."
)
@click.option("--instead-of", "failed", metavar="NAME", help="Master that becomes a standby in the same step.")
def promote(name: str, cluster: Path, failed: str | None) -> None:
    """Make NAME, a standby of a cluster of simulated key managers, a master, from its next request on."""
    try:
        promote_in(cluster, name, instead_of=failed)
    except KeyError as error:
        raise click.ClickException(
            f"{roles_file(cluster)}: there is no key manager {error.args[0]} in this cluster"
        ) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(f"{roles_file(cluster)}: {error}") from None
    click.echo(f"{name} is master" + (f", and {failed} is a standby" if failed else ""))
