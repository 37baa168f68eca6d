"""Buffers that grow."""

import torch

from weft.kernels.workspace import Workspace


def test_a_buffer_is_reused_while_it_is_large_enough() -> None:
    workspace = Workspace("cpu")
    first = workspace.take("a", (4, 5), torch.float32)
    second = workspace.take("a", (3, 2), torch.float32)
    assert second.data_ptr() == first.data_ptr()
    assert second.shape == (3, 2)


def test_names_and_types_have_buffers_of_their_own() -> None:
    workspace = Workspace("cpu")
    places = {
        workspace.take(name, (8,), dtype).data_ptr()
        for name in ("a", "b")
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(places) == 4


def test_growing_forgets_what_was_in_the_buffer() -> None:
    workspace = Workspace("cpu")
    workspace.take("a", (4,), torch.float32)
    workspace.contents["a"] = "something"
    workspace.take("a", (2,), torch.float32)
    assert workspace.contents["a"] == "something"
    workspace.take("a", (40,), torch.float32)
    assert "a" not in workspace.contents
