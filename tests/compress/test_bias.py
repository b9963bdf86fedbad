"""Biases on the accumulator's grid."""

import numpy as np

from octavo.compress.bias import snap


def test_a_bias_that_rounds_to_zero_from_below_is_a_plain_zero():
    """−0 has no int32 code: a file would give back another digest."""
    made = snap(np.array([-1e-4, 1e-4, -0.3], np.float32), np.full(3, 2.0**-9))
    assert made.codes.tolist() == [0, 0, -154]
    assert not np.signbit(made.values[0])
