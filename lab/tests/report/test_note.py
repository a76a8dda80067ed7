"""The note's numbers, checked for mistakes in copying them."""

import pytest
from kmip_lab.report import note

#: The columns' sums, added up from the note by themselves.
SUMS = {
    "get": (8544, 81300, 9900, 120780),
    "wrap": (7230, 55680, 8567, 82260),
    "create": (4230, 11880, 6144, 18834),
    "create-rsa": (1914, 2184, 2460, 4086),
    "create-ecc": (3876, 5232, 4026, 9456),
}


def test_there_are_five_tables_of_ten_rows_and_four_columns() -> None:
    assert list(note.TABLES) == list(SUMS)
    assert all(len(table) == 10 for table in note.TABLES.values())
    assert all(len(row) == 4 for table in note.TABLES.values() for row in table)


@pytest.mark.parametrize("operation", SUMS)
def test_every_column_has_its_sum(operation: str) -> None:
    assert tuple(map(sum, zip(*note.TABLES[operation], strict=True))) == SUMS[operation]


def test_all_numbers_but_one_are_multiples_of_six() -> None:
    """The exception, 917, stands in the note, too."""
    odd = [number for table in note.TABLES.values() for row in table for number in row if number % 6]
    assert odd == [917]
    assert note.per_minute("wrap", "two_fresh", 7) == 917


def test_the_rates_of_five_clients_are_those_in_the_notes_text() -> None:
    """From 840 to 8,100 for a single server, and from 1,200 to 13,860 for two that are load-balanced."""
    assert [note.per_minute("get", case, 5) for case in note.COLUMNS] == [840, 8100, 1200, 13860]


def test_the_numbers_support_the_notes_conclusions() -> None:
    """Caching helps always from two clients on, and two servers help with it, up to a factor of about two."""
    for operation in note.TABLES:
        fresh, kept, two_fresh, two_kept = (note.saturated(operation, case) for case in note.COLUMNS)
        assert fresh < kept < two_kept < 2.2 * kept
        assert fresh < two_fresh < two_kept


def test_the_mean_leaves_out_the_single_client() -> None:
    assert note.saturated("get", "single_fresh") == (8544 - 672) / 9


def test_numbers_that_the_note_does_not_have() -> None:
    with pytest.raises(ValueError, match="not in"):
        note.per_minute("get", "single_fresh", 11)
    with pytest.raises(ValueError, match="not in"):
        note.per_minute("get", "gateway_two", 1)
