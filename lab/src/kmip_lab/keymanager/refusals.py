"""How an operation fails: a Result Reason in the words of KMIP 2.x, and what 1.x calls it."""

from typing import Final

from gateway.kmip.messages import Version
from gateway.kmip.spec import ResultReason


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of this program
    """The key manager says no.

    ``reason`` is the most precise one of 2.1; ``payload`` holds what is answered with some failures all the same.
    """

    def __init__(self, reason: ResultReason, message: str, *, payload: bytes | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.payload = payload

    def reason_in(self, version: Version) -> ResultReason:
        """The Result Reason to answer with in this protocol version."""
        return self.reason if version >= (2, 0) else _IN_1_X.get(self.reason, self.reason)


#: Result Reasons that came with 2.0 (2.1 section 11.48), and which one of 1.4 section 9.1.3.2.29 stands for each.
_IN_1_X: Final[dict[ResultReason, ResultReason]] = {
    ResultReason.ATTRIBUTE_INSTANCE_NOT_FOUND: ResultReason.ITEM_NOT_FOUND,
    ResultReason.ATTRIBUTE_NOT_FOUND: ResultReason.ITEM_NOT_FOUND,
    ResultReason.ATTRIBUTE_SINGLE_VALUED: ResultReason.INVALID_FIELD,
    ResultReason.INCOMPATIBLE_CRYPTOGRAPHIC_USAGE_MASK: ResultReason.PERMISSION_DENIED,
    ResultReason.INTERNAL_SERVER_ERROR: ResultReason.GENERAL_FAILURE,
    ResultReason.INVALID_ASYNCHRONOUS_CORRELATION_VALUE: ResultReason.ITEM_NOT_FOUND,
    ResultReason.INVALID_ATTRIBUTE_VALUE: ResultReason.INVALID_FIELD,
    ResultReason.INVALID_CORRELATION_VALUE: ResultReason.INVALID_FIELD,
    ResultReason.INVALID_DATA_TYPE: ResultReason.INVALID_FIELD,
    ResultReason.INVALID_OBJECT_TYPE: ResultReason.INVALID_FIELD,
    ResultReason.INVALID_TICKET: ResultReason.AUTHENTICATION_NOT_SUCCESSFUL,
    ResultReason.KEY_WRAP_TYPE_NOT_SUPPORTED: ResultReason.FEATURE_NOT_SUPPORTED,
    ResultReason.MISSING_INITIALIZATION_VECTOR: ResultReason.INVALID_FIELD,
    ResultReason.MULTI_VALUED_ATTRIBUTE: ResultReason.INVALID_FIELD,
    ResultReason.OBJECT_DESTROYED: ResultReason.ITEM_NOT_FOUND,
    ResultReason.OBJECT_NOT_FOUND: ResultReason.ITEM_NOT_FOUND,
    ResultReason.READ_ONLY_ATTRIBUTE: ResultReason.PERMISSION_DENIED,
    ResultReason.UNSUPPORTED_ATTRIBUTE: ResultReason.INVALID_FIELD,
    ResultReason.UNSUPPORTED_CRYPTOGRAPHIC_PARAMETERS: ResultReason.INVALID_FIELD,
    ResultReason.WRAPPING_OBJECT_DESTROYED: ResultReason.ITEM_NOT_FOUND,
    ResultReason.WRAPPING_OBJECT_NOT_FOUND: ResultReason.ITEM_NOT_FOUND,
    ResultReason.WRONG_KEY_LIFECYCLE_STATE: ResultReason.PERMISSION_DENIED,
}
