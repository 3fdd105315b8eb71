"""What is measured: the settings of the server, the cases, the targets.

A case is an operation done by several variants, one after the other; that is one
round. The order is turned about from round to round. Ratios are taken within a round.
What the variants send to the server is in variants.py, key by key and word by word.
"""

from dataclasses import dataclass, field

# The server. All else is as initdb leaves it; what differs goes into the results.
SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",              # no checkpoint but those that begin each measurement ...
    "checkpoint_timeout": "1h",
    "fsync": "on",
    "autovacuum": "off",                # dead rows are counted, not cleaned up
    "log_checkpoints": "off",
}
# ... but with large tables they come as they would, from a full page image to the next.
LARGE_SETTINGS = {"max_wal_size": "1GB"}
# With an old snapshot it is the point that VACUUM cannot help, so it may try.
SNAPSHOT_SETTINGS = {"autovacuum": "on", "autovacuum_naptime": "10s"}

SMALL = 1000                            # keys present unless a case says more
SMALL_MOST = 100_000                    # up to here the table is made anew for every measurement


@dataclass
class Plan:
    """How long, and how often. QUICK says whether everything works, not what it costs."""

    quick: bool = False
    seconds: int = 4                    # of each measurement
    seconds_large: int = 15             # with a large table
    seconds_long: int = 45              # where full-page images count: some checkpoints
    seconds_snapshot: int = 300         # with an old snapshot, in one round of WINDOWS
    rounds: int = 3
    rounds_target: int = 5              # of cases that a target is set for
    keys: int = 100_000                 # written in the cases "stored" and "expiry"
    messages: int = 40_000              # taken in the case "queue-effect"
    largest: int = 10_000_000           # keys present at most


QUICK = Plan(True, 2, 5, 5, 15, 1, 2, 20_000, 5_000, 300_000)

WINDOWS = 30                            # parts of a run with an old snapshot: 10 s each


@dataclass
class Case:
    """One operation, and who does it under which circumstances."""

    operation: str                      # of variants.SCRIPTS
    variants: str                       # "idem@small": of a large case, in the small table
    clients: int = 8
    sync: bool = False                  # synchronous_commit
    key: str = "random"                 # or ordered, text: see variants.KEYS
    present: int = SMALL                # keys, or messages that wait
    target: bool = False
    quick: bool = False                 # part of the short form
    long: bool = False                  # seconds_long each
    large: bool = field(init=False)

    def __post_init__(self):
        self.large = self.present > SMALL_MOST

    @property
    def per(self):
        """How many keys or messages a transaction has."""
        return 100 if self.operation in ("batch", "queue-batch") else 1

    @property
    def queue(self):
        return self.operation.split("-")[0] == "queue"

    @property
    def name(self):
        return ", ".join(
            [self.operation]
            + [f"{self.clients} client" + "s" * (self.clients > 1)]
            + (["synchronous commit"] if self.sync else [])
            + ([f"{self.key} keys"] if self.key != "random" or self.large and not self.queue else [])
            + ([f"{count(self.present)} {'messages waiting' if self.queue else 'keys present'}"]
               if self.present > SMALL else []))


def count(number):
    """10000000 -> 10 M"""
    for size, unit in ((1_000_000, " M"), (1000, " k")):
        if number >= size:
            return f"{number / size:g}{unit}"
    return str(number)


ALL = "empty floor idem hand lean uuid plpgsql"
QUEUES = "empty idem hand pgmq statements"

GROUPS = {
    # a key that is new: claim and finish in a transaction
    "fresh": [
        Case("fresh", ALL, target=True, quick=True),
        *[Case("fresh", "empty idem hand plpgsql", clients, sync)
          for sync in (False, True) for clients in (1, 2, 8, 32) if (clients, sync) != (8, False)],
        Case("fresh", "empty floor idem hand uuid", key="ordered"),
        Case("fresh", "empty idem hand", key="text"),
    ],
    # one that is finished; it writes nothing, so there is nothing to synchronize
    "replay": [
        Case("replay", "idem select plpgsql", target=True, quick=True),
        *[Case("replay", "idem select plpgsql", clients) for clients in (1, 2, 32)],
        Case("replay", "idem select", sync=True),
        Case("replay", "idem select", key="text"),
    ],
    # 10 finished keys; 4 keys at a time, of which each is claimed by one
    "hot": [
        Case("hot", "idem select plpgsql", 16, target=True, quick=True),
        Case("stampede", "idem hand plpgsql", 16, quick=True),
    ],
    # 100 keys a transaction; with fewer keys present the UPDATE by hand is planned as
    # a scan of the whole table, and its session keeps that plan
    "batch": [
        Case("batch", "empty floor idem hand", present=SMALL_MOST, target=True, quick=True),
        Case("batch", "empty idem hand", 1, present=SMALL_MOST),
    ],
    # key and work in one statement
    "once": [
        Case("once", "empty idem cte", target=True, quick=True),
        Case("once", "empty idem cte", sync=True),
        Case("once-replay", "idem select", quick=True),
    ],
    # claims that outlive their transaction, and flows of 5 steps on them
    "lease": [
        Case("lease", "empty idem hand", quick=True),
        Case("steps", "empty idem hand guarded", quick=True),
    ],
    # what a key takes on disk; what it costs to be rid of it
    "stored": [
        Case("stored", "floor idem hand lean uuid plpgsql", quick=True),
        Case("stored", "floor idem hand lean uuid plpgsql", key="ordered"),
    ],
    "expiry": [
        Case("expiry", "empty idem hand", target=True, quick=True),
    ],
    # large tables
    "size": [
        Case("fresh", "idem hand floor idem@small", key="random", present=1_000_000),
        Case("fresh", "idem hand idem@small", key="ordered", present=1_000_000),
        Case("fresh", "idem hand idem@small", key="random", present=10_000_000, long=True, quick=True),
        Case("replay", "idem select", key="random", present=10_000_000, quick=True),
        Case("fresh", "idem hand idem@small", key="ordered", present=10_000_000),
    ],
    # messages: enqueue, dequeue, and ack, a transaction each; as many wait at the end as
    # at the beginning
    "queue": [
        Case("queue", QUEUES, target=True, quick=True),
        Case("queue", QUEUES, sync=True, target=True),
        *[Case("queue", QUEUES, clients, sync) for sync in (False, True) for clients in (1, 32)],
        Case("queue-batch", QUEUES, present=10_000, target=True, quick=True),
        Case("queue-batch", QUEUES, present=10_000, sync=True),
        Case("queue-in", QUEUES, quick=True),
        Case("queue-effect", QUEUES + " direct", quick=True),
        Case("queue-depth", "empty idem hand pgmq statements idem@small", present=100_000),
        Case("queue-depth", "empty idem hand pgmq statements idem@small", present=1_000_000, target=True,
             quick=True),
        Case("queue-snapshot", "idem hand pgmq statements", quick=True),
    ],
}


@dataclass
class Target:
    """A ratio, ours to theirs, in one run. Metrics are those of measure.py."""

    text: str
    operation: str
    metric: str
    against: str                        # a variant, or "" where the figure is no ratio
    limit: float
    less: bool = True                   # at most the limit, or at least
    over: str = ""                      # the variant whose costs are subtracted from both
    clients: int = 8
    sync: bool = False
    present: int = SMALL
    judged: bool = True                 # or only shown
    ours: str = "idem"


FRESH_CPU = [
    ("user mode", "cpu_user_us"),
    ("user and kernel", "cpu_us"),
]

TARGETS = [
    *[Target(f"fresh key, CPU over the empty transaction, {mode}", "fresh", metric, against, limit,
             over="empty")
      for against, limit in (("hand", 0.65), ("plpgsql", 0.42)) for mode, metric in FRESH_CPU],
    *[Target(f"the same of a bare INSERT, {mode}", "fresh", metric, "hand", 0, over="empty", ours="floor",
             judged=False) for mode, metric in FRESH_CPU],
    Target("fresh key, WAL bytes", "fresh", "wal_bytes", "hand", 0.70),
    Target("fresh key, dead rows", "fresh", "dead_made", "", 0),
    Target("replay, latency", "replay", "latency_us", "select", 1.10),
    Target("hot keys, throughput, 16 clients on 10 keys", "hot", "tps", "plpgsql", 1.5, less=False,
           clients=16),
    Target("one round trip, time", "once", "call_us", "cte", 1.05),
    Target("one round trip, WAL bytes", "once", "wal_bytes", "cte", 0.9),
    Target("batch of 100, time", "batch", "call_us", "hand", 0.7, present=SMALL_MOST),
    Target("10 M keys present, throughput of fresh random keys", "fresh", "tps", "idem@small", 0.8,
           less=False, present=10_000_000),
    Target("10 M keys present, WAL bytes of a fresh random key", "fresh", "wal_bytes", "hand", 0.5,
           present=10_000_000),
    Target("bytes stored per key, table and index", "stored", "stored_bytes", "hand", 0.75),
    Target("expiry of a key, CPU", "expiry", "expire_cpu_us", "claim:cpu_us", 0.15, over="empty"),
    Target("expiry of a key, WAL records", "expiry", "expire_wal_records", "claim:wal_records", 0.15,
           over="empty"),
    *[Target(f"{text}, throughput", operation, "tps", against, 1, less=False, sync=sync, present=present)
      for text, operation, sync, present in (
          ("message, asynchronous commit", "queue", False, SMALL),
          ("message, synchronous commit", "queue", True, SMALL),
          ("batch of 100 messages", "queue-batch", False, 10_000))
      for against in ("hand", "pgmq", "statements")],
    Target("1 M messages waiting, throughput", "queue-depth", "tps", "idem@small", 0.9, less=False,
           present=1_000_000),
    Target("an old snapshot, fall of the throughput", "queue-snapshot", "fall", "", 0.2),
]

# From the results of bench/peers, if they are there: flows a second, ours to theirs.
PEER_TARGETS = [
    ("lease, 5 steps, finish, flows a second", "@dbos-inc/dbos-sdk", "five steps",
     "lease, 5 steps, finish", 5.0),
]
