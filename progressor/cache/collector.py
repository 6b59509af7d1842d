"""The figures of the caches, for Prometheus: they are counted as plain numbers, and collected when somebody asks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from progressor.cache.cache import Cache, Memory
from progressor.cache.feed import Feed

_NS = ["prg_namespace"]
_DATABASE = ["database"]


class CacheCollector(Collector):
    """`feeds` by the names of their databases."""

    def __init__(self, feeds: Mapping[str, Feed], memory: Memory) -> None:
        self._feeds = feeds
        self._memory = memory

    def collect(self) -> Iterator[Metric]:
        if self._feeds:
            yield GaugeMetricFamily(
                "progressor_cache_bytes", "Memory that all caches take, roughly", value=self._memory.bytes
            )
            yield from _of_namespaces(cache for feed in self._feeds.values() for cache in feed.caches.values())
            yield from _of_feeds(self._feeds)


def _of_namespaces(caches: Iterable[Cache]) -> Iterator[Metric]:
    hits = CounterMetricFamily("progressor_cache_hits", "Reads answered from memory", labels=_NS)
    misses = CounterMetricFamily("progressor_cache_misses", "Reads that went to the database", labels=[*_NS, "reason"])
    entries = GaugeMetricFamily("progressor_cache_entries", "Processes in memory", labels=_NS)
    for cache in caches:
        figures = cache.figures()
        hits.add_metric([cache.ns], figures.hits)
        entries.add_metric([cache.ns], figures.entries)
        for reason, count in figures.misses.items():
            misses.add_metric([cache.ns, reason], count)
    yield from (hits, misses, entries)


def _of_feeds(feeds: Mapping[str, Feed]) -> Iterator[Metric]:
    connected = GaugeMetricFamily("progressor_cache_connected", "Whether the WAL is followed", labels=_DATABASE)
    reconnects = CounterMetricFamily("progressor_cache_reconnects", "Times the stream was lost", labels=_DATABASE)
    behind = GaugeMetricFamily("progressor_cache_lag_bytes", "WAL that is not in the caches yet", labels=_DATABASE)
    delay = GaugeMetricFamily(
        "progressor_cache_lag_seconds", "From the commit of the last transaction to the caches", labels=_DATABASE
    )
    for name, feed in feeds.items():
        connected.add_metric([name], feed.connected)
        reconnects.add_metric([name], feed.reconnects)
        behind.add_metric([name], feed.behind)
        delay.add_metric([name], feed.delay)
    yield from (connected, reconnects, behind, delay)
