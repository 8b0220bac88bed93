"""Networks whose counts have no factor of one: groups of features, run several times."""

import functools

import jax
import jax.numpy as jnp

import jaxsim as js


@functools.cache
def grouped_scan():
    """Five layers of a convolution in nine groups of eleven features, windows of two.

    One execution is nine products [26, 22] @ [22, 11]: 26 windows (13 in each of 2 rows), 22
    inputs a window and group.
    """

    def layer(x, w):
        y = jax.lax.conv_general_dilated(
            x, w, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=9
        )
        return y, None

    x = jnp.ones((2, 13, 99))
    return js.trace(
        lambda p, x: jax.lax.scan(layer, x, p["w"])[0], {"w": jnp.ones((5, 2, 11, 99))}, x
    )


@functools.cache
def reused():
    """One weight that a scan reads three times: [5, 4] @ [4, 4] each time."""

    def fn(params, x):
        return jax.lax.scan(lambda x, _: (x @ params["w"], None), x, length=3)[0]

    return js.trace(fn, {"w": jnp.ones((4, 4))}, jnp.ones((5, 4)))


MATMUL, RUNS = (9, 26, 22, 11), 5
