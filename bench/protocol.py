"""What do wire and broker cost, against the bare means they are made of?

    python bench/protocol.py [--quick]

wire     datums of 512 tokens with arrays (int64, numpy's default) or Python lists inside, to frames
         ready to be sent, digests included; JSON does the same with `json.dumps` of lists.
broker   one client with 64 requests on their way over ipc, a broker in a process of its own, and a
         worker that answers at once. The bare sides are pyzmq alone, with the same frames: a ROUTER
         that echoes, and a ROUTER-ROUTER forwarder between client and worker. Rounds of all three
         take turns, so that a slow minute of the machine slows all of them.

No model runs here. The three processes share the cores of the machine: with two of them the broker
has less than one for itself.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import zmq
from harness import Table, spread, write_result

from weft.client import wire
from weft.client.arrays import unpack_arrays
from weft.client.batch import Part, build_parts
from weft.client.messages import (
    Ack,
    CreateRun,
    ForwardBackward,
    Hello,
    ModelCard,
    OptimStep,
    Reply,
    Sample,
    Welcome,
)
from weft.client.types import Datum, ModelInput
from weft.client.worker_messages import WorkerHello, WorkerReady
from weft.engine.broker.shell import Broker

CARD = ModelCard(name="bench", vocab_size=151_936, max_context=32_768, max_rank=256)
NUM_DATUMS, DATUM_TOKENS = 256, 512
WINDOW = 64  # requests on their way
SECRET = "bench"
SESSION = "0" * 32
STOP = b"stop"

Inputs = tuple[Any, dict[str, Any]]


# --- wire -----------------------------------------------------------------------------------------


def make_inputs(kind: str) -> list[Inputs]:
    """Tokens and loss inputs of a batch, as arrays; prompts have weight or advantage 0."""
    generator = np.random.default_rng(0)
    made: list[Inputs] = []
    for _ in range(NUM_DATUMS):
        tokens = generator.integers(0, CARD.vocab_size, DATUM_TOKENS + 1)
        inputs: dict[str, Any] = {"target_tokens": tokens[1:]}
        if kind == "sft":
            inputs["weights"] = np.ones(DATUM_TOKENS, np.float32)
        else:
            prompt = int(generator.integers(50, 200))
            advantages = np.full(DATUM_TOKENS, generator.normal(), np.float32)
            advantages[:prompt] = 0
            inputs["advantages"] = advantages
            inputs["logprobs"] = -generator.random(DATUM_TOKENS, np.float32)
        made.append((tokens[:-1], inputs))
    return made


def as_lists(inputs: list[Inputs]) -> list[Inputs]:
    """The same with Python lists; targets share the integers of the tokens, as slices do."""
    made: list[Inputs] = []
    for tokens, columns in inputs:
        numbers = [*tokens.tolist(), int(columns["target_tokens"][-1])]
        lists = {name: column.tolist() for name, column in columns.items()}
        lists["target_tokens"] = numbers[1:]
        if "weights" in lists:
            lists["weights"] = [1.0] * DATUM_TOKENS
        made.append((numbers[:-1], lists))
    return made


def pack(inputs: list[Inputs], loss_fn: str) -> list[tuple[bytes, Part]]:
    """From what a loop holds to what is sent."""
    data = [Datum(ModelInput.from_ints(tokens), columns) for tokens, columns in inputs]
    parts = build_parts(data, loss_fn, CARD)
    return [
        (wire.encode_signed(header_of(part, index, len(parts), loss_fn), part.frames), part)
        for index, part in enumerate(parts)
    ]


def header_of(
    part: Part, index: int, num_parts: int, loss_fn: str, seq: int = 1
) -> ForwardBackward:
    """The header of one part of a call."""
    return ForwardBackward(
        request_id=seq + 1,
        run_id=f"{SESSION}:train:0",
        seq=seq,
        digest=b"",
        part=index,
        num_parts=num_parts,
        num_datums=len(part.lengths),
        num_tokens=part.num_tokens,
        loss_fn=loss_fn,
        loss_fn_config={},
        forward_only=False,
        arrays=part.arrays,
    )


def unpack(packed: list[tuple[bytes, Part]]) -> int:
    """What a worker does with it first."""
    total = 0
    for raw, part in packed:
        header = wire.decode(raw)
        assert isinstance(header, ForwardBackward)
        total += len(unpack_arrays(header.arrays, part.frames)["tokens"])
    return total


def dump(inputs: list[Inputs]) -> bytes:
    """The same as JSON."""
    plain = [
        {
            "tokens": _plain(tokens),
            "loss_fn_inputs": {name: _plain(column) for name, column in columns.items()},
        }
        for tokens, columns in inputs
    ]
    return json.dumps(plain).encode()


def _plain(column: Any) -> Any:
    return column.tolist() if isinstance(column, np.ndarray) else column


def seconds(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor time of calls that take turns: one thread works, and others may use the machine."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            begin = time.thread_time()
            function()
            taken[name].append(time.thread_time() - begin)
    return {name: values[1:] for name, values in taken.items()}  # the first warms up


def measure_wire(kind: str, rounds: int) -> dict[str, float]:
    """Rates of one kind of data."""
    loss_fn = "cross_entropy" if kind == "sft" else "importance_sampling"
    inputs = make_inputs(kind)
    lists = as_lists(inputs)
    packed = pack(inputs, loss_fn)
    num_tokens = NUM_DATUMS * DATUM_TOKENS
    num_bytes = sum(
        tokens.nbytes + sum(column.nbytes for column in columns.values())
        for tokens, columns in inputs
    )
    sent = sum(len(raw) + sum(map(len, part.frames)) for raw, part in packed)
    taken = seconds(
        {
            "arrays": lambda: pack(inputs, loss_fn),
            "json_arrays": lambda: dump(inputs),
            "lists": lambda: pack(lists, loss_fn),
            "json_lists": lambda: dump(lists),
            "unpack": lambda: unpack(packed),
        },
        rounds,
    )
    rates = spread([num_bytes / one / 1e9 for one in taken["arrays"]])
    return {
        "bytes_per_token": sent / num_tokens,
        "json_bytes_per_token": len(dump(inputs)) / num_tokens,
        "pack_gb_s": rates["median"],
        "pack_gb_s_p20": rates["p20"],
        "pack_gb_s_p80": rates["p80"],
        "unpack_gb_s": spread([num_bytes / one / 1e9 for one in taken["unpack"]])["median"],
        "pack_vs_json": _ratio(taken["json_arrays"], taken["arrays"]),
        "lists_mtokens_s": spread([num_tokens / one / 1e6 for one in taken["lists"]])["median"],
        "lists_vs_json": _ratio(taken["json_lists"], taken["lists"]),
    }


def _ratio(slow: list[float], fast: list[float]) -> float:
    return spread([one / other for one, other in zip(slow, fast, strict=True)])["median"]


# --- broker ---------------------------------------------------------------------------------------


def echo_process(address: str, ready: Any) -> None:
    """Bare pyzmq, one hop: a ROUTER that sends back what it gets."""
    context: zmq.Context[Any] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(address)
    ready.set()
    while True:
        frames = router.recv_multipart()
        router.send_multipart(frames)
        if frames[1] == STOP:
            break
    context.destroy(linger=1000)


def forwarder_process(front_address: str, back_address: str, ready: Any) -> None:
    """Bare pyzmq, two hops: passes messages between clients and one worker."""
    context: zmq.Context[Any] = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    front.bind(front_address)
    back.bind(back_address)
    ready.set()
    worker = back.recv_multipart()[0]
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    is_open = True
    while is_open:
        polled = dict(poller.poll())
        if front in polled:
            is_open = _drain(front, lambda frames: back.send_multipart([worker, *frames]))
        if back in polled:
            _drain(back, lambda frames: front.send_multipart(frames[1:]))
    context.destroy(linger=1000)


def _drain(socket: "zmq.Socket[Any]", use: Callable[[list[bytes]], Any]) -> bool:
    """Use up to 64 waiting messages; False when one of them says stop."""
    is_open = True
    for _ in range(64):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            break
        use(frames)
        is_open = is_open and frames[1] != STOP
    return is_open


def bare_worker_process(address: str) -> None:
    """Sends back what it gets."""
    context: zmq.Context[Any] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(address)
    dealer.send(b"")
    while True:
        frames = dealer.recv_multipart()
        dealer.send_multipart(frames)
        if frames[1] == STOP:
            break
    context.destroy(linger=1000)


def broker_process(front_address: str, back_address: str, ready: Any, stop: Any) -> None:
    """The broker as it is."""
    with Broker([front_address], back_address, secret=SECRET):
        ready.set()
        stop.wait()


def worker_process(address: str) -> None:
    """Answers every dispatch at once, with as little code as the protocol allows."""
    context: zmq.Context[Any] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(address)
    hello = WorkerHello(versions=[1], worker_id="bench", secret=SECRET, pid=0)
    dealer.send(wire.encode(hello))
    ready = WorkerReady(model=CARD, train_credit=1 << 30, sample_credit=1 << 30)
    dealer.send(wire.encode(ready))
    reply = {"kind": "reply", "result": {"base_model": CARD.name, "metrics": {}}}
    while True:
        frames = dealer.recv_multipart()
        dispatch = msgpack.unpackb(frames[0])
        if dispatch["kind"] == "stop":
            break
        if dispatch["kind"] != "dispatch":
            continue
        reply["request_id"] = msgpack.unpackb(frames[1])["request_id"]
        done = {
            "kind": "done",
            "dispatch_id": dispatch["dispatch_id"],
            "lease_epoch": dispatch["lease_epoch"],
        }
        dealer.send_multipart([msgpack.packb(done), msgpack.packb(reply)])
    context.destroy(linger=1000)


def make_requests(kind: str, count: int, first_seq: int) -> list[list[bytes]]:
    """Encoded requests of one run or sampler, ready to be sent."""
    tokens = np.random.default_rng(1).integers(0, CARD.vocab_size, 257)
    data = [
        Datum(ModelInput.from_ints(tokens[i : i + 64]), {"target_tokens": tokens[i + 1 : i + 65]})
        for i in range(0, 256, 64)
    ]
    (part,) = build_parts(data, "cross_entropy", CARD)
    frames = [bytes(frame) for frame in part.frames]
    requests = []
    for seq in range(first_seq, first_seq + count):
        if kind == "forward_backward":
            header: Any = header_of(part, 0, 1, "cross_entropy", seq)
            requests.append([wire.encode_signed(header, frames), *frames])
        elif kind == "optim_step":
            header = OptimStep(
                request_id=seq + 1,
                run_id=f"{SESSION}:train:0",
                seq=seq,
                digest=b"",
                learning_rate=1e-4,
                beta1=0.9,
                beta2=0.95,
                eps=1e-12,
                weight_decay=0.0,
                grad_clip_norm=0.0,
            )
            requests.append([wire.encode_signed(header, [])])
        else:
            header = Sample(
                request_id=seq + 1,
                sampler_id=f"{SESSION}:sample:0",
                digest=b"",
                num_tokens=part.num_tokens,
                num_samples=1,
                max_tokens=16,
                temperature=1.0,
                top_k=-1,
                top_p=1.0,
                seed=1,
                stop_tokens=[],
                stop_strings=[],
                default_stop=True,
                prompt_logprobs=False,
                arrays=part.arrays[:1],
            )
            requests.append([wire.encode_signed(header, frames[:1]), frames[0]])
    return requests


def drive(dealer: "zmq.Socket[Any]", requests: list[list[bytes]], first_id: int = 0) -> float:
    """Requests per second with a window of them on their way; acknowledges when given ids."""
    begin = time.perf_counter()
    sent = received = 0
    while received < len(requests):
        while sent < len(requests) and sent - received < WINDOW:
            dealer.send_multipart(requests[sent])
            sent += 1
        answer = dealer.recv_multipart()
        if first_id and len(answer[0]) < 200 and b"failure" in answer[0]:
            raise RuntimeError(wire.decode(answer[0]))
        received += 1
        if first_id and received % WINDOW == 0:
            last = first_id + received
            ack = Ack(request_ids=list(range(last - WINDOW, last)))
            dealer.send(wire.encode(ack))
    return len(requests) / (time.perf_counter() - begin)


def latency_ms(dealer: "zmq.Socket[Any]", requests: list[list[bytes]]) -> dict[str, float]:
    """The time of one request alone."""
    taken = []
    for request in requests:
        begin = time.perf_counter()
        dealer.send_multipart(request)
        dealer.recv_multipart()
        taken.append(1e3 * (time.perf_counter() - begin))
    return spread(taken)


def greet(dealer: "zmq.Socket[Any]") -> None:
    """Open a session and a run, once the worker is there."""
    dealer.send(wire.encode(Hello(versions=[1], session_id=SESSION)))
    while True:
        header = wire.decode(dealer.recv())
        if isinstance(header, Welcome) and header.models:
            break
        time.sleep(0.05)
        dealer.send(wire.encode(Hello(versions=[1], session_id=SESSION)))
    create = CreateRun(
        request_id=1,
        run_id=f"{SESSION}:train:0",
        seq=0,
        digest=b"",
        base_model=CARD.name,
        rank=8,
        alpha=32.0,
        seed=0,
        train_attn=True,
        train_mlp=True,
        train_unembed=True,
    )
    dealer.send(wire.encode_signed(create, []))
    answer = wire.decode(dealer.recv_multipart()[0])
    if not isinstance(answer, Reply):
        raise RuntimeError(answer)


def measure_broker(kind: str, rounds: int, count: int) -> dict[str, float]:
    """Round trips per second of the broker and of both bare sides, in turns."""
    spawn = multiprocessing.get_context("spawn")
    context: zmq.Context[Any] = zmq.Context()
    with tempfile.TemporaryDirectory() as folder:
        names = ("echo", "forward", "forward_back", "broker", "broker_back")
        echo, forward, forward_back, front, back = (f"ipc://{folder}/{name}" for name in names)
        ready, stop = [spawn.Event() for _ in range(3)], spawn.Event()
        processes = [
            spawn.Process(target=echo_process, args=(echo, ready[0])),
            spawn.Process(target=forwarder_process, args=(forward, forward_back, ready[1])),
            spawn.Process(target=bare_worker_process, args=(forward_back,)),
            spawn.Process(target=broker_process, args=(front, back, ready[2], stop)),
            spawn.Process(target=worker_process, args=(back,)),
        ]
        for process in processes:
            process.start()
        for event in ready:
            event.wait(60)
        dealers = {}
        for name, address in (("echo", echo), ("forwarder", forward), ("broker", front)):
            dealers[name] = context.socket(zmq.DEALER)
            dealers[name].connect(address)
        greet(dealers["broker"])
        rates: dict[str, list[float]] = {name: [] for name in dealers}
        next_seq = 1
        for _ in range(rounds):
            requests = make_requests(kind, count, next_seq)
            for name, dealer in dealers.items():
                rates[name].append(drive(dealer, requests, next_seq + 1 if name == "broker" else 0))
            next_seq += count
        alone = make_requests(kind, 200, next_seq)
        latencies = {name: latency_ms(dealer, alone) for name, dealer in dealers.items()}
        dealers["echo"].send(STOP)
        dealers["forwarder"].send(STOP)
        stop.set()
        for process in processes:
            process.join(30)
        context.destroy(linger=0)
    ratios = {
        "vs_echo": spread([b / e for b, e in zip(rates["broker"], rates["echo"], strict=True)]),
        "vs_forwarder": spread(
            [b / f for b, f in zip(rates["broker"], rates["forwarder"], strict=True)]
        ),
    }
    return {
        **{f"{name}_per_s": spread(values)["median"] for name, values in rates.items()},
        **{f"{name}_alone_ms": spent["median"] for name, spent in latencies.items()},
        **{name: value["median"] for name, value in ratios.items()},
        **{f"{name}_p20": value["p20"] for name, value in ratios.items()},
    }


# --- the table ------------------------------------------------------------------------------------

WIRE_GOALS = {
    "sft": {"bytes_per_token": "~ 4", "pack_gb_s": ">= 1", "pack_vs_json": ">= 20",
            "lists_mtokens_s": ">= 25", "lists_vs_json": ">= 3"},
    "rl": {"bytes_per_token": "~ 8", "pack_gb_s": ">= 1", "pack_vs_json": ">= 20",
           "lists_vs_json": ">= 3"},
}  # fmt: skip
BROKER_GOALS = {"vs_echo": ">= 0.25", "vs_forwarder": ">= 0.6"}


def print_rows(table: Table, what: str, found: dict[str, float], goals: dict[str, str]) -> None:
    """One row a figure, with its goal where there is one."""
    for name, value in found.items():
        table.row(what, name, f"{value:.3g}", goals.get(name, ""))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    is_quick = parser.parse_args().quick
    table = Table("what            ", "figure              ", "value", "goal")
    result: dict[str, Any] = {}
    for kind, goals in WIRE_GOALS.items():
        result[f"wire_{kind}"] = measure_wire(kind, rounds=10 if is_quick else 40)
        print_rows(table, f"wire {kind}", result[f"wire_{kind}"], goals)
    for kind in ("forward_backward", "optim_step"):
        found = measure_broker(kind, rounds=3 if is_quick else 9, count=1000)
        result[f"broker_{kind}"] = found
        print_rows(table, kind, found, BROKER_GOALS)
    write_result("protocol", result)


if __name__ == "__main__":
    main()
