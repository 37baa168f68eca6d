"""How many bytes of requests are under way, in all and for each tenant. Pure."""

from collections import Counter

from ...client.errors import Busy
from ...client.limits import limit


class Load:
    """Bytes of bodies that are being read or worked on, and of requests without an answer.

    One tenant gets half at most, so that there is always room for the others.
    """

    def __init__(self, max_bytes: int = limit("bodies_bytes")) -> None:
        self._max_bytes = max_bytes
        self._by_tenant: Counter[str] = Counter()
        self.num_bytes = 0

    def take(self, tenant: str, num_bytes: int) -> None:
        """Count bytes that have come.

        Raises:
            Busy: there is no room for them; they are not counted.
        """
        own = self._by_tenant.get(tenant, 0)
        if own + num_bytes > self._max_bytes // 2:
            raise Busy(f"requests of yours of {own} bytes are under way")
        if self.num_bytes + num_bytes > self._max_bytes:
            raise Busy(f"requests of {self.num_bytes} bytes are under way")
        self.add(tenant, num_bytes)

    def add(self, tenant: str, change: int) -> None:
        """Count bytes that are there in any case, or, if negative, no more."""
        self.num_bytes += change
        self._by_tenant[tenant] += change
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]
