"""Models by any of their names."""

from collections.abc import Iterable

from .messages import ModelCard


def find_card(cards: Iterable[ModelCard], name: str) -> ModelCard | None:
    """The card of a model by its name or an alias, None when there is none."""
    return next((card for card in cards if name == card.name or name in card.aliases), None)
