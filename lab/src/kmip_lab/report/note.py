"""The numbers of the application note's "Performance test results": operations a minute."""

from typing import Final

#: The client counts of the rows, and the configurations of the columns, as in every table of the note.
CLIENTS: Final = tuple(range(1, 11))
COLUMNS: Final = ("single_fresh", "single_kept", "two_fresh", "two_kept")

NoteTable = tuple[tuple[int, int, int, int], ...]

TABLES: Final[dict[str, NoteTable]] = {
    "get": (
        (672, 8520, 540, 6660),
        (870, 8400, 840, 11220),
        (900, 8160, 900, 12720),
        (888, 8700, 960, 13140),
        (840, 8100, 1200, 13860),
        (864, 8040, 1080, 12300),
        (882, 7920, 1260, 13920),
        (864, 7500, 960, 12540),
        (864, 8100, 1080, 12300),
        (900, 7860, 1080, 12120),
    ),
    "wrap": (
        (594, 5640, 510, 5100),
        (756, 5760, 732, 6000),
        (774, 6120, 828, 9000),
        (648, 5340, 864, 7320),
        (750, 5700, 984, 9360),
        (756, 5580, 966, 9780),
        (756, 5460, 917, 9000),
        (720, 5280, 864, 8820),
        (756, 5400, 942, 9060),
        (720, 5400, 960, 8820),
    ),
    "create": (
        (234, 1320, 366, 1146),
        (450, 1320, 492, 1338),
        (468, 1260, 624, 2070),
        (480, 1200, 684, 2160),
        (420, 1200, 678, 2160),
        (432, 1080, 708, 2280),
        (462, 1260, 672, 1860),
        (432, 960, 648, 1920),
        (432, 1080, 648, 1860),
        (420, 1200, 624, 2040),
    ),
    "create-rsa": (
        (186, 180, 156, 246),
        (204, 180, 210, 252),
        (192, 198, 246, 474),
        (192, 198, 264, 438),
        (210, 216, 246, 462),
        (186, 252, 276, 468),
        (210, 252, 276, 462),
        (192, 246, 252, 420),
        (162, 216, 270, 432),
        (180, 246, 264, 432),
    ),
    "create-ecc": (
        (360, 576, 258, 588),
        (408, 624, 336, 948),
        (414, 564, 426, 1002),
        (408, 552, 456, 1038),
        (390, 540, 450, 1026),
        (396, 468, 438, 1044),
        (378, 462, 420, 1002),
        (384, 480, 390, 888),
        (378, 486, 432, 900),
        (360, 480, 420, 1020),
    ),
}


def per_minute(operation: str, case: str, clients: int) -> int:
    """Return a number of the note. Raises KeyError or ValueError for a number that the note does not have."""
    return TABLES[operation][CLIENTS.index(clients)][COLUMNS.index(case)]


def saturated(operation: str, case: str) -> float:
    """Return the mean over two to ten clients: a single client waits for itself, several wait for the server."""
    column = [row[COLUMNS.index(case)] for row in TABLES[operation][1:]]
    return sum(column) / len(column)
