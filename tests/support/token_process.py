"""`python -m tests.support.token_process`: a pyramid in stages on two devices of the host.

Prints the largest error of `run` and of a call, as a share of the largest logit, and the devices
that the results of its stages lay on.
"""

import jax
import numpy as np

import jaxsim as js
from jaxsim.staged import exit_queue
from tests.staged import test_token_stages as cases


def main() -> None:
    """Runs it and compares."""
    net, args = cases.alone("bert")
    pipe = js.pipeline_shard(2, 2, balance=cases.MODELS["bert"][1])(net)
    held, made = set[str](), exit_queue.stepper

    def stepper(*given):
        step = made(*given)

        def recorded(at, *rest):
            out = step(at, *rest)
            held.update(f"{d.platform}:{d.id}" for d in out.tokens.present.devices())
            return out

        return recorded

    exit_queue.stepper = stepper
    expected = jax.jit(lambda net: net.simulate(*args))(net)
    ran = pipe.run(*args, buckets=cases.BUCKETS)
    assert (ran.kept == expected.kept).all()
    assert (ran.layer == expected.layer).all()
    most = np.abs(expected.logits).max()
    errors = [np.abs(np.asarray(y) - expected.logits).max() for y in (ran.logits, pipe(*args))]
    assert {d.id for d in pipe(*args).devices()} == {1}
    print("worst", float(max(errors) / most), ",".join(sorted(held)), flush=True)


if __name__ == "__main__":
    main()
