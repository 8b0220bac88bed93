import jax
import jax.numpy as jnp
import pytest

import jaxsim as js
from jaxsim.search.options import Option, apply_options, fit_options, named_options
from tests.support import models
from tests.support.networks import X, cnn, deep_cnn


def fitted(net, options):
    return fit_options(net, named_options(options))


def test_options_fit_where_their_patterns_and_their_hardware_do():
    net = js.trace(
        lambda p, x: (x @ p["a"]) @ jnp.tanh(x @ p["b"]).T,
        {"a": models.normal(4, 5), "b": models.normal(4, 5)},
        models.normal(3, 4),
    )
    everywhere = ["*", "dynamic*"]
    fit = fitted(
        net,
        {
            "8": Option(js.quantize(8, 8), sites=everywhere),
            "analog": Option(js.compose(js.quantize(8, 8), js.analog(adc=8)), sites=everywhere),
            "a alone": Option(js.quantize(4, 8), sites=["a"]),
        },
    )
    assert [place.name for place in fit.places] == ["a", "b", "dynamic/0"]
    assert fit.table().tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert list(fit.refused) == [("dynamic/0", "analog")]
    assert "dynamic/0" in fit.refused["dynamic/0", "analog"]


def test_a_format_that_a_weight_has_no_form_for_does_not_fit_there():
    """Blocks of 32 in sums of 6 and of 64: refused where a weight is written, found before."""
    params = {"a": models.normal(6, 64), "b": models.normal(64, 3)}
    net = js.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, models.normal(5, 6))
    fit = fitted(net, {"8": js.quantize(8, 8), "MX": js.quantize(js.mx("e2m1"), 8)})
    assert fit.table().tolist() == [[1, 0], [1, 1]]
    assert "no multiple of 32" in fit.refused["a", "MX"]


def test_sites_that_no_option_is_for_are_no_places():
    fit = fitted(deep_cnn(), {"8": Option(js.quantize(8, 8), sites=["Conv*"])})
    assert {place.name for place in fit.places} == {"Conv_0/kernel", "Conv_1/kernel"}


def test_what_a_site_has_already_stays():
    net = js.prune(0.5, sites="Conv_0*")(cnn())
    named = named_options({"8": js.quantize(8, 8), "4": js.quantize(4, 8)})
    fit = fit_options(net, named)
    made = apply_options(net, named, dict(zip(fit.places, ("8", "4"), strict=True)))
    assert made.masks is net.masks or made.masks.keys() == net.masks.keys()
    bits = [chain[-1].settings["weights"].bits for chain in made.cores.values()]
    assert sorted(bits) == [4, 8]


def doubled(net):
    return net.with_params(jax.tree.map(lambda p: 2 * p, net.params))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"options=\{\}: give a dict of at least one option"),
        ({"8": 8}, r"options: '8' has 8, which is no transform"),
        ({"8": js.quantize}, r"options: '8'.*call it"),
        ({"": js.quantize(8, 8)}, r"options: '' is no name"),
        ({"8": Option(js.quantize(8, 8), sites="none")}, r"sites='none' matches no site"),
        (
            {"mended": js.compose(js.quantize(4, 8), js.correct_bias(X))},
            r"options: 'mended' does something else to Dense_0/kernel alone",
        ),
        (
            {"doubled": lambda net: js.quantize(8, 8)(doubled(net))},
            r"options: 'doubled' changes .*Conv_0/bias.*apply it before explore",
        ),
        ({"half": js.prune(0.5)}, r"options: 'half' does something else to .*uniform\(\)"),
        ({"cells": js.slice_bits(2)}, r"options: 'cells' fits no site: "),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fitted(cnn(), options)


def test_a_deployed_network_is_refused():
    chip = js.deploy(js.quantize(8, 8)(cnn()), calibrate=X)
    with pytest.raises(ValueError, match="net is deployed"):
        fitted(chip, {"8": js.quantize(8, 8)})


def test_a_pipeline_is_refused():
    net = js.pipeline_shard(2, 1, devices=jax.devices()[:1] * 2)(deep_cnn())
    with pytest.raises(ValueError, match="explore cannot follow pipeline_shard: devices work at"):
        fitted(net, {"8": js.quantize(8, 8)})
