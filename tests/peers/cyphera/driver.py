"""Drive cyphera-kmip's client: HOST PORT CA CERTIFICATE KEY. Print a line for each result."""

import sys
import time
from collections.abc import Callable
from typing import Any

from cyphera_kmip import KmipClient

HOST, PORT, CA, CERTIFICATE, KEY = sys.argv[1:]
AES, RSA = 3, 4
SYMMETRIC_KEY = 2
names: dict[str, str] = {}


def shown(value: Any, key: str = "") -> str:
    """Return a result without anything that the server made up."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(each, name)}" for name, each in sorted(value.items()) if each is not None)
    if isinstance(value, list | tuple):
        return f"[{', '.join(sorted(shown(each, key) for each in value))}]"
    if isinstance(value, str) and "id" in key:
        return names.setdefault(value, f"#{len(names) + 1}")
    return str(value)


def call(topic: str, function: Callable[[], Any], key: str = "") -> Any:
    """Call a function; print and return its result, or print its error and return None."""
    try:
        result = function()
    except Exception as error:  # noqa: BLE001 - every error of the peer is a result
        print(f"{topic}: error: {type(error).__name__}: {error}".replace("\n", " "))
        return None
    print(f"{topic}: {shown(result, key)}")
    return result


def main() -> None:
    """Call each operation."""
    files = {"client_cert": CERTIFICATE, "client_key": KEY, "ca_cert": CA}
    client = KmipClient(host=HOST, port=int(PORT), **files)
    name = f"cyphera-{time.time_ns()}"
    call("discover versions", client.discover_versions)
    call("query", client.query)
    created = call("create", lambda: client.create(name, "AES", 256))
    if created is None:
        return
    uid = created["unique_identifier"]
    call("locate", lambda: client.locate(name), "id")
    call("get", lambda: client.get(uid))
    call("fetch key", lambda: client.fetch_key(name))
    call("check", lambda: client.check(uid))
    call("attributes", lambda: client.get_attributes(uid))
    call("attribute list", lambda: client.get_attribute_list(uid))
    call("add attribute", lambda: client.add_attribute(uid, "x-purpose", "a test"))
    call("modify attribute", lambda: client.modify_attribute(uid, "x-purpose", "another test"))
    call("delete attribute", lambda: client.delete_attribute(uid, "x-purpose"))
    call("obtain lease", lambda: client.obtain_lease(uid))
    call("activate", lambda: client.activate(uid))
    sealed = call("encrypt", lambda: client.encrypt(uid, b"plain text"))
    if sealed is not None:
        call("decrypt", lambda: client.decrypt(uid, sealed["data"], sealed.get("nonce")))
    call("MAC", lambda: client.mac(uid, b"data"))
    call("archive", lambda: client.archive(uid))
    call("recover", lambda: client.recover(uid))
    call("poll", client.poll)
    call("derive key", lambda: client.derive_key(uid, b"data", f"{name}-derived", 128))
    call("re-key", lambda: client.re_key(uid))
    value = bytes(range(16))
    kept = call("register", lambda: client.register(SYMMETRIC_KEY, value, f"{name}-registered", AES, 128))
    if kept is not None:
        call("get registered", lambda: client.get(kept["unique_identifier"])["key_material"] == value)
    second = call("create second", lambda: client.create(f"{name}-second", "AES", 128))
    if second is not None:
        call("get second", lambda: client.get(second["unique_identifier"]))
    pair = call("create key pair", lambda: client.create_key_pair(f"{name}-pair", RSA, 2048))
    if pair is not None:
        private = pair.get("private_key_unique_identifier") or next(iter(pair.values()))
        call("sign", lambda: client.sign(private, b"data"))
        call("verify", lambda: client.signature_verify(private, b"data", bytes(256)))
    call("revoke", lambda: client.revoke(uid, 1))
    call("destroy", lambda: client.destroy(uid))
    call("get after destroy", lambda: client.get(uid))
    client.close()


main()
