"""Probes, and finding which rows an output depends on."""

import torch

from weft.engine.hosted.probes import (
    LENGTHS,
    WatchingLinears,
    probe_tokens,
    reached_rows,
)
from weft.engine.model.linear import DenseLinear


class Config:
    """Names three special tokens, two of them in a list."""

    def to_dict(self) -> dict[str, object]:
        return {"eos_token_id": [2, 3], "image_token_id": 4, "hidden_size": 5, "bos_token_id": None}


def test_probes_leave_special_tokens_out_and_are_always_the_same() -> None:
    probes = probe_tokens(Config(), 8, torch.device("cpu"))
    again = probe_tokens(Config(), 8, torch.device("cpu"))
    assert tuple(len(tokens) for tokens in probes) == LENGTHS
    assert not {2, 3, 4} & {int(token) for tokens in probes for token in tokens}
    assert all(torch.equal(*pair) for pair in zip(probes, again, strict=True))


def test_rows_that_an_output_depends_on_are_found_however_little_it_does() -> None:
    base = DenseLinear(torch.eye(4))
    watch = WatchingLinears()
    (y_TD,) = watch.group(torch.ones(6, 4), (base,), (7,))
    hidden_TD = y_TD + 1e-20 * torch.roll(y_TD, 1, 0)  # each row feels the one before it
    reached = reached_rows(watch, hidden_TD, 3)
    assert reached[7].tolist() == [True, True, True, False, False, True]
