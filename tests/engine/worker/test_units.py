from weft.engine.worker.units import Unit, cut_units


def test_datums_fill_a_unit_up_to_its_limit() -> None:
    assert cut_units([4, 4, 4, 4], 8) == (Unit(0, 2, 8), Unit(2, 4, 8))


def test_a_datum_longer_than_a_unit_stands_alone() -> None:
    assert cut_units([2, 20, 3], 8) == (Unit(0, 1, 2), Unit(1, 2, 20), Unit(2, 3, 3))


def test_no_datums_make_no_units() -> None:
    assert cut_units([], 8) == ()


def test_the_cut_of_a_prefix_is_a_prefix_of_the_cut() -> None:
    lengths = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    whole = cut_units(lengths, 10)
    assert cut_units(lengths[: whole[2].last_datum], 10) == whole[:3]
