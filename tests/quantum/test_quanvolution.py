"""A quantum convolution puts the right pixels on the right wires, at the right places."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

import jaxsim.quantum as jq
from tests.support.circuits import random, strongly

IDENTITY = jq.compile_circuit(jq.Circuit(4, ()))


def quanv2d(x, kernel, spec, **options):
    """The layer, compiled: its operations one by one would each be a program."""
    return jax.jit(lambda x, kernel: jq.quanv2d(x, kernel, spec, **options))(x, kernel)


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


def test_the_number_of_circuits_is_that_of_the_literature():
    def count(stride, dilation):
        return jq.n_circuits((28, 28), jq.QuanvSpec(stride=stride, dilation=dilation))

    assert [count(1, d) for d in (1, 2, 3, 4)] == [729, 676, 625, 576]
    assert [count(2, d) for d in (1, 2, 3)] == [196, 169, 169]
    for stride, dilation in ((1, 1), (1, 4), (2, 2), (2, 3)):
        spec = jq.QuanvSpec(stride=stride, dilation=dilation)
        shape = jax.eval_shape(
            lambda x, s=spec: jq.quanv2d(x, IDENTITY, s), images(2, 28, 28)
        ).shape
        assert shape == (2, *jq.out_shape((28, 28), spec), 4)
        assert shape[1] * shape[2] == count(stride, dilation)


def test_taps_go_to_wires_row_by_row():
    """Four pixels that differ: the identity circuit shows which wire has which."""
    x = jnp.array([[[0.1, 0.2], [0.3, 0.4]]])
    found = quanv2d(x, IDENTITY, jq.QuanvSpec())
    np.testing.assert_allclose(found[0, 0, 0], np.cos(np.pi * x.ravel()), atol=1e-6)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
paddings = st.one_of(
    st.sampled_from(["VALID", "SAME"]),
    st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
)


@given(
    kernel_size=st.sampled_from([(1, 1), (2, 2), (1, 3), (3, 1), (2, 1)]),
    stride=pairs,
    dilation=pairs,
    padding=paddings,
    seed=st.integers(0, 100),
)
@settings(max_examples=10)
def test_windows_are_those_of_a_convolution(kernel_size, stride, dilation, padding, seed):
    """XLA's own patches, for every stride, dilation and padding, over two channels."""
    taps = kernel_size[0] * kernel_size[1]
    spec = jq.QuanvSpec(kernel_size, stride, dilation, padding)
    kernel = jq.compile_circuit(jq.Circuit(taps, ()), method="gemm")

    @jax.jit
    def both(x):
        patches = jax.lax.conv_general_dilated_patches(
            x,
            kernel_size,
            stride,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jq.quanv2d(x, kernel, spec), patches

    found, patches = map(np.asarray, both(images(2, 8, 9, 2, seed=seed)))
    assert found.shape == patches.shape
    np.testing.assert_allclose(found, np.cos(np.pi * patches), atol=2e-6)


@pytest.mark.parametrize("padding", ["VALID", "SAME", ((1, 0), (2, 1))])
def test_the_layer_is_the_reference_layer(padding):
    """PennyLane, a window at a time."""
    qfunc, _ = random(4)
    spec = jq.QuanvSpec((2, 2), (2, 1), (1, 2), padding)
    x = images(1, 5, 5, 2)
    expected = jq.qnode_reference(qfunc, spec)(x)
    methods = ("gemm", "pauli", "sparse")
    kernels = [jq.compile_circuit(qfunc, 4, method=method) for method in methods]
    layers = jax.jit(lambda x, kernels: [jq.quanv2d(x, kernel, spec) for kernel in kernels])
    for found in layers(x, kernels):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_encodings_are_functions_of_a_pixel():
    x = images(2, 4, 4)
    spec = jq.QuanvSpec(encoding=jq.threshold(0.3))
    found = quanv2d(x, IDENTITY, spec)
    patches = np.stack([x[:, i : i + 3, j : j + 3] for i in (0, 1) for j in (0, 1)], -1)
    np.testing.assert_allclose(found, np.where(patches > 0.3, -1.0, 1.0), atol=1e-6)
    own = quanv2d(x, IDENTITY, jq.QuanvSpec(encoding=jnp.arcsin))
    np.testing.assert_allclose(own, np.sqrt(1 - patches**2), atol=1e-5)
    expected = jq.qnode_reference(random(4)[0], spec)(x)
    kernel = jq.compile_circuit(random(4)[0], 4)
    np.testing.assert_allclose(quanv2d(x, kernel, spec), expected, atol=1e-6)


@pytest.mark.parametrize("method", ["gemm", "pauli", "sparse"])
def test_derivatives_with_respect_to_pixels(method):
    kernel = jq.compile_circuit(strongly(2, 1)[0], 2, method=method)
    spec = jq.QuanvSpec((1, 2))
    x = 0.1 + 0.8 * images(1, 2, 3)
    layer = jax.jit(lambda x: jq.quanv2d(x, kernel, spec))
    check_grads(layer, (x,), 1, modes=["rev"], eps=1e-2, rtol=1e-2)


def test_shots_of_a_layer_are_near_its_expectation():
    kernel = jq.compile_circuit(strongly(4)[0], 4)
    x, spec = images(1, 5, 5), jq.QuanvSpec()
    exact = quanv2d(x, kernel, spec)
    for joint in (False, True):
        drawn = quanv2d(x, kernel, spec, shots=2000, key=jax.random.key(0), joint=joint)
        assert 0 < np.abs(drawn - exact).max() < 5 / 2000**0.5


def test_wires_of_a_layer_agree_in_joint_shots_alone():
    """A Bell pair at every place of an image."""
    kernel = jq.compile_circuit(lambda: [qml.Hadamard(0), qml.CNOT(wires=[0, 1])], 2)
    spec, zero = jq.QuanvSpec((1, 2)), jnp.zeros((1, 20, 21))
    for joint in (False, True):
        drawn = quanv2d(zero, kernel, spec, shots=64, key=jax.random.key(0), joint=joint)
        one, other = np.asarray(drawn).reshape(-1, 2).T
        correlation = np.corrcoef(one, other)[0, 1]
        assert correlation > 0.999 if joint else abs(correlation) < 0.25


def test_pixels_beyond_the_range_of_the_angle_are_warned_of():
    with pytest.warns(UserWarning, match=r"x in \[-1, 2\]: RY\(πx\) cannot tell"):
        jq.quanv2d(jnp.array([[[-1.0, 2.0], [0, 0]]]), IDENTITY, jq.QuanvSpec())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jq.quanv2d(images(1, 3, 3), IDENTITY, jq.QuanvSpec())
        jq.quanv2d(5 * images(1, 3, 3), IDENTITY, jq.QuanvSpec(encoding=jq.threshold()))


BAD = {
    r"stride=0: must be an int of at least 1": lambda: jq.QuanvSpec(stride=0),
    r"dilation=0: must": lambda: jq.QuanvSpec(dilation=(1, 0)),
    r"kernel_size=1.5: must": lambda: jq.QuanvSpec(1.5),
    r"kernel_size=\(1, 2, 3\): must be an int or two": lambda: jq.QuanvSpec((1, 2, 3)),
    r"padding='FULL'": lambda: jq.QuanvSpec(padding="FULL"),
    r"padding=1: must be": lambda: jq.QuanvSpec(padding=1),
    r"padding=-1: must": lambda: jq.QuanvSpec(padding=((0, -1), (0, 0))),
    r"encoding='ry': must": lambda: jq.QuanvSpec(encoding="ry"),
    r"at=nan": lambda: jq.threshold(float("nan")),
    r"dilation=\(3, 3\): the taps span 4 rows; the padded image has 3": lambda: jq.quanv2d(
        images(1, 3, 5), IDENTITY, jq.QuanvSpec(dilation=3)
    ),
    "the taps span 4 columns": lambda: jq.out_shape((5, 3), jq.QuanvSpec(dilation=3)),
    r"x\[3, 3\]: must be": lambda: jq.quanv2d(images(3, 3), IDENTITY, jq.QuanvSpec()),
    "kernel: 4 wires; kernel_size=.* needs 9": lambda: jq.quanv2d(
        images(1, 5, 5), IDENTITY, jq.QuanvSpec(3)
    ),
    "shots=0": lambda: jq.quanv2d(images(1, 3, 3), IDENTITY, jq.QuanvSpec(), shots=0),
    "key=None": lambda: jq.quanv2d(images(1, 3, 3), IDENTITY, jq.QuanvSpec(), shots=10),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_nine_wires_are_the_matched_receptive_field():
    """3 × 3 taps undilated cover what 2 × 2 taps of dilation 2 do."""
    qfunc, _ = random(9, 1)
    kernel = jq.compile_circuit(qfunc, 9)
    spec = jq.QuanvSpec(3)
    x = images(1, 4, 4)
    assert jq.out_shape((28, 28), spec) == jq.out_shape((28, 28), jq.QuanvSpec(dilation=2))
    expected = jq.qnode_reference(qfunc, spec)(x)
    np.testing.assert_allclose(quanv2d(x, kernel, spec), expected, atol=1e-6)


def test_a_layer_takes_no_import_of_pennylane():
    """Only reading a PennyLane function does."""
    import subprocess
    import sys

    code = (
        "import sys, jax, jaxsim, jaxsim.quantum, jaxsim.models.quanv as q\n"
        "x = jax.numpy.zeros((1, 4, 4, 1))\n"
        "q.QuanvConv().init_with_output(jax.random.key(0), x)\n"
        "assert 'pennylane' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
