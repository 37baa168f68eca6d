"""The refusal that says "this decoder is not built for that", apart from damage."""

from ...client.errors import BadRequest


class NotBuilt(BadRequest):
    """The files are sound and ask for a computation that our own decoder does not have.

    Another modelling code may run such a model. A damaged or contradictory file is a plain
    `BadRequest`: nothing should run it.
    """
