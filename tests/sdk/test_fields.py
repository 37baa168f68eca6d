"""Nothing is silent: every field of every request of the newest SDK has an effect or a refusal."""

import pytest
from fields import Bench, Check, all_fields
from serving import Server
from talking import since
from tinker import ServiceClient

pytestmark = since(0, 38)


def _cases() -> dict[str, Check]:
    import fields_of_sampling
    import fields_of_service
    import fields_of_training

    return {**fields_of_training.CASES, **fields_of_sampling.CASES, **fields_of_service.CASES}


try:
    CASES = _cases()
except (ImportError, AttributeError):  # an older SDK has not all of the types
    CASES = {}


@pytest.mark.parametrize("field", sorted(CASES))
def test_a_field_has_an_effect_or_is_refused_by_name(
    server: Server, service: ServiceClient, field: str
) -> None:
    CASES[field](Bench(server, service))


def test_every_field_is_tried() -> None:
    assert set(CASES) == all_fields()
