"""What a key manager keeps: managed objects and their attributes, as frozen values.

A change makes a new value, which the store then saves whole: one way to write, so that a copy elsewhere has one thing
to follow.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self


class Attribute(NamedTuple):
    """One instance of an attribute.

    ``name`` is the one of KMIP 1.x ("Cryptographic Length", "x-own"); ``position`` is its Attribute Index, which counts
    the instances of a name from 0; ``type`` is the item type; ``value`` is encoded, without head and padding.
    """

    name: str
    position: int
    type: int
    value: bytes


@dataclass(frozen=True, slots=True)
class ManagedObject:
    """A key, a certificate, a secret.

    ``owner`` is the common name of the certificate that made it. ``state`` is None for objects without one.
    ``material`` is the whole object as it is encoded in an answer to Get, and None once destroyed. ``attributes`` do
    not hold what stands in the other fields.
    """

    uid: str
    owner: str
    object_type: int
    state: int | None
    material: bytes | None
    attributes: tuple[Attribute, ...]

    def __repr__(self) -> str:
        # Without the material: what is logged by mistake must not be a key.
        return f"<ManagedObject {self.uid} of {self.owner}: type {self.object_type}, state {self.state}>"

    def instances(self, name: str) -> list[Attribute]:
        """All instances of an attribute, by position."""
        return sorted(attribute for attribute in self.attributes if attribute.name == name)

    def instance(self, name: str, position: int = 0) -> Attribute | None:
        """One instance of an attribute, or None."""
        return next((found for found in self.instances(name) if found.position == position), None)

    def next_position(self, name: str) -> int:
        """Where a further instance goes; deleting one leaves the positions of the others as they are."""
        return max((attribute.position for attribute in self.instances(name)), default=-1) + 1

    def put(self, attributes: Iterable[Attribute]) -> Self:
        """The object with these attributes, in the place of those with the same name and position."""
        new = {(attribute.name, attribute.position): attribute for attribute in (*self.attributes, *attributes)}
        return replace(self, attributes=tuple(new.values()))

    def drop(self, attributes: Iterable[Attribute]) -> Self:
        """The object without these attributes."""
        dropped = {(attribute.name, attribute.position) for attribute in attributes}
        kept = (attribute for attribute in self.attributes if (attribute.name, attribute.position) not in dropped)
        return replace(self, attributes=tuple(kept))
