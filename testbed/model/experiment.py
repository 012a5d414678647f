"""A question with its grid, and what its trials give: cells, trials, measurements, findings. Pure values."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from testbed.model.event import Event, Stage, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests are sent.

    Open loop: `rate_rps` over `connections`, times drawn before; closed: as fast as answers come.
    """

    kind: str = "open"
    """`open` or `closed`; `idle`: nothing is sent, and what the deployment takes meanwhile is measured (`standing`)."""
    rate_rps: float = 100.0
    arrival: str = "poisson"
    """Open loop only: `poisson`, `uniform` (constant gaps), `synchronised` (bursts) or `trace`."""
    connections: int = 8
    warmup_s: float = 1.0
    window_s: float = 4.0
    request_bytes: int = 0
    response_bytes: int = 128
    """Raw TCP gets back what it sent: `request_bytes`."""
    protocol: str = "http1"
    """`http1`, `http2` (prior knowledge), `grpc` (unary calls) or `tcp` (an echo)."""
    requests_per_connection: int = 0
    """After so many the client closes the connection and opens another for the next; 0: kept alive."""
    burst: int = 0
    """Synchronised arrivals: so many at the same instant; 0: one for each connection."""
    trace: str = ""
    """Trace arrivals: a file of ascending times in seconds, one a line; played over and over, stretched to
    `rate_rps`, or as it is where that is 0."""
    request_ids: bool = False
    """Each request bears an `x-request-id` of its own, by which packets are matched (`load.plan.request_id`)."""
    processes: int = 1
    """Generator processes that share schedule and connections: locust's workers, with a master beside them. More than
    one where a single process cannot send as fast; each has a queue of its own then, over its own connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """A second load while a cell is measured, from another client: a noisy neighbour."""

    client: str
    target: str
    """As `Experiment.target`."""
    load: Load
    """Its window is as long as it has to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One point of an experiment's sweep: what varies is the load, whom it calls, or where all that happens."""

    name: str
    """As a row of the table says it: `64 B`, `10 requests a connection`."""
    load: Load
    target: str = ""
    """As `Experiment.target`; empty: the same."""
    at: float | None = None
    """Where it stands on the experiment's axis; None: nowhere, the cells are kinds."""
    line: str = ""
    """Cells of one line differ in `at` only; a plot joins them."""
    links: tuple[tuple[str, str, dict], ...] = ()
    """As `Experiment.links`, set on the live lab for this cell alone."""
    topology: str = ""
    """A topology of its own, as `variants.resolve` takes it, and so a deployment of its own; empty: the same."""
    beside: Beside | None = None
    planes: tuple[str, ...] = ()
    """Only under these; empty: under all."""
    events: tuple[Event, ...] = ()
    """What happens in its window; the experiment's `streams` are its load then."""
    before: Stage | None = None
    """What the deployment is when it begins; None: the block's plane on the topology as it is."""
    traced: bool = False
    """Captured at every edge of a namespace on the way, and each request's time told hop by hop (`hops`)."""
    leaf_lifetime_s: float = 0.0
    """Of certificates, which a CA renews at half of it; 0: they outlast the run, and nobody renews them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What a sweep's cells vary, and which figures are to be seen over it."""

    name: str
    """`RTT between zones`."""
    unit: str = ""
    metrics: tuple[str, ...] = ("latency_p50", "latency_p99", "cpu_per_1000_requests")
    """Keys of `axis.FIGURES`."""
    logarithmic: bool = False
    measured: str = ""
    """Key of the figure that places a cell where it really was (a rate that was reached); empty: `Cell.at` does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    name: str
    question: str
    topology: str
    planes: tuple[str, ...]
    client: str
    """Workload that sends."""
    target: str
    """`service` (its first port) or `service:port`."""
    load: Load
    rounds: int = 5
    aa_pair: bool = True
    """Measure plane `none` twice per round, under the names `none` and `none (A/A)`: what no difference looks like."""
    claims: tuple[str, ...] = ()
    links: tuple[tuple[str, str, dict], ...] = ()
    """Impairments that override the topology's: (a, b, {delay_ms: …}) both directions."""
    cells: tuple[Cell, ...] = ()
    """Measured one after another, in shuffled order, on each deployment; empty: one, `load`."""
    axis: Axis = Axis(name="")
    """Of the cells."""
    rate_share: float | None = None
    """Load every plane with this share of the slowest one's measured capacity instead of with the loads' own rates,
    whose proportions stay; the search begins at `load`'s rate."""
    hold_p99_ms: float = 25.0
    """What holding a rate means in that search."""
    streams: tuple[Stream, ...] = ()
    """Of an experiment with events: who calls whom all the while; `load` then gives warm-up and least window
    alone."""
    drain_s: float = 5.0
    """Of an experiment with events: how long proxies that are told to end wait for what is open (facts/hbone 1.9)."""

    attackers: tuple[str, ...] = ()
    """A workload and a node that lies between others: attempts are made from inside them and each kind of proxy
    (`attack`). Empty: nobody attacks."""

    pairs: tuple[str, ...] = ()
    """Sets of policies (`boundarypairs.SETS`) under each of which every pair of workloads is called, and each verdict
    held against a predicted one."""

    @property
    def block_s(self) -> float:
        """How long one deployment is under load."""
        return sum(load.warmup_s + load.window_s for load in [cell.load for cell in self.cells] or [self.load])

    @property
    def loaded_s(self) -> float:
        """The same of the whole experiment: it takes longer than this."""
        return self.rounds * (len(self.planes) + self.aa_pair) * self.block_s


class Result(StrEnum):
    HOLDS = "holds"
    BROKEN = "broken"
    NO_EVIDENCE = "no-evidence"


DOCUMENTED = ", as documented: "
"""In a finding's statement: what follows is why the outcome is right although it may surprise; the table notes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of findings.jsonl.

    Where a statement is meant to fail (cleartext under `none`), it says so and HOLDS means it did.
    """

    id: str
    plane: str
    segment: str
    statement: str
    result: Result
    evidence: str
    """File and packet numbers, or the probe and its outcome."""
    packets: tuple[int, ...] = ()
    value: str = ""
    """Short form for the table: `0 of 64 readable`, `TLS 1.3`, `401`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One tidy row of measurements.csv."""

    round: int
    trial: str
    block: int
    plane: str
    component: str
    metric: str
    unit: str
    value: float
    valid: bool = True
    reason: str = ""
    cell: str = ""
    """Name of the sweep's point; empty where there is but one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """One request: seconds on CLOCK_MONOTONIC.

    `sent` minus `intended` is the generator's lag; latency is `last_byte - intended`.
    """

    intended_s: float
    sent_s: float
    first_byte_s: float
    last_byte_s: float
    status: int
    bytes: int
    connection: int
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadWorker:
    """What one of several generator processes did."""

    name: str
    """`worker 1`."""
    requests: int
    """Of the window."""
    cpu_s: float
    send_lag_p99_ms: float | None
    """None where it sent nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecord:
    rows: tuple[RequestRow, ...]
    started_s: float
    ended_s: float
    cpu_s: float
    """CPU that the generator itself used, to see saturation."""
    connects: int = 0
    """Connections opened from before the warm-up to the end."""
    workers: tuple[LoadWorker, ...] = ()
    """Of a load of several processes; else empty."""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkReading:
    """What a link really did, beside what was asked; ms, RTT unless said."""

    link: str
    asked_rtt_ms: float
    rtt_p50_ms: float
    rtt_p90_ms: float
    asked_loss: float
    loss: float
    probes: int
    within_tolerance: bool
    backend: str = ""
