"""The progress bar."""

from kmip_lab.tools.progress import progress_bar


def test_a_sparing_bar_is_off_without_a_terminal() -> None:
    assert progress_bar(is_sparing=True).disable
    assert not progress_bar().disable
