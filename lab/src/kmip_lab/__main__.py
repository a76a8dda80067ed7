"""``python -m kmip_lab`` is ``kmip-lab``."""

from kmip_lab.cli import main

if __name__ == "__main__":
    main(prog_name="kmip-lab")
