"""The status page in a headless Chromium: it shows a killed key manager, at the size of a desk and of a phone."""

import re
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from kmip_lab.certs import Authority
from kmip_lab.faults import Fault, FaultSetting
from kmip_lab.tools.requests import discover_versions

from tests.kit import processes
from tests.kit.processes import (
    Certificates,
    Gateway,
    GatewaySettings,
    Identity,
    running_gateway,
    running_key_manager_processes,
)

CHROMIUM: Final = shutil.which("chromium")
SIZES: Final = {"desk": (1400, 1000, "light"), "phone": (390, 844, "dark")}
SECONDS: Final = 1000.0  # ms

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.mark.parametrize("size", SIZES)
def test_the_page_shows_a_killed_key_manager_and_its_return(browser: Any, tmp_path: Path, size: str) -> None:
    width, height, scheme = SIZES[size]
    certificates = Certificates(tmp_path)
    health = "[health]\ninterval = 1\ntimeout = 1\nfall = 2\nrise = 1\n"
    with (
        running_key_manager_processes(certificates, ("kms-1", "kms-2")) as key_managers,
        running_gateway(certificates, GatewaySettings([each.port for each in key_managers], extra=health)) as gateway,
        gateway.client() as client,
    ):
        client.locate()
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        mistakes: list[str] = []
        page.on("console", lambda message: mistakes.append(message.text))
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.goto(f"http://127.0.0.1:{gateway.admin_port}/")
        page.get_by_text("All 2 key managers are up.").wait_for(timeout=20 * SECONDS)
        key_managers[1].kill()
        page.get_by_text("1 of 2 key managers are up; not kms-2.").wait_for(timeout=20 * SECONDS)
        row = page.locator("#backend-rows tr").nth(0)  # the key manager that is down comes first
        assert re.search("down|ejected", row.inner_text())
        assert "Connection refused" in row.inner_text()
        problems = page.locator("#problems").inner_text()
        assert "kms-2 is" in problems
        assert "see that the key manager runs" in problems
        assert "(!)" in page.title()
        row.locator("summary").press("Enter")  # by keyboard
        assert "kmip-gateway drain kms-2" in row.locator("pre").first.inner_text()
        page.wait_for_timeout(3 * SECONDS)  # over the next snapshot
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        assert row.locator("details").get_attribute("open") is not None
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        key_managers[1].launch()
        page.get_by_text("All 2 key managers are up.").wait_for(timeout=30 * SECONDS)
        assert mistakes == []
        page.close()


def test_the_page_names_an_identity_that_no_key_manager_serves(browser: Any, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    identities = [Identity(name, f'{{ subject_cn = "{name}-*" }}', credential=name) for name in ("red", "blue")]
    extra = "[health]\ninterval = 1\ntimeout = 1\n[pool]\nmin_idle = 1\n"
    with running_key_manager_processes(certificates, ("kms-1", "kms-2")) as key_managers:
        for each in key_managers:
            each.set_faults(FaultSetting(Fault.REFUSE_CREDENTIAL, names=frozenset({"blue"})))
        settings = GatewaySettings([each.port for each in key_managers], identities=identities, extra=extra)
        with running_gateway(certificates, settings) as gateway:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{gateway.admin_port}/")
            page.get_by_text("All 2 key managers are up. One identity is not served.").wait_for(timeout=20 * SECONDS)
            assert "No key manager serves the identity blue" in page.locator("#problems").inner_text()
            assert "have the key manager accept the certificate" in page.locator("#problems").inner_text()
            assert "not served" in page.locator("#identity-rows tr").nth(0).inner_text()
            page.close()


def test_the_page_says_that_the_gateway_has_ended(browser: Any, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    with running_key_manager_processes(certificates, ("kms-1",)) as key_managers:
        with running_gateway(certificates, GatewaySettings([key_managers[0].port])) as gateway:
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{gateway.admin_port}/")
            page.get_by_text("The key manager is up.").wait_for(timeout=20 * SECONDS)
            assert page.locator("#lost").is_hidden()
        page.get_by_text("Not connected to the gateway").wait_for(timeout=20 * SECONDS)
        assert "What follows is from" in page.locator("#lost").inner_text()
        assert "not connected" in page.title()
        page.close()


def test_the_page_asks_for_a_token_and_shows_the_state_with_it(browser: Any, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    token = tmp_path / "token"
    token.write_text("a-token-of-some-length-0123456789\n")
    token.chmod(0o600)
    with (
        running_key_manager_processes(certificates, ("kms-1",)) as key_managers,
        running_gateway(
            certificates, GatewaySettings([key_managers[0].port], extra=f'token_file = "{token}"\n')
        ) as gateway,
    ):
        page = browser.new_page()
        streams: list[str] = []
        page.on("request", lambda request: streams.append(request.url) if request.url.endswith("/events") else None)
        page.goto(f"http://127.0.0.1:{gateway.admin_port}/")
        page.get_by_text("a token is needed", exact=True).wait_for(timeout=20 * SECONDS)
        for wrong in ("a wrong one", "a wr\u20acng one", "another wrong one"):
            give(page, wrong)
            page.get_by_text("the token is not valid", exact=True).wait_for(timeout=20 * SECONDS)
            assert page.locator("#lost").is_hidden()
        give(page, token.read_text().strip())
        page.get_by_text("The key manager is up.").wait_for(timeout=20 * SECONDS)
        page.wait_for_timeout(3 * SECONDS)  # longer than the pause before another try
        assert len(streams) == 4  # without a token, with two wrong ones that a header can have, with the right one
        token.write_text("another-token-of-some-length-9876543210\n")
        gateway.process.send_signal(signal.SIGHUP)
        page.get_by_text("the token is not valid", exact=True).wait_for(timeout=20 * SECONDS)
        assert "give a valid one" in page.locator("#lost").inner_text()
        assert "not connected" in page.title()
        give(page, token.read_text().strip())
        page.locator("#lost").wait_for(state="hidden", timeout=20 * SECONDS)
        assert page.title() == "KMIP gateway"
        page.close()


def give(page: Any, token: str) -> None:
    page.locator("#live").evaluate("element => element.textContent = ''")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Show").click()


@pytest.mark.parametrize("workers", [0, 2])
def test_names_in_certificates_of_refused_clients_are_shown_as_text(
    browser: Any, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TLS_WORKERS", workers)
    certificates = Certificates(tmp_path)
    foreign = Authority("<h1>CA</h1>\n")
    with (
        running_key_manager_processes(certificates, ("kms-1",)) as key_managers,
        running_gateway(
            certificates, GatewaySettings([key_managers[0].port], [Identity("red", '{ subject_cn = "red" }')])
        ) as gateway,
    ):
        page = browser.new_page(viewport={"width": 390, "height": 844})
        mistakes: list[str] = []
        page.on("console", lambda message: mistakes.append(message.text))
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.on("dialog", lambda dialog: mistakes.append(dialog.message))
        page.goto(f"http://127.0.0.1:{gateway.admin_port}/")
        page.get_by_text("The key manager is up.").wait_for(timeout=20 * SECONDS)
        foreign.issue_client("<img src=x onerror=alert(1)>\u202e\x1b[31m").write(*certificates.pair("foreign"))
        known = certificates.clients_ca.issue_client("</script><script>alert(1)</script>\u2066\nlevel=error")
        known.write(*certificates.pair("known"))
        for name in ("foreign", "known"):
            ask(gateway, certificates.pair(name))
        events = page.locator("#event-rows")
        events.get_by_text("onerror=alert").wait_for(timeout=20 * SECONDS)
        events.get_by_text("script").first.wait_for(timeout=20 * SECONDS)
        said = events.inner_text()
        assert r"\u202e\x1b[31m" in said
        assert r"\u2066" in said
        assert all(each.isprintable() for line in said.splitlines() for each in line)
        assert events.locator("img, script, h1").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert mistakes == []
        page.close()


def ask(gateway: Gateway, pair: tuple[Path, Path]) -> None:
    """Send a request over a TLS connection with this certificate; the gateway may refuse both."""
    context = ssl.create_default_context(cafile=str(gateway.certificates.path("gateway_ca.pem")))
    context.load_cert_chain(*pair)
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", gateway.port), 10) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as stream,
    ):
        stream.sendall(discover_versions([(1, 2)]))
        stream.recv(1000)
