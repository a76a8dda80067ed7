"""Kinds of credentials that the gateway shows the key managers, and the settings that belong to each kind."""

from typing import Any, Final, Literal

CredentialKind = Literal["fixed", "minted", "password"]
MintedKey = Literal["ec-p256", "ec-p384", "rsa-2048", "rsa-3072"]
#: Treatment of a request that carries a credential of the client, if the identity has a password.
ClientCredential = Literal["refuse", "replace", "pass"]

_CERTIFICATE: Final = frozenset({"fixed", "password"})
_MINTED: Final = frozenset({"minted"})
_PASSWORD: Final = frozenset({"password"})

#: The kinds of credentials that each setting belongs to.
BELONGS_TO: Final = {
    "certificate": _CERTIFICATE,
    "passphrase_file": _CERTIFICATE,
    "private_key": _CERTIFICATE,
    "client_issuer": _MINTED,
    "issuing_ca": _MINTED,
    "issuing_ca_passphrase_file": _MINTED,
    "issuing_ca_key": _MINTED,
    "minted_key": _MINTED,
    "minted_lifetime": _MINTED,
    "username": _PASSWORD,
    "device": _PASSWORD,
    "password_file": _PASSWORD,
    "client_credential": _PASSWORD,
}
#: The settings that their kinds need, with an example of each.
_NEEDED: Final = {
    "certificate": '"certs/own.pem"',
    "private_key": '"certs/own.key"',
    "client_issuer": '"certs/clients-ca.pem"',
    "issuing_ca": '"certs/issuing-ca.pem"',
    "issuing_ca_key": '"certs/issuing-ca.key"',
}


def check_belongs(setting: str, kind: str, *, is_given: bool) -> None:
    """Raise ValueError if a setting is given that the kind of credential has no use for, or if a needed one is not."""
    kinds = BELONGS_TO[setting]
    if kind in kinds:
        if not is_given and setting in _NEEDED:
            because = "" if kind == "fixed" else f', and credential is "{kind}"'
            raise ValueError(f"missing{because}; add a line such as {setting} = {_NEEDED[setting]}")
    elif is_given:
        named = " or ".join(f'"{each}"' for each in sorted(kinds))
        raise ValueError(
            f'has no effect while credential is "{kind}"; leave this line out, or set credential = {named}'
        )


def check_names_someone(kind: str, username: str, device: Any) -> None:
    """Raise ValueError unless a password has either a user name or a device that it belongs to."""
    if kind != "password":
        return
    if username and device:
        raise ValueError("is given beside username; give one of them: a request carries one credential")
    if not username and not device:
        raise ValueError(
            'missing, as is username, and credential is "password"; give the name that the key managers know, such as'
            ' username = "app-1", or a device'
        )
