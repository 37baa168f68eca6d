"""Settings of a broker; every bound defaults to its row of the table of limits."""

from dataclasses import asdict, dataclass, fields

from ...client.errors import BadRequest
from ...client.limits import LIMITS, limit


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConfig:
    """What a broker accepts and how long it waits. Names are those of `LIMITS`."""

    sessions: int = limit("sessions")
    tenant_sessions: int = limit("tenant_sessions")
    runs: int = limit("runs")
    tenant_runs: int = limit("tenant_runs")
    total_runs: int = limit("total_runs")
    expired_runs: int = limit("expired_runs")
    samplers: int = limit("samplers")
    past_sessions: int = limit("past_sessions")
    past_samplers: int = limit("past_samplers")
    watchers: int = limit("watchers")
    checkpoints: int = limit("checkpoints")
    config_bytes: int = limit("config_bytes")
    upload_bytes: int = limit("upload_bytes")
    total_upload_bytes: int = limit("total_upload_bytes")
    transfers: int = limit("transfers")
    total_transfers: int = limit("total_transfers")
    parts_in_flight: int = limit("parts_in_flight")
    store_jobs: int = limit("store_jobs")
    transfer_expiry_s: float = LIMITS["transfer_expiry_s"].default
    parts: int = limit("parts")
    part_bytes: int = limit("part_bytes")
    header_bytes: int = limit("header_bytes")
    frames: int = limit("frames")
    held_commands: int = limit("held_commands")
    void_ranges: int = limit("void_ranges")
    lane_requests: int = limit("lane_requests")
    lane_bytes: int = limit("lane_bytes")
    total_bytes: int = limit("total_bytes")
    result_bytes: int = limit("result_bytes")
    total_result_bytes: int = limit("total_result_bytes")
    result_ttl_s: float = LIMITS["result_ttl_s"].default
    session_ttl_s: float = LIMITS["session_ttl_s"].default
    worker_expiry_s: float = LIMITS["worker_expiry_s"].default
    loading_expiry_s: float = LIMITS["loading_expiry_s"].default
    heartbeat_s: float = LIMITS["heartbeat_s"].default
    stop_s: float = LIMITS["stop_s"].default
    stop_samples_s: float = LIMITS["stop_samples_s"].default
    retry_after_s: float = LIMITS["retry_after_s"].default
    quantum: int = limit("quantum")

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise BadRequest(f"broker setting {field.name} is {value}; it must be positive")

    def limits(self) -> dict[str, float]:
        """The whole table of limits, as announced to clients."""
        defaults = {name: row.default for name, row in LIMITS.items()}
        return {name: float(value) for name, value in {**defaults, **asdict(self)}.items()}
