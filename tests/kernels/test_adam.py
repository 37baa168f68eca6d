"""AdamW over several adapters against the oracle."""

import torch

from weft.kernels.adam import AdamSettings, AdamTensors, adamw_
from weft.kernels.reference import AdamState, adamw

SETTINGS = [
    AdamSettings(learning_rate=1e-2, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0),
    AdamSettings(learning_rate=1e-1, beta1=0.5, beta2=0.99, eps=1e-3, weight_decay=0.4),
]


def test_each_adapter_has_its_own_settings_and_step() -> None:
    generator = torch.Generator().manual_seed(0)
    items, expected = [], []
    for index, size in enumerate((16, 33, 1, 70)):
        tensors = [torch.randn(size, generator=generator) for _ in range(3)]
        moment2 = torch.rand(size, generator=generator)
        settings = SETTINGS[index % 2]
        state = AdamState(tensors[0].clone(), tensors[2].clone(), moment2.clone(), index)
        expected.append(
            adamw(
                state,
                tensors[1],
                learning_rate=settings.learning_rate,
                beta1=settings.beta1,
                beta2=settings.beta2,
                eps=settings.eps,
                weight_decay=settings.weight_decay,
            )
        )
        items.append(AdamTensors(tensors[0], tensors[1], tensors[2], moment2, index + 1))
    adamw_(items, [SETTINGS[index % 2] for index in range(4)])
    for item, state in zip(items, expected, strict=True):
        # float32 against float64
        torch.testing.assert_close(item.weight.double(), state.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(item.moment1.double(), state.moment1, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(item.moment2.double(), state.moment2, rtol=1e-5, atol=1e-6)
