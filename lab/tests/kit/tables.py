"""The tables of a Markdown page."""


def rows(text: str, beginning: str) -> list[list[str]]:
    """The cells of the table rows that begin so."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {beginning} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
