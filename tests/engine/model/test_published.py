"""Published models by their config.json: sizes, context, and what a device of 80 GB makes of them."""

import pytest
from published_models import PUBLISHED, Published

from weft.engine.model.config import ModelConfig

by_name = pytest.mark.parametrize("published", PUBLISHED, ids=lambda model: model.name)


@by_name
def test_the_parameters_are_those_of_the_published_files(published: Published) -> None:
    assert ModelConfig.from_fields(published.fields).num_parameters == published.num_parameters


@by_name
def test_the_context_is_the_longest_that_is_computed_as_published(published: Published) -> None:
    config = ModelConfig.from_fields(published.fields)

    assert config.max_context == published.context
    is_cut = published.context < published.fields["max_position_embeddings"]
    assert bool(config.context_note) == is_cut
