"""Every example of every operator: the kernels against the references, in each layout and dtype.

Each operator's own tests have what is particular to it. The emulator runs this file too.
"""

from __future__ import annotations

import pytest
import torch

from flowfuse.ops import EXAMPLES, OPERATORS, build_info
from flowfuse.ops.examples import DTYPES, LAYOUTS, TOLERANCE
from flowfuse.ops.extension import kernels_on

pytestmark = pytest.mark.skipif(
    not build_info()["extension"], reason="the compiled operators are not built"
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_agrees_with_the_reference(name, layout, dtype):
    example = EXAMPLES[name](dtype, (2, 7, 9)).laid_out(layout)
    with kernels_on():  # on no device
        expected = example.run()
    for found, wanted in zip(example.run(), expected, strict=True):
        assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
        if not wanted.is_floating_point():
            assert torch.equal(found, wanted)
            continue
        limit = example.rounding * TOLERANCE[wanted.dtype]
        finite = wanted[wanted.isfinite()].double().abs()
        atol = limit * float(finite.max()) if finite.numel() else 0.0
        torch.testing.assert_close(found, wanted, rtol=limit, atol=atol, equal_nan=True)


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_an_example(name):
    assert any(example.startswith(name) for example in EXAMPLES)
