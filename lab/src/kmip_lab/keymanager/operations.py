"""Which operations there are, and what each needs to be executed."""

from enum import Enum
from typing import Final, NamedTuple

from gateway.kmip.messages import Version
from gateway.kmip.spec import Operation
from kmip_lab.keymanager import asking, changing, ciphering, greeting, lifecycle, making, reading, tickets
from kmip_lab.keymanager.call import Call, Done, Handler


class Duty(NamedTuple):
    """One operation.

    ``writes``: it is executed within a transaction. ``charged``: it keeps the HSM busy, and may be deferred. ``since``:
    the first version that has it. ``on_standby``: a key manager executes it that is not master, too.
    """

    handler: Handler
    writes: bool = False
    charged: bool = True
    since: Version = (1, 0)
    on_standby: bool = False


def _query(call: Call) -> Done:
    return greeting.query(call, (operation for operation, duty in DUTIES.items() if duty.since <= call.version))


DUTIES: Final[dict[int, Duty]] = {
    Operation.CREATE: Duty(making.create, writes=True),
    Operation.CREATE_KEY_PAIR: Duty(making.create_key_pair, writes=True),
    Operation.REGISTER: Duty(making.register, writes=True),
    Operation.LOCATE: Duty(reading.locate),
    Operation.CHECK: Duty(reading.check),
    Operation.GET: Duty(reading.get),
    Operation.GET_ATTRIBUTES: Duty(reading.get_attributes),
    Operation.GET_ATTRIBUTE_LIST: Duty(reading.get_attribute_list),
    Operation.ADD_ATTRIBUTE: Duty(changing.add_attribute, writes=True),
    Operation.MODIFY_ATTRIBUTE: Duty(changing.modify_attribute, writes=True),
    Operation.DELETE_ATTRIBUTE: Duty(changing.delete_attribute, writes=True),
    Operation.ACTIVATE: Duty(lifecycle.activate, writes=True),
    Operation.REVOKE: Duty(lifecycle.revoke, writes=True),
    Operation.DESTROY: Duty(lifecycle.destroy, writes=True),
    Operation.QUERY: Duty(_query, charged=False, on_standby=True),
    Operation.DISCOVER_VERSIONS: Duty(greeting.discover_versions, charged=False, since=(1, 1), on_standby=True),
    Operation.ENCRYPT: Duty(ciphering.encrypt, since=(1, 2)),
    Operation.DECRYPT: Duty(ciphering.decrypt, since=(1, 2)),
    Operation.POLL: Duty(asking.poll, charged=False),
    Operation.CANCEL: Duty(asking.cancel, charged=False),
    Operation.SET_ATTRIBUTE: Duty(changing.set_attribute, writes=True, since=(2, 0)),
    Operation.LOGIN: Duty(tickets.login, charged=False, since=(2, 0)),
    Operation.LOGOUT: Duty(tickets.logout, charged=False, since=(2, 0)),
}


class Standing(Enum):
    """What a key manager serves: all; nothing but Query and Discover Versions; or besides them all that only reads."""

    MASTER = "master"
    STANDBY = "standby"
    READING_STANDBY = "reading standby"

    def permits(self, duty: Duty) -> bool:
        """Whether an operation is executed by a key manager that stands so."""
        if self is Standing.MASTER or duty.on_standby:
            return True
        return self is Standing.READING_STANDBY and not duty.writes
