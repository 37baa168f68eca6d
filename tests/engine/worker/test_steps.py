import numpy as np

from weft.engine.worker.commands import Origin, PassWork
from weft.engine.worker.scheduler import Passes, Slice
from weft.engine.worker.steps import list_units, pack
from weft.engine.worker.units import cut_units


def work(job_id: int, lengths: list[int], first_token: int, unit_tokens: int = 4) -> PassWork:
    total = sum(lengths)
    tokens = np.arange(first_token, first_token + total, dtype=np.int32)
    return PassWork(
        origin=Origin(job_id, 1, "local/s", job_id),
        run_id=f"r{job_id}",
        loss_fn="cross_entropy",
        loss_fn_config={},
        forward_only=False,
        part_outputs=(total,),
        tokens=tokens,
        lengths=np.array(lengths, np.int32),
        targets=tokens + 1,
        inputs={"weights": tokens.astype(np.float32)},
        units=cut_units(lengths, unit_tokens),
    )


DECISION = Passes((Slice(1, 0, 2, True), Slice(2, 0, 1, True)), True, 9)
WORKS = [work(1, [2, 2, 3], 10), work(2, [2], 50)]


def test_units_lie_in_the_wished_order() -> None:
    assert list_units(DECISION) == [(0, 0), (0, 1), (1, 0)]
    step = pack(DECISION, WORKS, [2, 0, 1], pad_rows=False)
    assert step.tokens.tolist() == [50, 51, 10, 11, 12, 13, 14, 15, 16]
    assert step.targets.tolist() == [51, 52, 11, 12, 13, 14, 15, 16, 17]
    assert step.unit_slices.tolist() == [1, 0, 0]
    assert step.unit_indices.tolist() == [0, 0, 1]
    assert step.unit_starts.tolist() == [0, 2, 6, 9]


def test_positions_begin_anew_with_every_sequence() -> None:
    step = pack(DECISION, WORKS, [0, 1, 2], pad_rows=False)
    assert step.positions.tolist() == [0, 1, 0, 1, 0, 1, 2, 0, 1]
    assert step.cu_seqlens.tolist() == [0, 2, 4, 7, 9]


def test_padding_fills_the_last_row_tile_and_belongs_to_nobody() -> None:
    step = pack(DECISION, WORKS, [0, 1, 2], pad_rows=True)
    assert len(step.tokens) == 16
    assert step.unit_slices.tolist() == [0, 0, 1, -1]
    assert step.unit_rows.tolist()[-1] == 7
    assert step.inputs["weights"][9:].tolist() == [0.0] * 7


def test_an_input_that_a_loss_lacks_is_zero_for_its_rows() -> None:
    other = work(2, [2], 50)
    mixed = PassWork(
        **{name: getattr(other, name) for name in other.__slots__ if name != "inputs"},
        inputs={"advantages": np.ones(2, np.float32)},
    )
    step = pack(DECISION, [WORKS[0], mixed], [0, 1, 2], pad_rows=False)
    assert step.inputs["advantages"].tolist() == [0.0] * 7 + [1.0, 1.0]
    assert step.inputs["weights"].tolist()[7:] == [0.0, 0.0]
