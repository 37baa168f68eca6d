"""Settings of a worker, as they travel to its process."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ...client.errors import BadRequest
from ..logs import FORMATS, LEVELS

DTYPES = ("float32", "bfloat16")
DEVICES = ("cpu", "cuda")
MODELLING = ("auto", "native", "transformers")
KERNELS = ("auto", "triton", "torch")


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Everything a worker needs to know before it loads."""

    model: str  # weft/tiny, a directory, or a name on the hub
    device: str = ""  # "" takes cuda when there is one
    dtype: str = ""  # "" is float32 on a CPU and bfloat16 on a GPU
    modelling: str = "auto"  # our own decoder where it is built for the model; native, transformers
    kernels: str = "auto"  # triton where there is CUDA; torch, through PyTorch's operations
    is_deterministic: bool = False  # results never depend on the neighbours, bit by bit
    trace: str = ""  # file to write, "" for none
    state_dir: str  # where saved states lie
    memory_bytes: int = 0  # what the worker may use; 0 is half of the free host or all free device
    batch_tokens: int = 4096  # of a train batch, before memory is considered
    unit_tokens: int = 1024  # U of the design: constant over a run's life
    max_pages: int = 0  # of 16 tokens in the KV cache; 0 is what the plan grants, at most 16384
    is_fused: bool = True  # False computes one run at a time, for comparison
    num_threads: int = 0  # 0 decides by cores
    log_format: str = "text"  # of a worker in a process of its own
    log_level: str = "warning"

    def __post_init__(self) -> None:
        if self.device not in ("", *DEVICES):
            raise BadRequest(f"device is {self.device!r}, not one of {', '.join(DEVICES)}")
        if self.dtype not in ("", *DTYPES):
            raise BadRequest(f"dtype is {self.dtype!r}, not one of {', '.join(DTYPES)}")
        if self.modelling not in MODELLING:
            raise BadRequest(f"modelling is {self.modelling!r}, not one of {', '.join(MODELLING)}")
        if self.kernels not in KERNELS:
            raise BadRequest(f"kernels is {self.kernels!r}, not one of {', '.join(KERNELS)}")
        if self.log_format not in FORMATS:
            raise BadRequest(f"log_format is {self.log_format!r}, not one of {', '.join(FORMATS)}")
        if self.log_level not in LEVELS:
            raise BadRequest(f"log_level is {self.log_level!r}, not one of {', '.join(LEVELS)}")
        for name in ("batch_tokens", "unit_tokens"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.memory_bytes, self.max_pages, self.num_threads) < 0:
            raise BadRequest("memory_bytes, max_pages and num_threads must not be negative")

    @property
    def state_path(self) -> Path:
        return Path(self.state_dir)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "WorkerConfig":
        """Read what `to_json` wrote; an unknown key is an error."""
        values = json.loads(line)
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise BadRequest(f"worker config has no field {sorted(unknown)[0]!r}")
        return cls(**values)
