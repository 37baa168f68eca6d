"""The documented tables are those of the code."""

import pytest
from doc_tables import DOCS, TABLES, split

from weft.client import errors
from weft.client.errors import CODES, EngineFailed, WeftError, from_code
from weft.client.limits import LIMITS


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_documented_table_equals_that_of_the_code(name: str) -> None:
    expected = TABLES[name]()
    _, table, _ = split((DOCS / name).read_text(), expected)
    assert table == expected, "python tests/helpers/doc_tables.py writes it"


def test_every_limit_gives_a_documented_error() -> None:
    assert {row.code for row in LIMITS.values()} - set(CODES) == {""}


def test_every_code_becomes_its_exception() -> None:
    for code, row in CODES.items():
        error = from_code(code, "why")
        assert (type(error), error.code, str(error)) == (row.exception, code, "why")
    assert type(from_code("new", "why")) is EngineFailed


def test_every_exception_has_a_code_of_the_table() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, WeftError)
    ]
    assert {value.code for value in classes} - set(CODES) == set()
