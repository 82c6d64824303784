from rtmpd.util.token_bucket import KeyedTokenBuckets, TokenBucket


def test_a_bucket_begins_full_and_is_refilled_by_the_rate():
    bucket = TokenBucket(3, 10.0)
    assert [bucket.take(10.0, 2, 3) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(10.5, 2, 3) for _ in range(2)] == [True, False]


def test_a_bucket_holds_no_more_than_its_burst():
    bucket = TokenBucket(3, 0.0)
    assert [bucket.take(1000.0, 2, 3) for _ in range(4)] == [True, True, True, False]


def test_a_refused_token_costs_nothing():
    bucket = TokenBucket(1, 0.0)
    assert bucket.take(0.0, 1, 1)
    for hundredth in range(1, 100):
        assert not bucket.take(hundredth / 100, 1, 1)
    assert bucket.take(1.01, 1, 1)


def test_each_key_has_a_bucket_of_its_own():
    buckets = KeyedTokenBuckets(10, 2.0)
    for key in ("a", "b"):
        assert [buckets.take(key, 0.0, 1) for _ in range(3)] == [True, True, False]


def test_the_least_recently_used_key_is_forgotten_first():
    buckets = KeyedTokenBuckets(2, 2.0)
    for key in ("a", "b"):
        assert [buckets.take(key, 0.0, 1) for _ in range(3)] == [True, True, False]
    assert not buckets.take("a", 0.0, 1)
    assert buckets.take("c", 0.0, 1)
    assert len(buckets) == 2
    assert buckets.take("b", 0.0, 1)
    assert not buckets.take("c", 0.0, 0.4)


def test_clearing_forgets_every_key():
    buckets = KeyedTokenBuckets(2, 1.0)
    assert buckets.take("a", 0.0, 1)
    buckets.clear()
    assert len(buckets) == 0
    assert buckets.take("a", 0.0, 1)


def test_a_flood_of_keys_takes_no_more_memory():
    buckets = KeyedTokenBuckets(10_000, 2.0)
    for number in range(20_000):
        buckets.take(f"10.0.{number >> 8}.{number & 255}", 0.0, 1)
    assert len(buckets) == 10_000
