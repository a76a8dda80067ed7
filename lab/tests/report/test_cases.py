"""The cases, and kinds of replication."""

import pytest
from kmip_lab.report.cases import roles_of


@pytest.mark.parametrize(
    ("variant", "partners"),
    [
        ("", {"atlanta-001": ["atlanta-002"], "london-001": ["london-002"]}),
        ("collocated", {"atlanta-001": ["atlanta-002"], "london-001": ["london-002"]}),
        ("remote", {"atlanta-001": ["london-002"], "london-001": ["atlanta-002"]}),
        ("asynchronous", {"atlanta-001": [], "london-001": []}),
    ],
)
def test_synchronous_partners_of_each_kind_of_replication(variant: str, partners: dict[str, list[str]]) -> None:
    roles = roles_of(variant, 2.0)
    for master, expected in partners.items():
        links = roles[master].links
        assert [other for other, link in links.items() if link.synchronous] == expected
        assert links["atlanta-002" if master.startswith("london") else "london-002"].delay == (0.045 if variant else 0)
