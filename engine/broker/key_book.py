"""Whose an API key is. Pure: keys and the time go in, a tenant comes out.

Of a key only its SHA-256 is kept. A key holds 256 random bits, so nobody finds it by trying,
however fast the hash is; a slow one would only let strangers keep the server busy.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ...client.errors import BadRequest

LOCAL = "local"  # the tenant of whoever comes while no key was ever made
OPERATOR = "operator"  # the tenant of the process that runs the server

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX_BYTES = 8  # of a digest, by which it is looked up


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret of a key; while a key is being rotated it has several."""

    digest: bytes
    key_id: str
    tenant: str
    ends: float = 0.0  # seconds since 1970; 0: not by itself


@dataclass(frozen=True, slots=True)
class Admission:
    """Under which secret a client came in."""

    tenant: str
    digest: bytes = b""  # of a key that was made; b"" otherwise
    is_insider: bool = False


def digest_of(api_key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(api_key.encode("utf-8", "surrogatepass")).digest()


class Insiders:
    """Keys for the process that runs the broker: never stored, and valid as long as it runs.

    Args:
        operator_key: whoever shows it is the tenant `operator`; "" admits nobody.
        secret: random bytes that `key` makes keys of; b"" makes none.
    """

    def __init__(self, operator_key: str = "", secret: bytes = b"") -> None:
        self._operator_digest = digest_of(operator_key) if operator_key else b""
        self._secret = secret

    def key(self, tenant: str) -> str:
        """A key of a tenant, by its id.

        Raises:
            BadRequest: no tenant can have this id.
        """
        check_tenant(tenant)
        return f"inside:{tenant}:{self._proof(tenant)}"

    def tenant_of(self, api_key: str) -> str | None:
        """The tenant of such a key, None for any other."""
        digest = digest_of(api_key)
        if self._operator_digest and hmac.compare_digest(digest, self._operator_digest):
            return OPERATOR
        kind, _, rest = api_key.partition(":")
        tenant, _, proof = rest.rpartition(":")
        if not self._secret or kind != "inside" or not proof.isascii():
            return None
        return tenant if hmac.compare_digest(proof, self._proof(tenant)) else None

    def _proof(self, tenant: str) -> str:
        content = tenant.encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, content, hashlib.sha256).hexdigest()


class KeyBook:
    """The keys that count at one moment.

    Args:
        secrets: those that were made and not revoked; None while no key was ever made, and then
            whoever comes is the tenant `local`.
        insiders: keys that count beside them.
    """

    def __init__(
        self, secrets: Iterable[Secret] | None = None, insiders: Insiders | None = None
    ) -> None:
        self.is_open = secrets is None
        self._insiders = insiders or Insiders()
        self._secrets = {secret.digest[:_PREFIX_BYTES]: secret for secret in secrets or ()}

    def count(self, now: float) -> int:
        """How many keys are active."""
        active = [secret for secret in self._secrets.values() if _is_active(secret, now)]
        return len({secret.key_id for secret in active})

    def admit(self, api_key: str, now: float) -> Admission | None:
        """Whose a key is at a time in seconds since 1970; None for a key that does not count."""
        tenant = self._insiders.tenant_of(api_key)
        if tenant is not None:
            return Admission(tenant, is_insider=True)
        if self.is_open:
            return Admission(LOCAL)
        secret = self._find(digest_of(api_key), now)
        return None if secret is None else Admission(secret.tenant, secret.digest)

    def still_admits(self, admission: Admission, now: float) -> bool:
        """Whether who came in may stay."""
        if admission.is_insider:
            return True
        if not admission.digest:
            return self.is_open
        return self._find(admission.digest, now) is not None

    def _find(self, digest: bytes, now: float) -> Secret | None:
        secret = self._secrets.get(digest[:_PREFIX_BYTES])
        if secret is None or not hmac.compare_digest(secret.digest, digest):
            return None
        return secret if _is_active(secret, now) else None


def check_tenant(tenant: str) -> None:
    """Raise BadRequest unless this can be the id of a tenant that has keys."""
    if not _TENANT.fullmatch(tenant) or tenant == OPERATOR:
        raise BadRequest(
            f"tenant {tenant[:80]!r} is not 1 to 64 letters, digits, dots, dashes and underscores, "
            f"or is {OPERATOR!r}"
        )


def _is_active(secret: Secret, now: float) -> bool:
    return not secret.ends or now < secret.ends
