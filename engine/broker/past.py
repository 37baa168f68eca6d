"""What has ended and is still told of: the last so many things of each tenant."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from .leases import Sampler
from .sessions import Session

T = TypeVar("T")


class Past(Generic[T]):
    """Things by tenant and id. A tenant's oldest ones are forgotten first, and no other tenant's."""

    def __init__(self, most: int) -> None:
        self._most = most  # of each tenant
        self._by_tenant: dict[str, OrderedDict[str, T]] = {}

    def add(self, tenant: str, name: str, thing: T) -> None:
        """Remember a thing that has ended."""
        known = self._by_tenant.setdefault(tenant, OrderedDict())
        known[name] = thing
        known.move_to_end(name)
        if len(known) > self._most:
            known.popitem(last=False)

    def of(self, tenant: str) -> Mapping[str, T]:
        """What is remembered of a tenant, by id."""
        return self._by_tenant.get(tenant, MappingProxyType({}))

    def owners(self, name: str) -> list[str]:
        """The tenants of whom a thing of this id is remembered."""
        return [tenant for tenant, known in self._by_tenant.items() if name in known]


@dataclass(frozen=True, slots=True, kw_only=True)
class PastSession:
    """What is told of a session."""

    opened: float  # seconds since the epoch
    is_ended: bool = True
    ending: str = ""  # why, as the client said
    display_name: str = ""
    tags: tuple[str, ...] = ()
    user_metadata: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, session: Session, wall_offset: float) -> "PastSession":
        """What is to be told of a session, open or just ended."""
        return cls(
            opened=session.opened + wall_offset,
            is_ended=session.is_ended,
            ending=session.ending,
            display_name=session.display_name,
            tags=session.tags,
            user_metadata=dict(session.user_metadata),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PastSampler:
    """What is told of a sampler."""

    sampler_id: str
    base_model: str
    model_path: str
    run_id: str
    state: str

    @classmethod
    def of(cls, sampler: Sampler) -> "PastSampler":
        """What is to be told of a sampler, open or just closed."""
        return cls(
            sampler_id=sampler.sampler_id,
            base_model=sampler.base_model,
            model_path=sampler.model_path,
            run_id=sampler.run_id,
            state=sampler.phase.value,
        )
