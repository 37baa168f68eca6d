"""Adapters in either form, which the head has, too."""

import interpreter
import pytest
from lora_helpers import make_store

from weft.engine.adapters.store import AdapterStore


@pytest.fixture(params=[False, True], ids=["batched", "triton"])
def store(request: pytest.FixtureRequest) -> AdapterStore:
    device = interpreter.kernel_device() if request.param else "cpu"
    return make_store(uses_triton=request.param, device=device)
