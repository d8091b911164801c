from coordinator.structured.cache import LruCache


def test_the_number_is_bounded_and_use_counts() -> None:
    cache = LruCache[str, int](max_entries=2, max_bytes=100)
    cache.put("a", 1, 1)
    cache.put("b", 2, 1)
    assert cache.get("a") == 1
    cache.put("c", 3, 1)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)


def test_the_bytes_are_bounded_and_counted() -> None:
    cache = LruCache[str, int](max_entries=9, max_bytes=10)
    cache.put("a", 1, 6)
    cache.put("a", 2, 4)
    cache.put("b", 3, 6)
    assert (len(cache), cache.num_bytes) == (2, 10)
    cache.put("c", 4, 5)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (None, None, 4)
    cache.put("d", 5, 11)
    assert (len(cache), cache.num_bytes) == (0, 0)
