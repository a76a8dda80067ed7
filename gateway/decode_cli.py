"""The command ``kmip-gateway decode``."""

import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import BinaryIO, Final

import click

from gateway.decoding.names import Names
from gateway.decoding.rendering import Renderer, xml_text
from gateway.decoding.source import ttlv_bytes
from gateway.decoding.tree import Node, read
from gateway.errors import DecodeError

_UNREADABLE: Final = 1
_MAX_BYTES: Final = 64 * 1024 * 1024


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--secrets", is_flag=True, help="Print keys, passwords and other values that may be secret, too.")
@click.option("--json", "form", flag_value="json", help="Print JSON as the KMIP profiles write it.")
@click.option("--xml", "form", flag_value="xml", help="Print XML as the KMIP profiles write it.")
def decode(file: BinaryIO, form: str | None, *, secrets: bool) -> None:
    """Print KMIP messages in FILE, or from standard input with -, as trees with the names of the specification.

    FILE has TTLV as bytes, as hexadecimal digits, as a hex dump of xxd, tcpdump or Wireshark, or as base64; one message
    or several. Values that may be secret are redacted. The exit status is 1 if FILE has a mistake: the message says at
    which byte, and the tree ends there.
    """
    nodes: list[Node] = []
    mistake: DecodeError | None = None
    raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        mistake = DecodeError(f"more than {_MAX_BYTES // 1024**2} MiB")
    else:
        try:
            nodes, mistake = read(ttlv_bytes(raw))
        except DecodeError as error:
            mistake = error
    _print(nodes, form, Renderer(Names(), secrets=secrets))
    if mistake is not None:
        click.echo(f"{getattr(file, 'name', '<stdin>')}: {mistake}", err=True)
        sys.exit(_UNREADABLE)


def _print(nodes: Sequence[Node], form: str | None, renderer: Renderer) -> None:
    if form == "xml":
        root = ET.Element("KMIP")
        root.extend(map(renderer.xml, nodes))
        click.echo(xml_text(root))
    elif form == "json":
        for node in nodes:
            click.echo(renderer.json(node))
    else:
        for node in nodes:
            for line in renderer.text(node):
                click.echo(line)
