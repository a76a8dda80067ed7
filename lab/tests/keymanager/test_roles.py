"""The file of roles: reading and writing it, and promoting a standby."""

from pathlib import Path

import pytest
from kmip_lab.keymanager import Link, Member, Role, promote, read_roles, two_plus_two, write_roles
from kmip_lab.keymanager.roles import roles_file, roles_file_state


def test_written_roles_are_read(tmp_path: Path) -> None:
    roles = two_plus_two(0.001, 0.04, serves_reads=True)
    write_roles(tmp_path, roles)
    assert read_roles(tmp_path, "london-002") == roles
    with pytest.raises(ValueError, match="there is no key manager paris-001 in this cluster"):
        read_roles(tmp_path, "paris-001")


def test_two_plus_two_replicates_synchronously_within_each_site() -> None:
    roles = two_plus_two(0.001, 0.04)
    assert {name for name, member in roles.items() if member.role is Role.MASTER} == {"atlanta-001", "london-001"}
    assert roles["atlanta-002"].links == {
        "atlanta-001": Link(0.001, synchronous=True),
        "london-001": Link(0.04),
        "london-002": Link(0.04),
    }


def test_promote_swaps_two_roles_in_one_step(tmp_path: Path) -> None:
    write_roles(tmp_path, two_plus_two())
    before = roles_file_state(tmp_path)
    promote(tmp_path, "atlanta-002", instead_of="atlanta-001")
    roles = read_roles(tmp_path)
    assert (roles["atlanta-001"].role, roles["atlanta-002"].role) == (Role.STANDBY, Role.MASTER)
    assert roles_file_state(tmp_path) != before
    with pytest.raises(KeyError):
        promote(tmp_path, "paris-001")


def test_a_missing_file_has_no_state(tmp_path: Path) -> None:
    assert roles_file_state(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ('{"a": {"role": "clone"}}', "a.role: "),
        ('{"a": {"links": {"b": {"delay": -1}}}, "b": {}}', "a.links.b.delay: "),
        ('{"a": {"links": {"a": {}}}}', "a can't have a link to a"),
    ],
)
def test_an_invalid_file_is_an_error_of_one_line(tmp_path: Path, text: str, message: str) -> None:
    roles_file(tmp_path).write_text(text)
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        read_roles(tmp_path)
    assert message in str(error.value)


def test_a_directory_too_deep_for_unix_sockets_is_an_error(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    write_roles(deep, {"a": Member()})
    with pytest.raises(ValueError, match="107 bytes"):
        read_roles(deep, "a")


def test_a_shell_can_change_a_role_with_sed(tmp_path: Path) -> None:
    write_roles(tmp_path, two_plus_two(0.001, 0.04))
    text = roles_file(tmp_path).read_text()
    assert '"atlanta-002": {"role": "standby"' in text
    changed = text.replace('"atlanta-002": {"role": "standby"', '"atlanta-002": {"role": "master"')
    roles_file(tmp_path).write_text(changed)
    assert read_roles(tmp_path)["atlanta-002"].role is Role.MASTER
