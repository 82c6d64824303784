"""Token buckets: a mean rate with a bounded burst. Pure: the clock is an argument."""

from __future__ import annotations

from collections import OrderedDict


class TokenBucket:
    """One bucket. It begins full.

    Args:
        burst: The most tokens that it holds.
        now_s: The monotonic clock.
    """

    __slots__ = ("_counted_at_s", "_tokens")

    def __init__(self, burst: float, now_s: float) -> None:
        self._tokens = burst
        self._counted_at_s = now_s

    def take(self, now_s: float, rate: float, burst: float) -> bool:
        """Take a token; return whether there was one.

        Args:
            now_s: The monotonic clock.
            rate: Tokens that are added per second.
            burst: The most tokens that the bucket holds.
        """
        self._tokens = min(burst, self._tokens + (now_s - self._counted_at_s) * rate)
        self._counted_at_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class KeyedTokenBuckets:
    """A bucket for each key. The least recently used key is forgotten when there are too many; its bucket then is full again.

    Args:
        limit: The number of keys that are remembered.
        burst_s: A bucket holds what is added in this time, seconds.
    """

    def __init__(self, limit: int, burst_s: float) -> None:
        self._limit = limit
        self._burst_s = burst_s
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: str, now_s: float, rate: float) -> bool:
        """Take a token of a key; return whether there was one.

        Args:
            key: The key.
            now_s: The monotonic clock.
            rate: Tokens that are added per second.
        """
        burst = rate * self._burst_s
        bucket = self._buckets.pop(key, None) or TokenBucket(burst, now_s)
        self._buckets[key] = bucket
        if len(self._buckets) > self._limit:
            self._buckets.popitem(last=False)
        return bucket.take(now_s, rate, burst)

    def clear(self) -> None:
        """Forget all keys."""
        self._buckets.clear()
