"""Edge probabilities estimated from the first step of observed cascades, in closed form."""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxsim.cascades.graph import ICGraph, from_edges
from jaxsim.cascades.sample import Cascades
from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion

CHUNK = 4095  # cascades counted at a time: both counts then fit the 24 exact bits of a float32


class NetworkEstimate(NamedTuple):
    """Estimated probability of every ordered pair of nodes (u, v), with errors and counts.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0], [1], 0.5, 3)
      >>> seen = jc.sample_cascades(g, 0.3, jax.random.key(0), 20_000)
      >>> estimate = jc.infer_network(seen)
      >>> [[int(v) for v in row] for row in estimate.structure(0.3)]
      [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
      >>> estimate.to_graph().m
      1
    """

    p: Float[Array, "n n"]
    """Probability of the edge u -> v, clipped to [0, 1]; 0 where not identifiable."""
    p_raw: Float[Array, "n n"]
    """The same before clipping, NaN where not identifiable; noise makes it negative at times."""
    se: Float[Array, "n n"]
    """Standard error of `p_raw`; NaN where not identifiable."""
    q: Float[Array, " n"]
    """Share of cascades in which u is a seed."""
    ap: Float[Array, " n"]
    """Share of v's cascades (those that do not start at v) in which v is active at step 1."""
    n1: Int[Array, "n n"]
    """Cascades in which u is a seed and v is not."""
    n0: Int[Array, "n n"]
    """Cascades in which neither is a seed."""
    identifiable: Bool[Array, "n n"]
    """Whether the counts determine the pair; False on the diagonal."""
    unlearnable: Bool[Array, " n"]
    """Nodes so often active at step 1 (1 - ap < tau) that in-edges cannot be told apart."""

    @own_promotion()
    def structure(self, beta: float) -> Bool[Array, "n n"]:
        """Decides which edges exist, given that none is weaker than `beta`.

        Args:
          beta: Smallest probability of an edge, in (0, 1].

        Returns:
          True where the estimate exceeds beta / 2.

        Raises:
          ValueError: beta outside (0, 1].
        """
        if not 0 < beta <= 1:
            raise ValueError(f"beta = {beta}; allowed: above 0, at most 1")
        return self.identifiable & (self.p > beta / 2)

    @own_promotion()
    def to_graph(self, min_p: float = 0.0, z: float = 3.0) -> ICGraph:
        """Keeps the edges that stand out of the noise.

        Args:
          min_p: Probability that a kept edge exceeds, at least 0.
          z: Smallest ratio of estimate to standard error of a kept edge, at least 0. Without it
            the clipped noise of n^2 absent edges adds up to a phantom graph.

        Returns:
          A graph over the same nodes.

        Raises:
          ValueError: A negative argument.
        """
        if not (min_p >= 0 and z >= 0):
            raise ValueError(f"min_p = {min_p}, z = {z}; allowed: at least 0")
        p = np.asarray(self.p)
        keep = np.asarray(self.identifiable) & (p > min_p) & (p > 0)
        keep &= p >= z * np.asarray(self.se)
        src, dst = np.nonzero(keep)
        return from_edges(src, dst, p[src, dst], p.shape[0])


class _Counts(NamedTuple):
    n1: Array
    c1: Array
    z: Array
    y: Array
    x: Array


@jax.jit
@own_promotion()
def _count(s0: Bool[Array, "t n"], s1: Bool[Array, "t n"]) -> _Counts:
    t, n = s0.shape
    shift = jnp.float32(CHUNK + 1)

    def part(a: Array, b: Array) -> _Counts:
        z = (~a).astype(jnp.float32)
        y = b.astype(jnp.float32)
        # One product carries two counts: u seed and v not in the low bits, and v active in the
        # high bits.
        both = jnp.matmul(
            a.T.astype(jnp.float32), z + shift * y, precision=jax.lax.Precision.HIGHEST
        ).astype(jnp.int32)
        c1, n1 = both // (CHUNK + 1), both % (CHUNK + 1)
        ones = functools.partial(jnp.sum, axis=0, dtype=jnp.int32)
        return _Counts(n1, c1, ones(~a), ones(b), ones(a))

    def step(i: Array, total: _Counts) -> _Counts:
        a = jax.lax.dynamic_slice_in_dim(s0, i * CHUNK, CHUNK)
        b = jax.lax.dynamic_slice_in_dim(s1, i * CHUNK, CHUNK)
        return jax.tree.map(jnp.add, total, part(a, b))

    square, line = jnp.zeros((n, n), jnp.int32), jnp.zeros(n, jnp.int32)
    full = t // CHUNK
    total = _Counts(square, square, line, line, line)
    if full:
        total = jax.lax.fori_loop(0, full, step, total)
    rest = part(s0[full * CHUNK :], s1[full * CHUNK :])
    return jax.tree.map(jnp.add, total, rest)


@jax.jit
@own_promotion()
def _estimate(k: _Counts, t: Array, tau: Array) -> NetworkEstimate:
    n = k.z.shape[0]
    n0, c0 = k.z[None] - k.n1, k.y[None] - k.c1
    known = (k.n1 > 0) & (n0 > 0) & (c0 < n0) & ~jnp.eye(n, dtype=bool)

    def safe(x: Array) -> Array:
        return jnp.where(known, x, 1).astype(jnp.float32)

    # 1 - p from whole numbers: differences of rounded frequencies would cancel.
    base = safe(n0) / safe(n0 - c0)
    miss = safe(k.n1 - k.c1) / safe(k.n1)
    p_raw = 1 - miss * base
    var1 = miss * (1 - miss) / safe(k.n1)
    a0 = safe(c0) / safe(n0)
    var0 = a0 * (1 - a0) / safe(n0)
    # A frequency of exactly 0 or 1 shows no variance; the rule of three bounds what is unseen.
    var1 = jnp.where((k.c1 == 0) | (k.c1 == k.n1), (3 / safe(k.n1)) ** 2, var1)
    var0 = jnp.where(c0 == 0, (3 / safe(n0)) ** 2, var0)
    se = base * jnp.sqrt(var1 + (miss * base) ** 2 * var0)
    nan = jnp.float32(jnp.nan)
    ap = k.y / jnp.maximum(k.z, 1)
    return NetworkEstimate(
        p=jnp.where(known, jnp.clip(p_raw, 0, 1), 0.0),
        p_raw=jnp.where(known, p_raw, nan),
        se=jnp.where(known, se, nan),
        q=k.x / t,
        ap=ap,
        n1=k.n1,
        n0=n0,
        identifiable=known,
        unlearnable=(1 - ap < tau) | (k.z == 0),
    )


def check_cascades(c: Cascades) -> None:
    """Refuses cascades that no estimate can come from.

    Args:
      c: Observed cascades.

    Raises:
      ValueError: None, or unequal shapes.
    """
    if c.S0.ndim != 2 or c.S0.shape != c.S1.shape or not c.t or not c.n:
        raise ValueError(
            f"c has S0, S1 of shapes {c.S0.shape}, {c.S1.shape}; allowed: equal, (t >= 1, n >= 1)"
        )


@own_promotion()
def infer_network(c: Cascades, *, tau: float | None = None) -> NetworkEstimate:
    """Estimates the probability of every ordered pair of nodes.

    With a(v | u) the chance that v activates at step 1 given that u is a seed, and a(v | not u)
    given that it is not (v no seed in both), the other in-edges of v cancel in
    `1 - p = (1 - a(v | u)) / (1 - a(v | not u))`, whatever the graph, if seeds are independent.

    Args:
      c: Observed cascades; only seeds and first activations are read.
      tau: Limit in [0, 1]: nodes with 1 - ap below it are called unlearnable; 1 / (4 n) by
        default.

    Returns:
      Estimates with standard errors and masks.

    Raises:
      ValueError: No cascades, or tau outside [0, 1].
      MemoryError: n x n arrays exceed `memory.LIMIT`.

    Source: Chen, Sun, Zhang, Zhang, "Network Inference and Influence Maximization from Samples",
    ICML 2021. The standard error is this package's (delta method).

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0], [1], 0.5, 3)
      >>> seen = jc.sample_cascades(g, 0.3, jax.random.key(0), 20_000)
      >>> estimate = jc.infer_network(seen)
      >>> round(float(estimate.p[0, 1]), 1)
      0.5
    """
    check_cascades(c)
    if tau is not None and not 0 <= tau <= 1:
        raise ValueError(f"tau = {tau}; allowed: 0 to 1")
    memory.check(f"pairs of n = {c.n} nodes", 40 * c.n * c.n, "leave out rarely seen nodes")
    counts = _count(jnp.asarray(c.S0), jnp.asarray(c.S1))
    return _estimate(counts, jnp.float32(c.t), jnp.float32(1 / (4 * c.n) if tau is None else tau))


class Diagnosis(NamedTuple):
    """Measures of how far cascades depart from what the estimator assumes.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0], [1], 0.5, 3)
      >>> seen = jc.sample_cascades(g, 0.3, jax.random.key(0), 20_000)
      >>> found = jc.diagnose(seen, jc.infer_network(seen))
      >>> bool(found.seed_dependence < 2), float(found.identifiable)
      (True, 1.0)
    """

    q_least: Float[Array, ""]
    """Rarest node's share of cascades as a seed."""
    q_most: Float[Array, ""]
    """Most frequent node's."""
    seed_dependence: Float[Array, ""]
    """Root mean square of sqrt(t) times the correlation of two nodes' seeding: 1 if independent."""
    identifiable: Float[Array, ""]
    """Share of ordered pairs that the counts determine."""


@jax.jit
@own_promotion()
def diagnose(c: Cascades, estimate: NetworkEstimate) -> Diagnosis:
    """Checks the assumptions of `infer_network` on its input.

    Real cascades often start at one node, which makes seeds dependent and rare; then the estimate
    is biased, and this shows it.

    Args:
      c: Observed cascades.
      estimate: Their estimate, from `infer_network`.

    Returns:
      The diagnosis.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0], [1], 0.5, 3)
      >>> seen = jc.sample_cascades(g, 0.3, jax.random.key(0), 20_000)
      >>> found = jc.diagnose(seen, jc.infer_network(seen))
      >>> round(float(found.q_least), 1), round(float(found.q_most), 1)
      (0.3, 0.3)
    """
    n = c.n
    q = estimate.q
    together = q[:, None] - estimate.n1 / c.t  # a pair's share of cascades with both as seeds
    spread = jnp.sqrt(q * (1 - q))
    scale = spread[:, None] * spread[None]
    pairs = (scale > 0) & ~jnp.eye(n, dtype=bool)
    r = jnp.where(pairs, (together - q[:, None] * q[None]) / jnp.where(pairs, scale, 1), 0.0)
    total = jnp.maximum(pairs.sum(), 1)
    return Diagnosis(
        q.min(),
        q.max(),
        jnp.sqrt(c.t * (r**2).sum() / total),
        estimate.identifiable.sum() / max(n * (n - 1), 1),
    )


def required_cascades(
    n: int,
    eta: float,
    delta: float,
    alpha: float,
    gamma: float,
    form: Literal["paper", "direct"] = "direct",
) -> int:
    """Bounds the number of cascades that estimates every pair to within `eta`.

    Args:
      n: Number of nodes, at least 1.
      eta: Largest error of any probability, in (0, 1].
      delta: Chance that some error is larger, in (0, 1].
      alpha: Least chance that a node stays inactive at step 1, in (0, 1].
      gamma: Every node is a seed with a chance in [gamma, 1 - gamma]; in (0, 1/2].
      form: "direct" follows from Hoeffding's inequality on the two frequencies, with the
        numbers of cascades they are taken over at their expectation; "paper" has the
        published rate in eta, alpha and gamma with its constant as recalled.

    Returns:
      Number of cascades. Far fewer do in practice: read the standard errors.

    Raises:
      ValueError: An argument out of range.

    Examples:
      >>> import jaxsim.cascades as jc
      >>> jc.required_cascades(10, eta=0.1, delta=0.05, alpha=0.5, gamma=0.2)
      198168
    """
    for name, value, most in (
        ("eta", eta, 1.0),
        ("delta", delta, 1.0),
        ("alpha", alpha, 1.0),
        ("gamma", gamma, 0.5),
    ):
        if not 0 < value <= most:
            raise ValueError(f"{name} = {value}; allowed: above 0, at most {most}")
    if n < 1:
        raise ValueError(f"n = {n}; allowed: at least 1")
    if form == "paper":
        return math.ceil(256 * math.log(12 * n / delta) / (eta**2 * alpha**2 * gamma**3))
    if form == "direct":
        each = eta * alpha / (2 + eta)
        return math.ceil(math.log(4 * n * n / delta) / (2 * each**2 * gamma**2))
    raise ValueError(f"form = {form!r}; allowed: 'paper', 'direct'")


@functools.partial(jax.jit, static_argnames="steps")
@own_promotion()
def _refine(s0: Array, s1: Array, init: Array, steps: int) -> Array:
    x, y = s0.astype(jnp.float32), s1.astype(jnp.float32)
    seen = 1 - x
    absent = jnp.eye(x.shape[1], dtype=bool)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def loss(theta: Array) -> Array:
        pull = x @ theta
        # An activation without an active in-neighbor is impossible; the floor keeps it finite.
        log_active = jnp.log(jnp.maximum(-jnp.expm1(-pull), 1e-7))
        return -(seen * (y * log_active - (1 - y) * pull)).sum() / x.shape[0]

    def step(carry: tuple[Array, optax.OptState], _: None):
        theta, state = carry
        updates, state = optimizer.update(jax.grad(loss)(theta), state)
        theta = jnp.maximum(jnp.asarray(optax.apply_updates(theta, updates)), 0.0)
        return (jnp.where(absent, 0.0, theta), state), None

    theta = jnp.where(absent, 0.0, -jnp.log1p(-jnp.clip(init, 1e-3, 1 - 2.0**-24)))
    (theta, _), _ = jax.lax.scan(step, (theta, optimizer.init(theta)), None, length=steps)
    return -jnp.expm1(-theta)


def mle_refine(c: Cascades, init: Float[Array, "n n"], steps: int = 600) -> Float[Array, "n n"]:
    """Improves estimates by maximum likelihood on the same first steps.

    Not from the paper: it needs more time and more assumptions than the closed form, and is
    usually two to three times as accurate. The likelihood is concave in -log(1 - p).

    Args:
      c: Observed cascades.
      init: Probabilities to start from, [n, n], such as `NetworkEstimate.p`.
      steps: Steps of Adam over all cascades, at least 1.

    Returns:
      Probabilities in [0, 1].

    Raises:
      ValueError: No cascades, `init` of another shape, or no steps.
      MemoryError: The cascades as floats exceed `memory.LIMIT`.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> g = jc.from_edges([0], [1], 0.5, 3)
      >>> seen = jc.sample_cascades(g, 0.3, jax.random.key(0), 20_000)
      >>> p = jc.mle_refine(seen, jc.infer_network(seen).p, steps=50)
      >>> p.shape, bool(abs(p[0, 1] - 0.5) < 0.1)
      ((3, 3), True)
    """
    check_cascades(c)
    if init.shape != (c.n, c.n):
        raise ValueError(f"init has shape {init.shape}; allowed: ({c.n}, {c.n})")
    if steps < 1:
        raise ValueError(f"steps = {steps}; allowed: at least 1")
    memory.check(f"t = {c.t} cascades over n = {c.n}", 16 * c.t * c.n, "use fewer cascades")
    return _refine(c.S0, c.S1, init, steps)
