"""A TLS peer that breaks the bounds on records. It calls OpenSSL directly, since pyOpenSSL can't send a KeyUpdate."""

import _ssl
import ctypes
import socket
from pathlib import Path
from typing import Final, Self

_OPENSSL: Final = ctypes.CDLL(_ssl.__file__)  # the libssl and libcrypto that it is linked with
for _name in ("TLS_client_method", "TLS_server_method", "SSL_CTX_new", "SSL_new"):
    getattr(_OPENSSL, _name).restype = ctypes.c_void_p

_PEM: Final = 1  # SSL_FILETYPE_PEM
_SET_MAX_VERSION: Final = 124  # SSL_CTRL_* of OpenSSL's ssl.h
_SET_MAX_SEND_FRAGMENT: Final = 52
TLS_1_2: Final = 0x303
_EXTENSION: Final = 0xFFAA  # a number for private use
_ADD_EXTENSION: Final = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_uint,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_size_t),
    ctypes.c_void_p,
    ctypes.c_void_p,
)


class HostilePeer:
    """An end of a TLS connection, over a connected socket. Calls block: run them in a thread."""

    def __init__(
        self,
        sock: socket.socket,
        certificate: Path,
        private_key: Path,
        *,
        is_server: bool = False,
        max_version: int = 0,
        fragment: int = 0,
    ) -> None:
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        method = _OPENSSL.TLS_server_method if is_server else _OPENSSL.TLS_client_method
        self._context = ctypes.c_void_p(_OPENSSL.SSL_CTX_new(ctypes.c_void_p(method())))
        _OPENSSL.SSL_CTX_use_certificate_chain_file(self._context, str(certificate).encode())
        _OPENSSL.SSL_CTX_use_PrivateKey_file(self._context, str(private_key).encode(), _PEM)
        self._control(_SET_MAX_VERSION, max_version)
        self._extra = ctypes.create_string_buffer(0)  # content of the extension in a hello
        self._add_extra = _ADD_EXTENSION(self._extend)
        _OPENSSL.SSL_CTX_add_client_custom_ext(self._context, _EXTENSION, self._add_extra, None, None, None, None)
        self._ssl = ctypes.c_void_p(_OPENSSL.SSL_new(self._context))
        if fragment:
            _OPENSSL.SSL_ctrl(self._ssl, _SET_MAX_SEND_FRAGMENT, ctypes.c_long(fragment), None)
        _OPENSSL.SSL_set_fd(self._ssl, sock.fileno())
        self._shake_hands = _OPENSSL.SSL_accept if is_server else _OPENSSL.SSL_connect

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        _OPENSSL.SSL_free(self._ssl)
        _OPENSSL.SSL_CTX_free(self._context)

    def _control(self, command: int, number: int) -> None:
        _OPENSSL.SSL_CTX_ctrl(self._context, command, ctypes.c_long(number), None)

    def _extend(
        self,
        _ssl: object,
        _kind: int,
        out: "ctypes._Pointer[ctypes.c_void_p]",
        length: "ctypes._Pointer[ctypes.c_size_t]",
        *_: object,
    ) -> int:
        out[0] = ctypes.cast(self._extra, ctypes.c_void_p)
        length[0] = len(self._extra)
        return int(len(self._extra) > 0)

    def shake_hands(self) -> bool:
        """Shake hands; return False if that fails."""
        return bool(self._shake_hands(self._ssl) == 1)

    def update_keys(self, times: int, *, requested: bool = False) -> int:
        """Send KeyUpdates, each in a record of its own; return the number that could be sent."""
        for sent in range(times):
            if _OPENSSL.SSL_key_update(self._ssl, int(requested)) != 1 or _OPENSSL.SSL_do_handshake(self._ssl) != 1:
                return sent
        return times

    def renegotiate(self, extra: int = 0) -> bool:
        """Begin a second handshake in TLS 1.2; return True if it succeeds.

        ``extra`` bytes make its hello longer.
        """
        self._extra = ctypes.create_string_buffer(extra)
        return _OPENSSL.SSL_renegotiate(self._ssl) == 1 and self.shake_hands()

    def leave(self) -> None:
        """Close the connection without close_notify."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def send(self, data: bytes) -> None:
        """Send application data; the result of OpenSSL is ignored."""
        _OPENSSL.SSL_write(self._ssl, data, len(data))

    def receive(self, size: int = 16384) -> bytes:
        """Return the next bytes; empty at the end."""
        buffer = ctypes.create_string_buffer(size)
        received = _OPENSSL.SSL_read(self._ssl, buffer, size)
        return buffer.raw[: max(0, received)]
