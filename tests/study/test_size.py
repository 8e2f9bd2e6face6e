"""The density that fits a budget, for each way to count what a mask costs."""

from __future__ import annotations

import pytest

from onnx_obc.study.size import Mask, density, entropy, without_zeros


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("paper", (0.125, 0.1875, 0.25, 0.5)),
        ("bitmap", (0.0625, 0.125, 0.1875, 0.4375)),
        ("entropy", (0.0964, 0.1495, 0.2043, 0.4382)),
    ],
)
def test_density_at_the_size_of_a_quantized_weight(mask: Mask, expected: tuple[float, ...]) -> None:
    found = [density(bits, mask) for bits in (2, 3, 4, 8)]
    assert found == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("bits", [0.3, 1.7, 2.0, 4.5, 9.0])
@pytest.mark.parametrize("value_bits", [2.0, 3.0, 8.0, 16.0])
def test_a_mask_of_its_entropy_fills_the_budget(bits: float, value_bits: float) -> None:
    share = density(bits, "entropy", value_bits)
    assert share is not None
    if bits >= value_bits:
        assert share == 1
    else:
        assert share * value_bits + entropy(share) == pytest.approx(bits, rel=1e-12)


def test_budgets_at_the_ends() -> None:
    assert density(0.9, "bitmap") is None and density(-1.0) is None and density(-0.1, "entropy") is None
    assert density(1, "bitmap") == 0 and density(0) == 0 and density(0, "entropy") == pytest.approx(0, abs=1e-12)
    assert density(16) == 1 and density(16, "bitmap") == 15 / 16 and density(17, "bitmap") == 1 and density(40) == 1


def test_entropy() -> None:
    assert entropy(0.0) == entropy(1.0) == 0 and entropy(0.5) == 1 and entropy(0.11) == pytest.approx(0.4999, abs=1e-4)


def test_zero_codes_that_are_not_stored() -> None:
    """With z the share of zero codes, quantization's size is (1 − z) · b/16 of the dense weight's."""
    assert density(without_zeros(4, 0.352)) == pytest.approx((1 - 0.352) * 4 / 16)
