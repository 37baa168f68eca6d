"""One tenant of `bench/gateway.py`, written once for two clients with the same names.

    python gateway_tenant.py tinker|weft.client ADDRESS MODEL SEED SECONDS steps|samples

Says "ready", waits for a line on stdin, works, and prints one line of JSON. Needs nothing of Weft
when it is told to use `tinker`.
"""

import importlib
import json
import random
import sys
import time
import warnings
from typing import Any

NUM_DATUMS, DATUM_TOKENS, VOCAB_SIZE = 4, 64, 512
NUM_WARM = 10
IN_FLIGHT = 16  # samples of one tenant
PROMPT_TOKENS, NEW_TOKENS = 32, 16


def main() -> None:
    """Run the tenant that the arguments ask for."""
    name, address, model, seed, seconds, what = sys.argv[1:]
    warnings.simplefilter("ignore")  # the SDK tells of names it will give up
    api = importlib.import_module(name)
    service = api.ServiceClient(base_url=address, api_key="tml-bench")
    run = service.create_lora_training_client(model, rank=8, seed=int(seed)).result()
    random.seed(int(seed))
    work = train if what == "steps" else sample
    latencies, cpu_s = work(api, run, float(seconds))
    print(json.dumps({"latencies_ms": latencies, "cpu_s": cpu_s}), flush=True)


def wait_for_start() -> None:
    """Say that all is ready, and wait for the others."""
    print("ready", flush=True)
    sys.stdin.readline()


def train(api: Any, run: Any, seconds: float) -> tuple[list[float], float]:
    """Steps of forward_backward and optim_step, submitted together; ms each, and CPU seconds."""
    data = []
    for _ in range(NUM_DATUMS):
        tokens = [random.randrange(VOCAB_SIZE) for _ in range(DATUM_TOKENS + 1)]
        inputs = {"target_tokens": tokens[1:], "weights": [1.0] * DATUM_TOKENS}
        data.append(
            api.Datum(model_input=api.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)
        )

    def step() -> None:
        passed = run.forward_backward(data, "cross_entropy")
        run.optim_step(api.AdamParams(learning_rate=1e-4)).result()
        passed.result()

    for _ in range(NUM_WARM):
        step()
    wait_for_start()
    latencies: list[float] = []
    used, deadline = time.process_time(), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        begin = time.perf_counter()
        step()
        latencies.append(1e3 * (time.perf_counter() - begin))
    return latencies, time.process_time() - used


def sample(api: Any, run: Any, seconds: float) -> tuple[list[float], float]:
    """Samples, so many in flight at a time; ms each, and CPU seconds."""
    sampler = run.save_weights_and_get_sampling_client().result()
    tokens = [random.randrange(VOCAB_SIZE) for _ in range(PROMPT_TOKENS)]
    prompt = api.ModelInput.from_ints(tokens)
    params = api.SamplingParams(max_tokens=NEW_TOKENS, stop=[])

    def ask() -> tuple[float, Any]:
        return time.perf_counter(), sampler.sample(prompt, 1, params)

    for _, future in [ask() for _ in range(NUM_WARM)]:
        future.result()
    wait_for_start()
    latencies: list[float] = []
    used, deadline = time.process_time(), time.perf_counter() + seconds
    asked = [ask() for _ in range(IN_FLIGHT)]
    while asked:
        begin, future = asked.pop(0)
        future.result()
        latencies.append(1e3 * (time.perf_counter() - begin))
        if time.perf_counter() < deadline:
            asked.append(ask())
    return latencies, time.process_time() - used


if __name__ == "__main__":
    main()
