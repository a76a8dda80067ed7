"""Groups of operations, and the names of operations and object types as the specification writes them.

Policies are written with these names: an operation begins with a capital letter ("Create Key Pair"), a group does not
("create").
"""

from enum import Enum
from typing import Final

from gateway.kmip.spec import ObjectType, Operation, Tag


class Group(Enum):
    """A group of operations that a policy allows or refuses together; the value is its name.

    BY_NAME and NEVER have no name in policies: operations BY_NAME are allowed by their own names only, and operations
    in NEVER are refused for every client.
    """

    READ = "read"  # look at objects and at the server, retrieve keys
    USE = "use"  # have the server compute with keys
    CREATE = "create"  # make objects, or bring them in
    MANAGE = "manage"  # change objects, their states and their attributes
    DESTROY = "destroy"
    BY_NAME = ""
    NEVER = "-"


#: The group of each operation (1.4 section 4, 2.1 section 6): every operation is in exactly one.
GROUPS: Final[dict[int, Group]] = {
    Operation.CREATE: Group.CREATE,
    Operation.CREATE_KEY_PAIR: Group.CREATE,
    Operation.REGISTER: Group.CREATE,
    Operation.REKEY: Group.CREATE,
    Operation.DERIVE_KEY: Group.CREATE,
    Operation.CERTIFY: Group.CREATE,
    Operation.RECERTIFY: Group.CREATE,
    Operation.LOCATE: Group.READ,
    Operation.CHECK: Group.READ,
    Operation.GET: Group.READ,
    Operation.GET_ATTRIBUTES: Group.READ,
    Operation.GET_ATTRIBUTE_LIST: Group.READ,
    Operation.ADD_ATTRIBUTE: Group.MANAGE,
    Operation.MODIFY_ATTRIBUTE: Group.MANAGE,
    Operation.DELETE_ATTRIBUTE: Group.MANAGE,
    Operation.OBTAIN_LEASE: Group.READ,
    Operation.GET_USAGE_ALLOCATION: Group.USE,
    Operation.ACTIVATE: Group.MANAGE,
    Operation.REVOKE: Group.MANAGE,
    Operation.DESTROY: Group.DESTROY,
    Operation.ARCHIVE: Group.MANAGE,
    Operation.RECOVER: Group.MANAGE,
    Operation.VALIDATE: Group.READ,
    Operation.QUERY: Group.READ,
    Operation.CANCEL: Group.MANAGE,
    Operation.POLL: Group.READ,
    Operation.NOTIFY: Group.NEVER,  # sent by servers
    Operation.PUT: Group.NEVER,  # sent by servers
    Operation.REKEY_KEY_PAIR: Group.CREATE,
    Operation.DISCOVER_VERSIONS: Group.READ,
    Operation.ENCRYPT: Group.USE,
    Operation.DECRYPT: Group.USE,
    Operation.SIGN: Group.USE,
    Operation.SIGNATURE_VERIFY: Group.USE,
    Operation.MAC: Group.USE,
    Operation.MAC_VERIFY: Group.USE,
    Operation.RNG_RETRIEVE: Group.USE,
    Operation.RNG_SEED: Group.USE,
    Operation.HASH: Group.USE,
    Operation.CREATE_SPLIT_KEY: Group.CREATE,
    Operation.JOIN_SPLIT_KEY: Group.CREATE,
    Operation.IMPORT: Group.CREATE,
    Operation.EXPORT: Group.READ,
    Operation.LOG: Group.USE,
    Operation.LOGIN: Group.READ,
    Operation.LOGOUT: Group.READ,
    Operation.DELEGATED_LOGIN: Group.MANAGE,  # gives a client's rights to another client
    Operation.ADJUST_ATTRIBUTE: Group.MANAGE,
    Operation.SET_ATTRIBUTE: Group.MANAGE,
    Operation.SET_ENDPOINT_ROLE: Group.NEVER,  # swaps the roles of client and server, on a session of many clients
    Operation.PKCS_11: Group.BY_NAME,  # carries functions of all groups
    Operation.INTEROP: Group.BY_NAME,  # "SHALL NOT be available in a production server", 2.1 section 6.1.26
    Operation.REPROVISION: Group.NEVER,  # replaces the gateway's own credential
    Operation.SET_DEFAULTS: Group.MANAGE,
    Operation.SET_CONSTRAINTS: Group.MANAGE,
    Operation.GET_CONSTRAINTS: Group.READ,
    Operation.QUERY_ASYNCHRONOUS_REQUESTS: Group.READ,
    Operation.PROCESS: Group.MANAGE,
    Operation.PING: Group.READ,
    Operation.CREATE_GROUP: Group.CREATE,
    Operation.OBLITERATE: Group.DESTROY,
    Operation.CREATE_USER: Group.MANAGE,
    Operation.CREATE_CREDENTIAL: Group.MANAGE,
    Operation.DEACTIVATE: Group.MANAGE,
}

#: Object types that an operation makes without an Object Type in its request (1.4 sections 4.2, 4.4, 4.5, 4.7, 4.8).
MADE_TYPES: Final[dict[int, frozenset[int]]] = {
    Operation.CREATE_KEY_PAIR: frozenset({ObjectType.PUBLIC_KEY, ObjectType.PRIVATE_KEY}),
    Operation.REKEY: frozenset({ObjectType.SYMMETRIC_KEY}),
    Operation.REKEY_KEY_PAIR: frozenset({ObjectType.PUBLIC_KEY, ObjectType.PRIVATE_KEY}),
    Operation.CERTIFY: frozenset({ObjectType.CERTIFICATE}),
    Operation.RECERTIFY: frozenset({ObjectType.CERTIFICATE}),
}

#: Operations of 3.0 that make objects of types without a name in ``ObjectType``.
UNNAMED_TYPES: Final = frozenset({Operation.CREATE_GROUP, Operation.CREATE_USER, Operation.CREATE_CREDENTIAL})

#: Operations with an Object Type at the first level of their requests (1.4 sections 4.1, 4.3, 4.6, 4.38 to 4.40).
TYPED: Final = frozenset(
    {
        Operation.CREATE,
        Operation.REGISTER,
        Operation.DERIVE_KEY,
        Operation.CREATE_SPLIT_KEY,
        Operation.JOIN_SPLIT_KEY,
        Operation.IMPORT,
    }
)

#: The object types of the objects themselves, by the tag of the object in a Register or an Import (1.4 section 2.2).
TYPES_BY_TAG: Final[dict[int, ObjectType]] = {
    Tag.CERTIFICATE: ObjectType.CERTIFICATE,
    Tag.SYMMETRIC_KEY: ObjectType.SYMMETRIC_KEY,
    Tag.PUBLIC_KEY: ObjectType.PUBLIC_KEY,
    Tag.PRIVATE_KEY: ObjectType.PRIVATE_KEY,
    Tag.SPLIT_KEY: ObjectType.SPLIT_KEY,
    Tag.TEMPLATE: ObjectType.TEMPLATE,
    Tag.SECRET_DATA: ObjectType.SECRET_DATA,
    Tag.OPAQUE_OBJECT: ObjectType.OPAQUE_OBJECT,
    Tag.PGP_KEY: ObjectType.PGP_KEY,
    Tag.CERTIFICATE_REQUEST: ObjectType.CERTIFICATE_REQUEST,
}

_SPELLED: Final = {
    "REKEY": "Re-key",
    "RECERTIFY": "Re-certify",
    "REKEY_KEY_PAIR": "Re-key Key Pair",
    "PKCS_11": "PKCS#11",
    "REPROVISION": "Re-Provision",
}
_CAPITALS: Final = frozenset({"MAC", "PGP", "RNG"})


def _spelled(member: Operation | ObjectType) -> str:
    words = (word if word in _CAPITALS else word.title() for word in member.name.split("_"))
    return _SPELLED.get(member.name) or " ".join(words)


#: The names of operations and of object types, by their numbers.
OPERATION_NAMES: Final = {int(operation): _spelled(operation) for operation in Operation}
OBJECT_TYPE_NAMES: Final = {int(object_type): _spelled(object_type) for object_type in ObjectType}


def spelled_operation(number: int) -> str:
    """Return the name of an operation, such as "Re-key Key Pair"; its number in hexadecimal if it is unknown."""
    return OPERATION_NAMES.get(number) or f"operation 0x{number:08X}"


def spelled_object_type(number: int) -> str:
    """Return the name of an object type, such as "Secret Data"; its number in hexadecimal if it is unknown."""
    return OBJECT_TYPE_NAMES.get(number) or f"object type 0x{number:08X}"
