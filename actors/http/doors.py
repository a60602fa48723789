"""Who may come in: which keys open which routes.

Keys are compared as digests of one length, each request with all of them, so that the time an
answer takes tells nothing of a key.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from actors.http.errors import Forbidden, Unauthorized

ANYBODY = "anybody"  # the caller where no key is needed
_SCHEME = "bearer"
_NAME_DIGITS = 12  # of the digest: tells callers apart, and an operator which key it is


@dataclass(frozen=True, slots=True)
class KeyDigests:
    """SHA-256 of the keys for /v1, and of those for what changes placement."""

    api: tuple[bytes, ...] = ()
    admin: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Doors:
    """The keys of one server, and whether other machines can reach it. No keys: all are let in."""

    keys: KeyDigests = KeyDigests()
    beyond_loopback: bool = False

    @property
    def keyless(self) -> bool:
        """Whether it has no keys at all: whoever reaches it may change placement."""
        return not (self.keys.api or self.keys.admin)

    def let_in(self, authorization: str | None) -> str:
        """Who asks with this Authorization header: a name for each key, which does not tell it.

        Raises:
            Unauthorized: the server has keys, and this is none of them.
        """
        keys = (*self.keys.api, *self.keys.admin)  # the admin's opens everything
        if not self.keys.api:
            return ANYBODY
        place = _place(authorization, keys)
        if place is None:
            raise _refusal(authorization, "an API key")
        return _name(keys[place])

    def let_change(self, authorization: str | None) -> str:
        """Who wants to change placement with this Authorization header; a name as of `let_in`.

        Raises:
            Unauthorized: it has no key, or one the server does not know.
            Forbidden: it has no admin key, or the server has none and others can reach it.
        """
        if self.keys.admin:
            place = _place(authorization, self.keys.admin)
            if place is not None:
                return _name(self.keys.admin[place])
            if _place(authorization, self.keys.api) is not None:
                raise Forbidden("this key may not change placement: the admin key may")
            raise _refusal(authorization, "the admin key")
        caller = self.let_in(authorization)
        if self.beyond_loopback:
            raise Forbidden(
                "placement cannot be changed: the server can be reached from other machines and"
                " has no admin key; start it with --admin-api-key or WINDROSE_ADMIN_API_KEY"
            )
        return caller


def is_foreign(
    origin: str | None, host: str | None, allowed: Sequence[str], *, keyless: bool
) -> bool:
    """Whether a browser sent this for a page that is neither ours, of `host`, nor an allowed one.

    It sends such a POST without asking, if the body is no JSON by its header, and only keeps the
    answer from the page. What is no browser sends no Origin. A `keyless` server's own pages are
    those of loopback: any name's owner can have it lead here (DNS rebinding).
    """
    if origin is None or origin in allowed or "*" in allowed:
        return False
    place = origin.partition("://")[2]
    return place != host or (keyless and not is_loopback(_without_port(place)))


def _without_port(place: str) -> str:
    name, _, port = place.rpartition(":")
    return name if port.isdecimal() else place


def digest(key: str) -> bytes:
    """What stands for a key."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _name(known: bytes) -> str:
    return f"key {known.hex()[:_NAME_DIGITS]}"


def is_loopback(host: str | None) -> bool:
    """Whether a server that binds `host` is reached from its own machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address((host or "").strip("[]")).is_loopback
    except ValueError:
        return False  # None, "", a name: it may be any address


def _place(authorization: str | None, digests: Sequence[bytes]) -> int | None:
    """Which of the keys it is; compares with all of them whatever the first ones give."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    if scheme.lower() != _SCHEME:
        return None
    given = digest(key.strip())
    equal = [hmac.compare_digest(given, known) for known in digests]
    return equal.index(True) if True in equal else None


def _refusal(authorization: str | None, what: str) -> Unauthorized:
    if not authorization:
        return Unauthorized(f"{what} is needed: send the header Authorization: Bearer KEY")
    return Unauthorized(f"the Authorization header has not {what} of this server")
