"""Every metric of store and server; `docs/operations.md` says what to do about them."""

from __future__ import annotations

from kvstore.server.observe.families import COUNTER, GAUGE, HISTOGRAM, Metric

PROCESS = Metric("larder_process_info", GAUGE, "What runs here; always 1.", ("part", "version"))

CALLS = Metric("larder_calls_total", COUNTER, "Calls that ended, by lane, name and status.", ("lane", "call", "code"))
CALL_SECONDS = Metric("larder_call_seconds", HISTOGRAM, "Seconds of calls; a stream's, until its last message.", ("lane", "call"))
CALLS_RUNNING = Metric("larder_calls_running", GAUGE, "Calls being served.", ("lane",))
CALLS_WAITING = Metric("larder_calls_waiting", GAUGE, "gRPC calls that wait for a thread.")
INFLIGHT = Metric("larder_inflight_bytes", GAUGE, "Chunk bytes that transfers hold.")
INFLIGHT_LIMIT = Metric("larder_inflight_limit_bytes", GAUGE, "The most that transfers may hold: server.max_inflight_bytes.")
CONNECTIONS = Metric("larder_lane_connections", GAUGE, "Connections of the lanes beside gRPC.")

ASKED = Metric(
    "larder_chunk_requests_total",
    COUNTER,
    "Chunks that were looked up or got, by what was found: hit, pending, or why it was a miss.",
    ("call", "tenant", "outcome"),
)
TENANT_BYTES = Metric("larder_tenant_bytes_total", COUNTER, "Chunk bytes that tenants put in and got out.", ("tenant", "direction"))
PUTS = Metric("larder_puts_total", COUNTER, "Puts, by whether the chunk was new.", ("outcome",))
QUARANTINED = Metric("larder_quarantined_total", COUNTER, "Stored copies that did not match their digest and were taken out of use.")
DELETED = Metric("larder_deleted_total", COUNTER, "Chunks that were deleted, or gave way to an invalidation.")
LEASES = Metric("larder_leases", GAUGE, "Chunks that are protected from eviction because a request looked them up.")
LANE_BYTES = Metric("larder_lane_bytes_total", COUNTER, "Chunk bytes by lane; sent over shm means read in place.", ("lane", "direction"))

TIER_READS = Metric("larder_tier_reads_total", COUNTER, "Reads of a tier: hit or miss.", ("tier", "outcome"))
TIER_ERRORS = Metric("larder_tier_errors_total", COUNTER, "Calls of a tier that failed, refusals of a full one included.", ("tier",))
TIER_BYTES = Metric("larder_tier_bytes_total", COUNTER, "Bytes read from a tier and written to it.", ("tier", "direction"))
TIER_SECONDS = Metric("larder_tier_seconds_total", COUNTER, "Seconds spent reading from a tier and writing to it.", ("tier", "direction"))
TIER_USED = Metric("larder_tier_used_bytes", GAUGE, "Bytes that a tier uses.", ("tier",))
TIER_CAPACITY = Metric("larder_tier_capacity_bytes", GAUGE, "Bytes that a tier may use; 0 where something else limits it.", ("tier",))
TIER_CHUNKS = Metric("larder_tier_chunks", GAUGE, "Chunks in a tier; of a remote one, those that a local tier has too.", ("tier",))
TIER_UP = Metric("larder_tier_up", GAUGE, "Whether a tier answers.", ("tier",))
TIER_RESTING = Metric("larder_tier_breakers_open", GAUGE, "Servers behind a tier that are not asked since they did not answer.", ("tier",))
TIER_EVICTED = Metric("larder_tier_evictions_total", COUNTER, "Chunks that left a tier to make room.", ("tier",))
QUEUE = Metric("larder_write_queue_bytes", GAUGE, "Bytes that wait to be written to a tier.", ("tier",))
QUEUE_LIMIT = Metric("larder_write_queue_limit_bytes", GAUGE, "The most that may wait for each tier: tiers.write_queue.")
WRITTEN_BEHIND = Metric("larder_write_behind_total", COUNTER, "Chunks for slower tiers: written, dropped or failed.", ("outcome",))
PROMOTED = Metric("larder_promoted_total", COUNTER, "Chunks that were copied up from a slower tier.")

SERVER_METRICS = (PROCESS, CALLS, CALL_SECONDS, CALLS_RUNNING, CALLS_WAITING, INFLIGHT, INFLIGHT_LIMIT, CONNECTIONS)
STORE_METRICS = (
    *(ASKED, TENANT_BYTES, PUTS, QUARANTINED, DELETED, LEASES, LANE_BYTES),
    *(TIER_READS, TIER_ERRORS, TIER_BYTES, TIER_SECONDS, TIER_USED, TIER_CAPACITY, TIER_CHUNKS, TIER_UP, TIER_RESTING, TIER_EVICTED),
    *(QUEUE, QUEUE_LIMIT, WRITTEN_BEHIND, PROMOTED),
)
