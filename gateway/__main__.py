"""``python -m gateway`` is ``kmip-gateway``."""

from gateway.cli import main

if __name__ == "__main__":
    main(prog_name="kmip-gateway")
