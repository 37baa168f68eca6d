"""Watching a server: what a tenant's calls do is told as it happens."""

from tenants import make_data

from weft.client import ServiceClient


def test_a_watcher_sees_a_run_from_its_creation_to_its_last_call(
    service: ServiceClient, model_path: str
) -> None:
    with service.watch() as events:
        run = service.create_lora_training_client(model_path, rank=4)
        run.forward_backward(make_data(1), "cross_entropy").result(60)
        fork = run.fork()
        seen = []
        while ("done", "fork_run") not in seen:
            event = events.get(timeout=60)
            seen.append((event.name, event.fields.get("kind", event.fields.get("run_id"))))
    wanted = [
        ("run_created", run.model_id),
        ("dispatched", "forward_backward"),
        ("done", "forward_backward"),
        ("run_created", fork.model_id),
    ]
    assert [entry for entry in seen if entry in wanted] == wanted
