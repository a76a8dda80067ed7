"""Draft: settings of a file in which some are wrong."""

from gateway.config.draft import Draft

DOCUMENT = {"listeners": [{"name": "a", "max_clients": 5}, {"name": "b"}], "pool": {"min_idle": -1}}


def test_a_column_has_each_setting_or_its_default() -> None:
    draft = Draft(DOCUMENT, set())
    assert draft.column("listeners", "max_clients") == [
        (("listeners", 0, "max_clients"), 5),
        (("listeners", 1, "max_clients"), 10_000),
    ]
    assert draft.length("listeners") == 2
    assert draft.length("backends") == 0


def test_wrong_settings_and_missing_ones_without_default_are_left_out() -> None:
    draft = Draft(DOCUMENT, {("pool", "min_idle"), ("listeners", 0)})
    assert draft.setting("pool", "min_idle") is None
    assert draft.column("listeners", "name") == [(("listeners", 1, "name"), "b")]
    assert draft.column("listeners", "bind") == []
    assert draft.column("backends", "name") == []


def test_a_place_is_the_table_of_a_setting() -> None:
    assert Draft(DOCUMENT, set()).place(("listeners", 1, "name")) == 'listeners["b"]'
    assert Draft(DOCUMENT, set()).place(("pool", "min_idle")) == "pool"
