"""AES over data that may come in parts: CBC, CTR and GCM."""

from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import (
    AEADCipherContext,
    AEADDecryptionContext,
    AEADEncryptionContext,
    Cipher,
    CipherContext,
)
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR, GCM
from cryptography.hazmat.primitives.padding import PKCS7, PaddingContext

from gateway.kmip.spec import ResultReason
from kmip_lab.keymanager.numbers import BlockCipherMode, PaddingMethod
from kmip_lab.keymanager.refusals import Refusal

_MODES: Final[dict[int, type[CBC] | type[CTR] | type[GCM]]] = {
    BlockCipherMode.CBC: CBC,
    BlockCipherMode.CTR: CTR,
    BlockCipherMode.GCM: GCM,
}
_TAG_SIZE: Final = 16  # bytes


class Way(NamedTuple):
    """How data is encrypted: numbers of Block Cipher Mode and Padding Method; the latter is for CBC only."""

    mode: int = BlockCipherMode.CBC
    padding: int = PaddingMethod.PKCS5

    def iv_size(self) -> int:
        """How many bytes an IV has that is made here."""
        return 12 if self.mode == BlockCipherMode.GCM else 16


class Stream:
    """One encryption or decryption under way. Raises Refusal, also from ``begin``."""

    def __init__(self, context: CipherContext, padding: PaddingContext | None, *, encrypts: bool) -> None:
        self.encrypts = encrypts
        self._context = context
        self._padding = padding

    def __repr__(self) -> str:
        return f"<Stream that {'en' if self.encrypts else 'de'}crypts>"

    @classmethod
    def begin(cls, way: Way, key: bytes, iv: bytes, additional: bytes, *, encrypts: bool) -> "Stream":
        """Begin. ``additional`` is authenticated with the data, and for GCM only."""
        mode = _MODES.get(way.mode)
        if mode is None or way.padding not in (PaddingMethod.NONE, PaddingMethod.PKCS5):
            raise Refusal(
                ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS, "only CBC, CTR and GCM are here, and PKCS5 padding"
            )
        try:
            cipher = Cipher(AES(key), mode(iv))
            context = cipher.encryptor() if encrypts else cipher.decryptor()
        except ValueError as error:
            raise Refusal(ResultReason.CRYPTOGRAPHIC_FAILURE, str(error)) from None
        padding: PaddingContext | None = None
        if mode is CBC and way.padding == PaddingMethod.PKCS5:
            padding = PKCS7(128).padder() if encrypts else PKCS7(128).unpadder()
        if isinstance(context, AEADCipherContext):
            context.authenticate_additional_data(additional)
        return cls(context, padding, encrypts=encrypts)

    def update(self, data: bytes) -> bytes:
        """A part of the data, and as much of the outcome as there is by now."""
        if self._padding is None:
            return self._context.update(data)
        if self.encrypts:
            return self._context.update(self._padding.update(data))
        return self._padding.update(self._context.update(data))

    def finish(self, tag: bytes | None) -> tuple[bytes, bytes | None]:
        """The rest of the outcome, and the tag that GCM makes; ``tag`` is the one that it must find again."""
        try:
            return self._finish(tag)
        except (ValueError, InvalidTag):
            words = "the data is not whole blocks, or not what was encrypted with this key"
            raise Refusal(ResultReason.CRYPTOGRAPHIC_FAILURE, words) from None

    def _finish(self, tag: bytes | None) -> tuple[bytes, bytes | None]:
        context = self._context
        if self.encrypts:
            rest = b"" if self._padding is None else context.update(self._padding.finalize())
            rest += context.finalize()
            return rest, context.tag if isinstance(context, AEADEncryptionContext) else None
        if isinstance(context, AEADDecryptionContext):
            if tag is None or len(tag) != _TAG_SIZE:
                raise Refusal(ResultReason.INVALID_FIELD, f"a tag of {_TAG_SIZE} bytes is needed")
            return context.finalize_with_tag(tag), None
        rest = context.finalize()
        return rest if self._padding is None else self._padding.update(rest) + self._padding.finalize(), None
