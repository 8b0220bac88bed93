"""Noise, shots, encodings and layouts of small circuits, worked out on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pennylane as qml
import pytest

import jaxsim.quantum as jq
from jaxsim.quantum import circuit as circuits
from jaxsim.quantum.heisenberg import diagonals, evolve_observables, pauli_coefficients, signs
from jaxsim.quantum.noise import _check_where

X = np.array([[0, 1], [1, 0]], complex)
CNOT = np.eye(4)[[0, 1, 3, 2]].astype(complex)
# one rotation by RX(0), which leaves the state and is followed by the noise once
IDLE = jq.Circuit(1, (jq.Gate("I", (0,), np.eye(2, dtype=complex)),))


def z(circuit, theta, **options):
    kernel = jq.compile_circuit(circuit, **options)
    return np.asarray(jax.jit(jq.expval)(kernel, np.asarray(theta, np.float32)))


def part(error):
    """Operators whose Σ K† K is off the identity by so much."""
    return [np.sqrt(0.25) * X, np.sqrt(0.75 + error) * np.eye(2)]


@pytest.mark.parametrize("error", [0.9e-6, -0.9e-6])
def test_operators_may_be_off_by_less_than_their_tolerance(error):
    assert jq.kraus(part(error)).operators.shape == (2, 2, 2)


@pytest.mark.parametrize("error", [1.1e-6, -1.1e-6, 1e-3])
def test_operators_that_are_off_by_more_are_refused(error):
    with pytest.raises(ValueError, match=r"off the identity by .*; allowed: 1e-6"):
        jq.kraus(part(error))


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 2), (1, 3, 3), (1, 2, 3)])
def test_what_are_no_operators_is_refused(shape):
    with pytest.raises(ValueError, match=r"must be \[m, 2, 2\] with m of at least 1"):
        jq.kraus(np.zeros(shape))


def test_completeness_is_of_the_adjoint_before_the_operator():
    """K† K of one that is not normal: decay is complete, its adjoint is not."""
    decay = [np.diag([1, 0.6]), np.array([[0, 0.8], [0, 0]])]
    jq.kraus(decay)
    with pytest.raises(ValueError, match=r"off the identity by 0\.64"):
        jq.kraus([k.T for k in decay])


@pytest.mark.parametrize(("error", "taken"), [(0.9e-6, True), (1.2e-6, False), (-1.2e-6, False)])
def test_a_gate_is_unitary_to_its_tolerance(error, taken):
    matrix = np.diag([1, np.sqrt(1 + error)])
    qfunc = lambda: qml.QubitUnitary(matrix, wires=0, unitary_check=False)  # noqa: E731
    if taken:
        assert jq.read_qfunc(qfunc, 1).gates[0].name == "QubitUnitary"
    else:
        with pytest.raises(ValueError, match="is not unitary"):
            jq.read_qfunc(qfunc, 1)


@pytest.mark.parametrize("theta", [0.0, 0.7, np.pi])
def test_noise_of_one_gate_by_hand(theta):
    """Depolarizing leaves 1 - 4p/3 of cos θ; decay leaves 1 - γ and adds γ; a flip 1 - 2p."""
    c = np.cos(theta)
    for p in (0.0, 0.3, 0.75):
        np.testing.assert_allclose(
            z(IDLE, [theta], noise=jq.depolarizing(p)), [(1 - 4 * p / 3) * c], atol=1e-6
        )
    for gamma in (0.0, 0.3, 1.0):
        found = z(IDLE, [theta], noise=jq.amplitude_damping(gamma))
        np.testing.assert_allclose(found, [(1 - gamma) * c + gamma], atol=1e-6)
    flips = jq.kraus([np.sqrt(0.8) * np.eye(2), np.sqrt(0.2) * X])
    np.testing.assert_allclose(z(IDLE, [theta], noise=flips), [0.6 * c], atol=1e-6)


def test_noise_of_decay_keeps_the_root_of_coherences():
    """RY(π/2) behind it reads the X of before, √(1 - γ) sin θ, and then noise again: 1 - γ, γ."""
    turn = np.array([[1, 1], [-1, 1]], complex) / np.sqrt(2)  # |+> to |0>
    circuit = jq.Circuit(1, (IDLE.gates[0], jq.Gate("H", (0,), turn)))
    gamma, theta = 0.36, 0.7
    found = z(circuit, [theta], noise=jq.amplitude_damping(gamma))
    np.testing.assert_allclose(found, [0.64 * 0.8 * np.sin(theta) + 0.36], atol=1e-6)
    found = z(circuit, [theta], noise=jq.amplitude_damping(gamma, "end"))
    np.testing.assert_allclose(found, [0.64 * np.sin(theta) + 0.36], atol=1e-6)
    # a channel of one's own is brought back by its operators, and decay is not its own adjoint
    own = jq.kraus(jq.amplitude_damping(gamma).operators)
    assert own.adjoint is None
    found = z(circuit, [theta], noise=own)
    np.testing.assert_allclose(found, [0.64 * 0.8 * np.sin(theta) + 0.36], atol=1e-6)


def test_noise_follows_the_wires_that_a_gate_touches():
    """One NOT on wire 1 of three: 1 - 4p/3 there. At the end each wire has it once."""
    circuit = jq.Circuit(3, (jq.Gate("X", (1,), X),))
    theta = np.array([0.4, 0.9, 1.3])
    clean = np.cos(theta) * [1, -1, 1]
    for where, factors in (("gates", [1, 0.6, 1]), ("end", [0.6] * 3)):
        found = z(circuit, theta, noise=jq.depolarizing(0.3, where))
        np.testing.assert_allclose(found, factors * clean, atol=1e-6)
        assert jq.depolarizing(0.3, where).where == where
    # a NOT that is controlled by wire 2: noise on 2 before and 0 after, as wires are listed
    circuit = jq.Circuit(3, (jq.Gate("X", (1,), X), jq.Gate("CNOT", (2, 0), CNOT)))
    found = z(circuit, theta, noise=jq.depolarizing(0.3))
    expected = [0.6 * np.cos(0.4) * np.cos(1.3), -0.6 * np.cos(0.9), 0.6 * np.cos(1.3)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_every_way_of_evaluating_reads_each_wire():
    """A ring of three: wire 1 and 2 have products, wire 0 that of the others."""
    ring = jq.Circuit(3, tuple(jq.Gate("CNOT", (q, (q + 1) % 3), CNOT) for q in range(3)))
    theta = np.array([[0.4, 0.9, 1.3], [0.1, -2.0, 3.0]])
    a, b, c = np.cos(theta).T
    for method in ("gemm", "pauli", "sparse"):
        np.testing.assert_allclose(
            z(ring, theta, method=method), np.stack([b * c, a * b, a * b * c], -1), atol=2e-6
        )
        assert jq.compile_circuit(ring, method=method).method == method
    kernel = jq.compile_circuit(ring)
    assert (kernel.nnz, kernel.method, kernel.n_wires) == (3, "sparse", 3)
    assert sorted(kernel.terms) == [(0, 8), (1, 24), (2, 26)]  # ICC, CCI and CCC of base 3


def test_a_polynomial_is_chosen_up_to_a_quarter_of_the_matrix_and_four_hundred_terms():
    """Of one wire one term is a quarter of four: RY(1) has two. Noise leaves no matrix."""
    one = jq.Circuit(1, (jq.Gate("X", (0,), X),))
    assert jq.compile_circuit(one).method == "sparse"
    turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]], complex)
    two = jq.Circuit(1, (jq.Gate("RY", (0,), turn),))
    kernel = jq.compile_circuit(two)
    assert (kernel.nnz, kernel.method, kernel.terms) == (2, "gemm", ())
    noisy = jq.compile_circuit(two, noise=jq.depolarizing(0.1))
    assert (noisy.nnz, noisy.method) == (2, "sparse")


@pytest.mark.parametrize(("terms", "method"), [(400, "sparse"), (401, "pauli")])
def test_four_hundred_terms_are_the_most(terms, method):
    from jaxsim.quantum.compilation import _choose_method

    coeffs = np.zeros((6, 3**6))
    coeffs.reshape(-1)[:terms] = 1
    assert _choose_method(None, coeffs, None, 6, "auto").method == method
    matrix = np.eye(64)
    assert _choose_method(matrix, coeffs, None, 6, "auto").method == {"pauli": "gemm"}.get(
        method, method
    )
    small = np.zeros((3, 27))
    for count, chosen in ((16, "sparse"), (17, "gemm")):
        small.reshape(-1)[:count] = 1
        assert _choose_method(np.eye(8), small, None, 3, "auto").method == chosen
    # what is below rounding is no term
    small[:] = 0
    small[0, :2], small[1, 0] = [1.1e-13, 0.9e-13], -1.1e-13
    assert _choose_method(None, small, None, 3, "auto").terms == ((0, 0), (1, 0))


@pytest.mark.parametrize(("wires", "kept"), [(5, True), (6, False)])
def test_outcomes_of_noisy_circuits_are_kept_up_to_five_wires(wires, kept):
    kernel = jq.compile_circuit(jq.Circuit(wires, ()), noise=jq.depolarizing(0.3, "end"))
    assert (kernel.outcomes is not None) == kept
    found = jq.expval(kernel, jnp.zeros(wires))
    np.testing.assert_allclose(found, 0.6, atol=1e-6)


def test_outcomes_are_numbered_with_wire_zero_first():
    """Of wires at 0 and π, 01; noise of 0.3 at the end leaves each right with 0.8."""
    theta = jnp.array([0.0, jnp.pi])
    clean = jq.probabilities(jq.compile_circuit(jq.Circuit(2, ())), theta)
    np.testing.assert_allclose(clean, [0, 1, 0, 0], atol=1e-6)
    noisy = jq.compile_circuit(jq.Circuit(2, ()), noise=jq.depolarizing(0.3, "end"))
    np.testing.assert_allclose(jq.probabilities(noisy, theta), [0.16, 0.64, 0.04, 0.16], atol=1e-6)


def test_coefficients_are_traces_over_the_size():
    """Of Z ⊗ X + 3 I ⊗ Z + 2 Y ⊗ X on two wires, without the Y that is never read."""
    paulis = {"I": np.eye(2), "X": X, "Y": np.array([[0, -1j], [1j, 0]]), "Z": np.diag([1, -1])}
    o = sum(
        w * np.kron(paulis[a], paulis[b])
        for w, a, b in ((1, "Z", "X"), (3, "I", "Z"), (2, "Y", "X"))
    )
    expected = np.zeros((1, 9))
    expected[0, [7, 2]] = 1, 3
    np.testing.assert_allclose(pauli_coefficients(o[None].astype(complex)), expected, atol=1e-12)
    assert signs(2).tolist() == [[1, 1], [1, -1], [-1, 1], [-1, -1]]
    back = evolve_observables(jq.Circuit(2, (jq.Gate("X", (0,), X),)), None, diagonals(signs(2).T))
    np.testing.assert_allclose(back[0], -np.kron(paulis["Z"], np.eye(2)), atol=1e-12)
    np.testing.assert_allclose(back[1], np.kron(np.eye(2), paulis["Z"]), atol=1e-12)


def test_random_layers_draw_wires_and_axes_anew_in_each_layer():
    made = jq.random_layers(np.full((30, 4), 0.5), 3)
    turns = [g for g in made.gates if g.name != "CNOT"]
    nots = [g for g in made.gates if g.name == "CNOT"]
    assert len(turns) == 120
    axes = [sum(g.name == f"R{a}" for g in turns) for a in "XYZ"]
    assert all(abs(n - 40) < 4 * np.sqrt(120 * 2 / 9) for n in axes)
    wires = np.bincount([g.wires[0] for g in turns], minlength=4)
    assert (abs(wires - 30) < 4 * np.sqrt(120 * 3 / 16)).all()
    assert abs(len(nots) - 36) < 4 * np.sqrt(120 * 0.21)
    assert len({g.wires for g in nots}) > 6
    assert all(a != b for a, b in (g.wires for g in nots))
    assert [g.wires for g in jq.random_layers(np.full((30, 4), 0.5), 3).gates] == [
        g.wires for g in made.gates
    ]
    other = jq.random_layers(np.full((30, 4), 0.5), 4)
    assert [g.name for g in other.gates] != [g.name for g in made.gates]
    assert all(g.name != "CNOT" for g in jq.random_layers(np.ones((9, 1)), 0).gates)
    # a rotation by 0.5 about X
    turn = next(g for g in turns if g.name == "RX")
    c, s = np.cos(0.25), np.sin(0.25)
    np.testing.assert_allclose(turn.matrix, [[c, -1j * s], [-1j * s, c]])
    assert turn.angles == (0.5,)


sample = jax.jit(jq.sample, static_argnums=2, static_argnames="joint")


def test_shots_are_whole_numbers_of_their_number():
    kernel = jq.compile_circuit(jq.Circuit(2, ()))
    theta = np.full((50, 2), np.pi / 2, np.float32)
    for joint in (False, True):
        drawn = np.asarray(sample(kernel, theta, 3, jax.random.key(0), joint=joint))
        np.testing.assert_allclose(3 * drawn, (3 * drawn).round(), atol=1e-5)
        assert set((3 * drawn).round().ravel().tolist()) == {-3, -1, 1, 3}
        assert abs(np.corrcoef(drawn.T)[0, 1]) < 4 / np.sqrt(50)
    # one shot of a certain outcome
    one = sample(kernel, np.float32([0.0, np.pi]), 1, jax.random.key(0))
    np.testing.assert_array_equal(one, [1, -1])


def test_pixels_are_angles():
    np.testing.assert_allclose(jq.ry(jnp.array([0.0, 0.25, 1.0])), np.array([0, 0.25, 1]) * np.pi)
    at = jq.threshold(0.25)(jnp.array([0.25, 0.2500001, 0.3], jnp.float32))
    np.testing.assert_allclose(at, [0, np.pi, np.pi], rtol=1e-6)
    assert jq.ry(jnp.zeros((0, 3))).shape == (0, 3)
    for low, high in ((-0.01, 1), (0, 1.01)):
        with pytest.warns(UserWarning, match="scale pixels"):
            jq.ry(jnp.array([low, high]))
    for bad in (np.inf, np.ones(2)):
        with pytest.raises(ValueError, match="must be a finite number"):
            jq.threshold(bad)


@pytest.mark.parametrize(
    ("size", "options", "rows"),
    [
        (7, {}, 6),
        (7, {"stride": 3}, 2),  # 0 and 3; 6 has no second tap
        (7, {"stride": 3, "dilation": 4}, 1),  # taps 0 and 4, then 3 and 7
        (8, {"stride": 3, "dilation": 4}, 2),
        (7, {"padding": "SAME", "stride": 3}, 3),
        (7, {"padding": ((2, 1), (0, 0)), "stride": 2}, 5),
        (5, {"dilation": 4}, 1),
    ],
)
def test_windows_are_counted_along_rows(size, options, rows):
    spec = jq.QuanvSpec((2, 1), **options)
    assert jq.out_shape((size, 40), spec)[0] == rows
    assert jq.n_circuits((size, 40), spec) == rows * jq.out_shape((size, 40), spec)[1]


def test_angles_beside_the_image_are_zero_on_the_sides_that_are_told():
    """One row above, two columns to the right: cos 0 = 1, the rest is cos π."""
    x = jnp.ones((1, 1, 1))
    kernel = jq.compile_circuit(jq.Circuit(1, ()))
    found = jq.quanv2d(x, kernel, jq.QuanvSpec(1, padding=((1, 0), (0, 2))))
    np.testing.assert_allclose(found[0, ..., 0], [[1, 1, 1], [-1, 1, 1]], atol=1e-6)
    # an odd number of SAME is one more behind
    spec = jq.QuanvSpec((2, 1), padding="SAME")
    found = jq.quanv2d(x, jq.compile_circuit(jq.Circuit(2, ())), spec)
    np.testing.assert_allclose(found[0, 0, 0], [-1, 1], atol=1e-6)


def test_kinds_of_places_are_two():
    assert _check_where("end") == "end"
    with pytest.raises(ValueError, match="where='gate': must be 'gates' or 'end'"):
        _check_where("gate")
    assert circuits.MAX_WIRES == 9
    assert jq.compile_circuit(jq.Circuit(9, ())).n_wires == 9
    with pytest.raises(ValueError, match="n_wires=10: must be an int from 1 to 9"):
        jq.compile_circuit(jq.Circuit(10, ()))


def test_a_drawing_stands_gates_side_by_side_where_their_wires_are_free():
    made = jq.Circuit(
        3,
        (
            jq.Gate("X", (0,), X),
            jq.Gate("X", (2,), X),
            jq.Gate("CNOT", (2, 1), CNOT),
            jq.Gate("CZ", (0, 2), CNOT, (0.125,)),
        ),
    )
    assert jq.draw(made).splitlines() == [
        "0: ─X─────────●─────",
        "1: ────X──────│─────",
        "2: ─X──●──CZ(0.125)─",
    ]
    assert jq.draw(jq.Circuit(1, ())) == "0: "
