"""What is measured, for Prometheus. Every server has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Meters:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("rebus_requests", "Requests answered", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "rebus_request_seconds", "From a request to the end of its answer", ["route"], buckets=SECONDS, registry=own
        )
        self.first = Histogram(
            "rebus_first_word_seconds",
            "From a request to its first word or picture",
            ["model"],
            buckets=SECONDS,
            registry=own,
        )
        self.words = Counter("rebus_tokens", "Words read and written", ["model", "kind"], registry=own)
        self.pictures = Counter("rebus_images_drawn", "Pictures drawn", ["model"], registry=own)
        self.batch = Histogram(
            "rebus_step_replies", "Replies decoded together in a step", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        self.rows = Gauge("rebus_busy_rows", "Rows of the decoder that replies hold", ["worker"], registry=own)
        self.waiting = Gauge("rebus_waiting", "Replies that wait for a row", ["worker"], registry=own)
        self.turned_away = Counter("rebus_turned_away", "Requests turned away because too many waited", registry=own)
        self.faults = Counter("rebus_faults", "Faults of the server's own", registry=own)
