"""Small rotary scalings of every kind, in the spelling of `rope_parameters`."""

from typing import Any

LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": LINEAR,
    "dynamic": DYNAMIC,
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn attention factor": YARN | {"attention_factor": 0.7},
    "yarn mscale": YARN | {"mscale": 0.707, "mscale_all_dim": 1.2},
    "yarn mscale alone": YARN | {"mscale": 0.707},
    "yarn betas": YARN | {"beta_fast": 8.0, "beta_slow": 2.0},
    "yarn fractional ramp": YARN | {"truncate": False},
    "yarn shrinking": YARN | {"factor": 0.5},
    "yarn by ratio": YARN | {"factor": None},
}
