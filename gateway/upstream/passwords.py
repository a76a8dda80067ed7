"""Passwords: the KMIP Credential that the gateway puts into the requests of an identity."""

from gateway.config import IdentityConfig
from gateway.config.credentials import ClientCredential
from gateway.config.secret_files import read_secret
from gateway.kmip.authentication import HeaderCredential, device, username_and_password
from gateway.kmip.messages import Request


class Password:
    """The credential in requests of one identity. ``repr`` shows nothing of it.

    ``client_credential`` says what happens to a request that has a credential of the client in it.
    """

    __slots__ = ("_credential", "client_credential")

    def __init__(self, credential: HeaderCredential, client_credential: ClientCredential) -> None:
        self._credential = credential
        self.client_credential = client_credential

    def __repr__(self) -> str:
        return f"<Password, a client's own: {self.client_credential}>"

    def added_to(self, request: Request) -> Request:
        """Return the request with this credential, in place of its own if it has one."""
        return self._credential.added_to(request)


def password_of(identity: IdentityConfig) -> Password | None:
    """Return the password of an identity, read from its file; None if it has none. Raises ValueError."""
    if identity.credential != "password":
        return None
    secret = None if identity.password_file is None else read_secret(identity.password_file)
    if identity.username:
        credential = username_and_password(identity.username, secret or b"")
    else:
        names = {key: getattr(identity.device, key) for key in type(identity.device).model_fields}
        credential = device(password=secret, **names)
    return Password(credential, identity.client_credential)
