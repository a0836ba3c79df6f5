"""Costs against published figures."""

import pytest

from mnet.architecture import mobilenet
from mnet.cost import alpha_table, cost, layer_table, resolution_table


def test_multiply_adds_are_those_of_the_paper() -> None:
    """Source: Howard et al. 2017, tables 6 and 7, in millions."""
    assert [round(row.cost.multiply_adds / 1e6) for row in alpha_table()] == [569, 325, 149, 41]
    assert [round(row.cost.multiply_adds / 1e6) for row in resolution_table()] == [569, 418, 291, 186]


def test_parameters_are_those_of_the_paper() -> None:
    assert [round(row.cost.parameters / 1e6, 1) for row in alpha_table()] == [4.3, 2.6, 1.3, 0.5]
    assert {row.cost.parameters for row in resolution_table()} == {4_253_864}  # keras.applications says so too


def test_published_accuracy_stands_beside() -> None:
    assert [row.published_accuracy_percent for row in alpha_table()] == [70.6, 68.4, 63.7, 50.6]
    assert [row.published_accuracy_percent for row in resolution_table()] == [70.6, 69.1, 67.2, 64.4]


def test_layer_table_adds_up_to_the_articles_total() -> None:
    table = layer_table(mobilenet(0.5, (32, 32), classes=10))
    assert sum(row.parameters for row in table) == 834_666
    assert table[1].name == "conv1" and table[1].output_shape == (16, 16, 16) and table[1].parameters == 432
    assert table[1].multiply_adds == 16 * 16 * 16 * 27


@pytest.mark.parametrize(("alpha", "stem_stride", "millions"), [(0.25, 2, 0.835), (0.5, 2, 3.046), (0.5, 1, 12.17)])
def test_small_networks(alpha: float, stem_stride: int, millions: float) -> None:
    net = mobilenet(alpha, (32, 32), classes=10, stem_stride=stem_stride)
    assert cost(net).multiply_adds / 1e6 == pytest.approx(millions, abs=0.006)
