"""Which replica should still hold the KV of which session (ORCH-3021, ORCH-3022, ORCH-3023).

Engines that keep the KV of past turns drop the least recently used when their cache is full; this is the
same bookkeeping, from what they report. KV is never moved: a session's is on one replica at most.
"""

from __future__ import annotations

from collections import OrderedDict

#: Tenant and session id.
SessionKey = tuple[str, str]


class _Cache:
    """The KV cache of one replica: sessions by last use, oldest first."""

    __slots__ = ("capacity_tokens", "sessions", "used_tokens")

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.used_tokens = 0
        self.sessions: OrderedDict[SessionKey, int] = OrderedDict()


class Residency:
    """The KV of sessions on all replicas, each bounded by the tokens its cache holds."""

    __slots__ = ("_caches", "_homes")

    def __init__(self) -> None:
        self._caches: dict[str, _Cache] = {}
        self._homes: dict[SessionKey, str] = {}

    def add_replica(self, replica_id: str, kv_tokens: int) -> None:
        """A replica came up; its cache is empty, also if the replica was known before."""
        self.remove_replica(replica_id)
        self._caches[replica_id] = _Cache(max(0, kv_tokens))

    def remove_replica(self, replica_id: str) -> None:
        """A replica and all KV on it are gone."""
        cache = self._caches.pop(replica_id, None)
        if cache is not None:
            for key in cache.sessions:
                del self._homes[key]

    def touch(self, replica_id: str, key: SessionKey, tokens: int) -> None:
        """A turn of the session ended on the replica with `tokens` of KV.

        The least recently used of the others make room. More than the whole cache, or KV on a replica that
        is gone meanwhile, is not kept.
        """
        self.forget(key)
        cache = self._caches.get(replica_id)
        if cache is None or not 0 < tokens <= cache.capacity_tokens:
            return
        while cache.used_tokens + tokens > cache.capacity_tokens:
            evicted, evicted_tokens = cache.sessions.popitem(last=False)
            cache.used_tokens -= evicted_tokens
            del self._homes[evicted]
        cache.sessions[key] = tokens
        cache.used_tokens += tokens
        self._homes[key] = replica_id

    def forget(self, key: SessionKey) -> None:
        """The session's KV is given up, wherever it is."""
        replica_id = self._homes.pop(key, None)
        if replica_id is not None:
            cache = self._caches[replica_id]
            cache.used_tokens -= cache.sessions.pop(key)

    def where(self, key: SessionKey) -> str:
        """The replica that holds the session's KV; "": none does."""
        return self._homes.get(key, "")

    def tokens(self, replica_id: str, key: SessionKey) -> int:
        """How many tokens of the session's KV the replica holds."""
        cache = self._caches.get(replica_id)
        return 0 if cache is None else cache.sessions.get(key, 0)

    def used_permille(self, replica_id: str) -> int:
        """How full the replica's cache is with sessions, in thousandths; 0 for a replica without one."""
        cache = self._caches.get(replica_id)
        if cache is None or not cache.capacity_tokens:
            return 0
        return cache.used_tokens * 1000 // cache.capacity_tokens

    def __len__(self) -> int:
        return len(self._homes)
