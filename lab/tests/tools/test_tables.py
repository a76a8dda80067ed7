"""Tables and the numbers in them."""

from io import StringIO

from kmip_lab.tools.statistics import Spread
from kmip_lab.tools.tables import TextTable, fixed, markdown, milliseconds, number, ranged, show
from rich.console import Console

TABLE = TextTable("Rates", ("case", "Gets/s"), [["kept", "9,000"]], ["Measured once."])


def test_a_table_in_markdown_has_its_numbers_on_the_right() -> None:
    assert markdown(TABLE.columns, TABLE.rows) == "| case | Gets/s |\n| --- | ---: |\n| kept | 9,000 |\n"
    assert TABLE.as_markdown().splitlines()[0] == "**Rates**"
    assert TABLE.as_markdown().endswith("| kept | 9,000 |\n\nMeasured once.")


def test_a_table_on_a_terminal_has_title_and_notes() -> None:
    console = Console(file=StringIO(), width=60)
    with console.capture() as printed:
        show(console, [TABLE])
    assert [word in printed.get() for word in ("Rates", "9,000", "Measured once.")] == [True] * 3


def test_numbers_are_rounded_and_none_is_a_dash() -> None:
    assert (number(1234.5), fixed(0.00123, 2, 1e3), milliseconds(0.0123)) == ("1,234", "1.23", "12.3 ms")
    assert (number(None), fixed(None, 2), milliseconds(None)) == ("-", "-", "-")


def test_a_range_stands_behind_its_median() -> None:
    assert ranged(Spread(0.0012, 0.001, 0.0015, 3), 2, 1e3) == "1.20 (1.00 to 1.50)"
    assert ranged(None, 2) == "-"
