"""The package as a whole: what it exports, what it loads, and how fast."""

import importlib
import subprocess
import sys

import weft.client


def test_the_exports_are_sorted_and_there() -> None:
    assert sorted(weft.client.__all__) == weft.client.__all__
    assert [name for name in weft.client.__all__ if not hasattr(weft.client, name)] == []


def test_every_public_type_and_error_is_exported() -> None:
    expected = {"APIFuture", "RestClient", "SamplingClient", "ServiceClient", "TrainingClient"}
    for module in ("weft.client.types", "weft.client.errors"):
        for name, value in vars(importlib.import_module(module)).items():
            if isinstance(value, type) and value.__module__.startswith("weft") and name != "Code":
                expected.add(name)
    assert expected - set(weft.client.__all__) == set()


def test_the_import_is_light() -> None:
    code = (
        "import sys, time; begin = time.process_time(); import weft.client; "
        "print(time.process_time() - begin, "
        "[m for m in ('torch', 'transformers', 'safetensors', 'weft.engine') if m in sys.modules])"
    )
    best = 9.0
    for _ in range(3):  # the processor time of one run includes the reading of cold files
        done = subprocess.run(
            [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
        )
        seconds, heavy = done.stdout.split(maxsplit=1)
        assert heavy.strip() == "[]"
        best = min(best, float(seconds))
    assert best < 0.4
