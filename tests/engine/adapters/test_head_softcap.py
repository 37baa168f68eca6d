"""The head of a model that caps its logits, against autograd."""

import numpy as np
import pytest
import torch
from head_helpers import UNEMBED, bind_units, make_head, on_host
from lora_helpers import SITES, adapter_of, gradient_matrices, make_bases, make_run

from weft.engine.adapters.losses import LossBatch
from weft.engine.adapters.store import AdapterStore
from weft.kernels.reference import lora_linear, target_logprobs

ROWS, SOFTCAP = 40, 1.5  # logits of the case go to about 6


@pytest.mark.parametrize("chunk_rows", [16, 64])
def test_capped_logits_and_their_gradients_equal_autograd(
    store: AdapterStore, chunk_rows: int
) -> None:
    run, rng = make_run(store, 4, seed=1), np.random.default_rng(0)
    base = make_bases((UNEMBED,))[0]
    hidden_TD = torch.from_numpy(3 * rng.normal(size=(ROWS, 32)).astype(np.float32))
    targets, weights = rng.integers(0, 100, ROWS), rng.normal(size=ROWS).astype(np.float32)
    losses = LossBatch.build(
        loss_fns=["cross_entropy"],
        configs=[{}],
        row_counts=[ROWS],
        targets=targets,
        inputs={"weights": weights},
        device=store.device,
        cu_seqlens=np.array([0, ROWS], np.int32),
    )
    linears = bind_units(store, [run], [ROWS])
    store.begin(run)
    on_device_TD = hidden_TD.to(store.device)
    head = make_head(store, on_device_TD, chunk_rows=chunk_rows, softcap=SOFTCAP)
    result = on_host(head.forward_backward(on_device_TD, losses, linears))
    linears.flush()
    store.commit(run)

    exact = hidden_TD.double().requires_grad_()
    adapter = adapter_of(store, run, UNEMBED)
    logits_TV = lora_linear(exact, base.weight_OD, None, [ROWS], [adapter])
    capped_TV = SOFTCAP * torch.tanh(logits_TV / SOFTCAP)
    expected_T = target_logprobs(capped_TV, torch.from_numpy(targets))
    torch.testing.assert_close(
        result.logprobs_T.double(), expected_T.detach(), rtol=1e-5, atol=1e-5
    )
    assert float(logits_TV.detach().abs().max()) > 2 * SOFTCAP
    torch.autograd.backward(-(torch.from_numpy(weights).double() * expected_T).sum())
    found = gradient_matrices(store, run)
    assert adapter is not None
    for mine, leaf in (
        (result.dhidden_TD, exact),
        (found[f"{SITES[UNEMBED].name}.lora_a"], adapter.lora_a),
        (found[f"{SITES[UNEMBED].name}.lora_b"], adapter.lora_b),
    ):
        assert leaf.grad is not None
        torch.testing.assert_close(mine.double(), leaf.grad, rtol=1e-4, atol=1e-5)  # float32 sums
