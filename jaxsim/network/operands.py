"""Whose key the arrays of a network draw from that each call writes: keys and values."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Key

from jaxsim.cores.operand import writes_in_calls, written_operand
from jaxsim.cores.wrapper import Wrapper
from jaxsim.network.arguments import check_key
from jaxsim.network.network import Net

WRITES = 0xCE11
"""What the key of a text is folded with for the cells of its keys and values."""


def fix_writes(net: Net, key: Key[Array, ""]) -> Net:
    """Returns the network with errors of cells that calls write drawn from one key.

    By default each call draws its own. With a cache a token is written once and read by many calls:
    give the key of the text, and each cell has the error of its place (layer, row of the batch,
    head, token, channel) in every call, whether tokens come all at once or one by one. What a read
    adds is drawn from the key of the call as ever.

    `js.language.generate` and its like do so on their own.

    Args:
      net: Network with keys and values in arrays (`js.analog(sites="dynamic*")`), deployed or not.
      key: Random key of the text. Traced, so that a sweep over it compiles once.

    Raises:
      ValueError: No call of the network writes cells, or `key` is not a random key.

    Examples:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> import jaxsim as js
      >>> x = jnp.ones((3, 4))
      >>> net = js.trace(lambda p, x: jax.nn.softmax(x @ x.mT) @ (x @ p), jnp.eye(4), x)
      >>> array = js.analog(cells=js.cells.independent(0.05), sites="dynamic*")
      >>> net = array(js.quantize(js.Grid(8), 8, sites="dynamic*")(net))
      >>> text = js.fix_writes(net, jax.random.key(0))
      >>> bool(jnp.all(text(x, key=jax.random.key(1)) == text(x, key=jax.random.key(2))))
      True
    """
    check_key(key)
    if not any(map(writes_in_calls, net.cores.values())):
        raise ValueError(
            'net: no call of it writes cells; js.analog(sites="dynamic*") has keys and values '
            "written"
        )
    return _with_seed(net, key)


def fix_text(net: Net, key: Key[Array, ""] | None) -> Net:
    """Lets all calls of one text write alike: a network whose key of writes is not fixed yet.

    Args:
      net: Network of any kind.
      key: Random key of the text; None changes nothing.
    """
    if key is None:
        return net
    own = [chain for chain in net.cores.values() if writes_in_calls(chain)]
    if not own or own[0][0].settings.get("seed") is not None:
        return net
    return _with_seed(net, jax.random.fold_in(key, WRITES))


def _with_seed(net: Net, key: Any) -> Net:
    seed = jax.random.bits(key)

    def seeded(chain: tuple[Wrapper, ...]) -> tuple[Wrapper, ...]:
        if not writes_in_calls(chain):
            return chain
        settings: dict[str, Any] = {**chain[0].settings, "seed": seed}
        return (Wrapper.of(written_operand, **settings), *chain[1:])

    return dataclasses.replace(net, cores={k: seeded(chain) for k, chain in net.cores.items()})
