"""Reverse-reachable sets as they are held: bits of fixed shape, or the lists of their members."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

from jaxsim.numerics import memory
from jaxsim.numerics.arrays import own_promotion

CHUNK_WORDS = 16  # sets are stored 512 to a chunk, so that the lanes at work share a few chunks
SETS_PER_CHUNK = 32 * CHUNK_WORDS


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MemberLists:
    """Sets one after another, each as the nodes that are in it, on the host."""

    nodes: Int[np.ndarray, " members"]
    start: Int[np.ndarray, " theta+1"]
    """Set i holds `nodes[start[i]:start[i + 1]]`."""
    n: int = dataclasses.field(metadata={"static": True})


class RRSets(NamedTuple):
    """Reverse-reachable sets, from `rr_sample`.

    Examples:
      >>> import jax
      >>> import jaxsim.cascades as jc
      >>> sets = jc.rr_sample(jc.from_edges([0], [1]), jax.random.key(0), 100)
      >>> sets.theta, sets.n, sets.member().shape, bool(sets.member()[0].all())
      (512, 2, (2, 512), True)
    """

    held: UInt32[Array, "chunks n words"] | MemberLists
    """The bits of `mem`, or lists where a loop on the host has made the sets."""

    @property
    def theta(self) -> int:
        """Number of sets."""
        if isinstance(self.held, MemberLists):
            return self.held.start.shape[0] - 1
        return self.held.shape[0] * self.held.shape[2] * 32

    @property
    def n(self) -> int:
        """Number of nodes that may be members."""
        return self.held.n if isinstance(self.held, MemberLists) else self.held.shape[1]

    @property
    def mem(self) -> UInt32[Array, "chunks n words"]:
        """Bit b of `mem[c, v, w]`: node v is in set `(c * words + w) * 32 + b`.

        Made from the lists at every access where these are held.

        Raises:
          MemoryError: The bits exceed `memory.LIMIT`.
        """
        return _bits(self.held) if isinstance(self.held, MemberLists) else self.held

    @own_promotion()
    def member(self) -> Bool[Array, "n theta"]:
        """Membership as flags."""
        words = self.mem.transpose(1, 0, 2).reshape(self.n, -1)
        shown = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
        return shown.reshape(self.n, -1).astype(bool)


def check_bits(n: int, theta: int) -> None:
    """Refuses sets whose bits would not fit.

    Args:
      n: Number of nodes.
      theta: Number of sets.

    Raises:
      MemoryError: The bits exceed `memory.LIMIT`.
    """
    hint = "sample fewer sets at a time, or raise the limit"
    memory.check(f"membership of n = {n} nodes in theta = {theta} sets", n * theta // 8, hint)


@own_promotion()
def _bits(lists: MemberLists) -> UInt32[Array, "chunks n words"]:
    theta = lists.start.shape[0] - 1
    check_bits(lists.n, theta)
    members = lists.nodes.shape[0]
    i = jnp.repeat(jnp.arange(theta), jnp.diff(lists.start), total_repeat_length=members)
    none = jnp.zeros((theta // SETS_PER_CHUNK, lists.n, CHUNK_WORDS), jnp.uint32)
    bit = jnp.uint32(1) << (i & 31).astype(jnp.uint32)
    # A node is in a set once: the sum of its bits is their union.
    return none.at[place(i, jnp.asarray(lists.nodes))].add(bit)


def place(set_id: Array, node: Array) -> tuple[Array, Array, Array]:
    """Finds the word of a membership bit.

    Args:
      set_id: Numbers of sets.
      node: A node of each.

    Returns:
      Chunk, node and word.
    """
    return set_id // SETS_PER_CHUNK, node, set_id % SETS_PER_CHUNK // 32


def round_theta(theta: int) -> int:
    """Rounds a number of sets up to whole chunks.

    Args:
      theta: Number of sets, at least 1.
    """
    return -(-theta // SETS_PER_CHUNK) * SETS_PER_CHUNK


def cut(sets: RRSets, theta: int) -> tuple[RRSets, RRSets]:
    """Splits sets in two.

    Args:
      sets: Sets of which both parts are whole chunks.
      theta: Number of sets in the first part.

    Returns:
      The first `theta` sets, and the rest.
    """
    held = sets.held
    if isinstance(held, MemberLists):
        at = held.start[theta]
        first = MemberLists(held.nodes[:at], held.start[: theta + 1], held.n)
        return RRSets(first), RRSets(MemberLists(held.nodes[at:], held.start[theta:] - at, held.n))
    chunks = theta // SETS_PER_CHUNK
    return RRSets(held[:chunks]), RRSets(held[chunks:])


def joined(first: RRSets, second: RRSets) -> RRSets:
    """Puts sets of the same graph one after another.

    Args:
      first: Some sets.
      second: Others, held in the same way.

    Returns:
      All of them.
    """
    a, b = first.held, second.held
    if isinstance(a, MemberLists):
        assert isinstance(b, MemberLists)
        start = np.concatenate([a.start[:-1], a.start[-1] + b.start])
        return RRSets(MemberLists(np.concatenate([a.nodes, b.nodes]), start, a.n))
    assert not isinstance(b, MemberLists)
    return RRSets(jnp.concatenate([a, b]))
