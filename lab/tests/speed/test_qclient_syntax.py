"""The form of a qClient configuration file."""

import pytest
from kmip_lab.speed.qclient_syntax import QclientSyntaxError, parse

from lab.tests.kit.qclient_file import THE_NOTES_OWN


def test_the_notes_own_text_is_read() -> None:
    sections = parse(THE_NOTES_OWN)
    values = {name: setting.values for section in sections.values() for name, setting in section.settings.items()}
    assert list(sections) == ["Modules", "Presentation", "Session"]
    assert values == {
        "Search_Path": (r"E:\usr\local\lib", r"C:\Windows\System32"),
        "Protocol": ("SSL",),
        "Version": ("1.3", "1.2", "1.1", "1.0"),
        "Format": ("TTLV",),
        "Host": ("kmip.mydomain.com",),
        "Port": ("5696",),
        "Certificate": ("PEM", "E:/usr/local/etc/certs/my-cert.pem"),
        "CA_Cert": ("PEM", "E:/usr/local/etc/certs/ca-cert.pem"),
        "Public": ("PEM", "E:/usr/local/etc/certs/my-cert.pem"),
        "Private": ("PEM", "E:/usr/local/etc/certs/my-key.pem", "password"),
        "Authenticate": (),
    }


def test_escaped_quotes_belong_to_the_value() -> None:
    sections = parse(r"""Session={Private=PEM:'it\'s':"a\\b"}""")
    assert sections["Session"].settings["Private"].values == ("PEM", "it's", r"a\b")


def test_the_line_of_a_mistake_is_in_its_message() -> None:
    with pytest.raises(QclientSyntaxError, match=r"^2: Session stands twice"):
        parse("Session={},\nSession={}")
