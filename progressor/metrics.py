"""What can be measured about a node, for Prometheus. The eight histograms of the original have its names.

Each node has a registry of its own. Durations are milliseconds where the original's are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from time import monotonic
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class PoolStats(Protocol):
    def figures(self) -> Mapping[str, int]: ...


NS = "prg_namespace"
MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 30000, 60000)
SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """The metrics of a node. `namespace` gives a view of them with the label filled in."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = RequestMetrics(self.registry)
        self.calls_scanning = self._duration("progressor_calls_scanning", "Scans for waiting calls")
        self.timers_scanning = self._duration("progressor_timers_scanning", "Scans for due timers")
        self.zombie_collection = self._duration("progressor_zombie_collection", "Rounds of the zombie collector")
        self.request_preparing = self._duration(
            "progressor_request_preparing", "From a request to its stored task", "task_type"
        )
        self.task_processing = self._duration("progressor_task_processing", "Steps in the processor", "task_type")
        self.task_completion = self._duration(
            "progressor_task_completion", "From the end of a step to its commit", "completion_type"
        )
        self.process_removing = self._duration("progressor_process_removing", "Removals, to their commit")
        self.notification = self._duration("progressor_notification", "Publications", "notification_type")
        self.published = self._counter(
            "progressor_messages_published", "Messages that the broker acknowledged", "notification_type"
        )
        self.parked = self._counter("progressor_messages_parked", "Messages that the broker can never have")
        self.failed_publications = self._counter("progressor_publications_failed", "Attempts that ended in an outage")
        self.publish_latency = self._duration("progressor_publish", "From the commit to the acknowledgement")
        self.outbox_depth = self._gauge("progressor_outbox_depth", "About how many messages are not published")
        self.outbox_age = self._gauge("progressor_outbox_age_seconds", "How long the oldest of them has been waiting")
        self.outbox_leads = self._gauge("progressor_outbox_publisher", "Whether this node is the one that publishes")
        self.dead_letters = self._gauge("progressor_dead_letters", "Messages that were refused and are kept")
        self.held_messages = self._gauge("progressor_dead_letters_waiting", "Messages that wait behind a dead letter")
        self.busy_workers = self._gauge("progressor_workers_busy", "Workers that run a step")
        self.free_workers = self._gauge("progressor_workers_free", "Workers that wait")
        self.ready_tasks = self._gauge("progressor_tasks_ready", "Tasks that wait for a worker")
        self.oldest_ready = self._gauge(
            "progressor_tasks_ready_oldest_seconds", "How long the first of them has been waiting"
        )
        self.expected_tasks = self._gauge("progressor_tasks_expected", "Hints of tasks in memory")
        self.waiting_callers = self._gauge("progressor_callers_waiting", "Tasks that callers of this node wait for")
        self.retries = self._counter("progressor_retries", "Steps that will be tried again")
        self.failures = self._counter("progressor_failures", "Steps that ended in error", "task_type")
        self.zombie_tasks = self._counter("progressor_zombies", "Tasks taken over")
        self.fenced_completions = self._counter("progressor_fenced_completions", "Results that came too late")
        self.hung_workers = self._counter("progressor_workers_abandoned", "Steps given up at their deadline")
        self.batch_size = Histogram(
            "progressor_batch_size", "Items in a transaction", buckets=SIZES, registry=self.registry
        )
        self.commit_duration = Histogram(
            "progressor_commit_duration_ms", "Transactions of the writer", buckets=MS, registry=self.registry
        )
        self.lease_age = Gauge(
            "progressor_lease_age_seconds", "Since the lease was renewed", ["database"], registry=self.registry
        )
        self.pool_connections = Gauge(
            "progressor_pool_connections", "Connections of a pool", ["pool", "state"], registry=self.registry
        )

    def namespace(self, ns: str) -> NamespaceMetrics:
        return NamespaceMetrics(self, ns)

    def totals(self, ns: str) -> Mapping[str, int]:
        """Of a namespace, since the start of the node."""
        families: Mapping[str, tuple[Histogram | Counter, str]] = {
            "steps": (self.task_processing, "_count"),
            "retries": (self.retries, "_total"),
            "failures": (self.failures, "_total"),
            "zombies": (self.zombie_tasks, "_total"),
            "fenced": (self.fenced_completions, "_total"),
        }
        return {name: _total(family, suffix, ns) for name, (family, suffix) in families.items()}

    def committed(self, items: int, seconds: float) -> None:
        self.batch_size.observe(items)
        self.commit_duration.observe(seconds * 1000)

    def database(self, name: str, lease_age: float, pools: Mapping[str, PoolStats]) -> None:
        self.lease_age.labels(name).set(lease_age)
        for pool, connections in pools.items():
            for state, count in connections.figures().items():
                self.pool_connections.labels(pool, state).set(count)

    def _duration(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"{name}_duration_ms", text, [NS, *labels], buckets=MS, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, [NS], registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, [NS, *labels], registry=self.registry)


class RequestMetrics:
    """What clients ask over the ports. A service and its methods are called as in the IDL."""

    def __init__(self, registry: CollectorRegistry) -> None:
        durations = Histogram(
            "progressor_request_duration_ms",
            "Requests, to their answer",
            ["service", "method", "outcome"],
            buckets=MS,
            registry=registry,
        )
        running = Gauge(
            "progressor_requests_running", "Requests that wait for their answer", ["service"], registry=registry
        )
        self._duration = cache(durations.labels)
        self._running = cache(running.labels)
        self._refused = Counter("progressor_requests_refused", "What was no request", ["port"], registry=registry)
        self._connections = Gauge("progressor_connections", "Connections of clients", ["port"], registry=registry)

    def began(self, service: str) -> float:
        """When; for `ended`, which must follow."""
        self._running(service).inc()
        return monotonic()

    def ended(self, service: str, method: str, outcome: str, began: float) -> None:
        """`outcome`: `ok`, the name of a declared exception, or a class of errors."""
        self._running(service).dec()
        self._duration(service, method, outcome).observe((monotonic() - began) * 1000)

    def refused(self, port: str) -> Counter:
        """Counts what a port did not take for a request: garbage, too much, or not in time."""
        return self._refused.labels(port)

    def connections(self, port: str) -> Gauge:
        return self._connections.labels(port)


class NamespaceMetrics:
    """Seconds in, milliseconds out. Labels are bound once: these are called at every step."""

    def __init__(self, metrics: Metrics, ns: str) -> None:
        self._metrics = metrics
        self._ns = ns
        self._durations: dict[tuple[Histogram, str], Histogram] = {}
        self._fenced = metrics.fenced_completions.labels(ns)
        self._zombies = metrics.zombie_tasks.labels(ns)
        self._retries = metrics.retries.labels(ns)
        self._parked = metrics.parked.labels(ns)
        self._failed_publications = metrics.failed_publications.labels(ns)
        self._hung = metrics.hung_workers.labels(ns)

    def prepared(self, operation: str, seconds: float) -> None:
        self._observe(self._metrics.request_preparing, operation, seconds)

    def processed(self, task_type: str, seconds: float) -> None:
        self._observe(self._metrics.task_processing, task_type, seconds)

    def completed(self, task_type: str, outcome: str, seconds: float, *, removed: bool) -> None:
        self._observe(self._metrics.task_completion, outcome, seconds)
        if outcome == "retry":
            self._retries.inc()
        elif outcome == "error":
            self._metrics.failures.labels(self._ns, task_type).inc()
        if removed:
            self._metrics.process_removing.labels(self._ns).observe(seconds * 1000)

    def calls_scanned(self, seconds: float) -> None:
        self._metrics.calls_scanning.labels(self._ns).observe(seconds * 1000)

    def timers_scanned(self, seconds: float) -> None:
        self._metrics.timers_scanning.labels(self._ns).observe(seconds * 1000)

    def zombies_collected(self, seconds: float) -> None:
        self._metrics.zombie_collection.labels(self._ns).observe(seconds * 1000)

    def zombies(self, count: int) -> None:
        self._zombies.inc(count)

    def fenced(self) -> None:
        self._fenced.inc()

    def hung(self) -> None:
        self._hung.inc()

    def published(self, events: int, lifecycle: int, seconds: float, waited: float) -> None:
        """A portion was published in `seconds`, whose first message had been waiting for so long before."""
        for kind, count in (("event", events), ("lifecycle", lifecycle)):
            if count:
                self._observe(self._metrics.notification, kind, seconds)
                self._metrics.published.labels(self._ns, kind).inc(count)
        if events or lifecycle:
            self._metrics.publish_latency.labels(self._ns).observe((waited + seconds) * 1000)

    def parked(self) -> None:
        self._parked.inc()

    def publication_failed(self) -> None:
        self._failed_publications.inc()

    def outbox(self, *, leads: bool, depth: int, age: float, dead_letters: int, waiting: int) -> None:
        self._metrics.outbox_leads.labels(self._ns).set(leads)
        self._metrics.outbox_depth.labels(self._ns).set(depth)
        self._metrics.outbox_age.labels(self._ns).set(age)
        self._metrics.dead_letters.labels(self._ns).set(dead_letters)
        self._metrics.held_messages.labels(self._ns).set(waiting)

    def workers(self, busy: int, free: int) -> None:
        self._metrics.busy_workers.labels(self._ns).set(busy)
        self._metrics.free_workers.labels(self._ns).set(free)

    def load(self, *, ready: int, oldest_ready: float, expected: int, waiting_callers: int) -> None:
        self._metrics.ready_tasks.labels(self._ns).set(ready)
        self._metrics.oldest_ready.labels(self._ns).set(oldest_ready)
        self._metrics.expected_tasks.labels(self._ns).set(expected)
        self._metrics.waiting_callers.labels(self._ns).set(waiting_callers)

    def _observe(self, metric: Histogram, label: str, seconds: float) -> None:
        bound = self._durations.get((metric, label))
        if bound is None:
            bound = self._durations[metric, label] = metric.labels(self._ns, label)
        bound.observe(seconds * 1000)


def _total(family: Histogram | Counter, suffix: str, ns: str) -> int:
    samples = (sample for metric in family.collect() for sample in metric.samples)
    return sum(int(s.value) for s in samples if s.name.endswith(suffix) and s.labels[NS] == ns)
