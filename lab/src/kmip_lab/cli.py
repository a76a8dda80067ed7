"""The command line: ``kmip-lab``."""

from importlib import import_module
from importlib.metadata import version
from typing import Final

import click

#: Each command and its module, which is imported when the command is used.
_COMMANDS: Final = {
    "certs": "kmip_lab.certs",
    "compare": "kmip_lab.compare.command",
    "demo": "kmip_lab.demo",
    "keymanager": "kmip_lab.keymanager.command",
    "promote": "kmip_lab.keymanager.command",
    "report": "kmip_lab.report.command",
    "speed": "kmip_lab.speed.command",
}


class _Commands(click.Group):
    """A group of commands that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("kmip-gateway-lab"), prog_name="kmip-lab")
def main() -> None:
    """Simulated key managers, a demo, certificates for development, and measurements for kmip-gateway."""
