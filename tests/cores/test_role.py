"""Roles: what a wrapper declares decides where it may stand, not which function it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from jaxsim.checkpoint.save_load import describe
from jaxsim.cores.adc.column import uniform_adc
from jaxsim.cores.quantized import quantized
from jaxsim.cores.tiled import tiled
from jaxsim.transforms.learn_ranges import ranges, with_ranges
from tests.support.networks import X, cnn, run


@js.role("digital")
def doubled(core):
    return core._replace(read=lambda *args: 2 * core.read(*args))


def undeclared(core):
    return core


@js.role("codes")
def own_codes(core, *, weights, inputs):
    return quantized(core, weights=weights, inputs=inputs)


@js.role("array")
def own_array(core):
    return core


def test_what_declares_digital_may_stand_before_slices_and_what_declares_nothing_may_not():
    net = js.quantize(8, 8)(cnn())
    sliced = js.slice_bits(2)(js.wrap(doubled)(net))
    assert [w.role for w in sliced.cores["Conv_0/kernel"]] == ["codes", "digital", "slices"]
    with pytest.raises(ValueError, match="slice_bits cannot follow undeclared at Conv_0"):
        js.slice_bits(2)(js.wrap(undeclared)(net))


def test_codes_of_somebody_elses_are_held_as_ours_are():
    grids = {"weights": js.Grid(8, per="channel"), "inputs": js.Grid(8)}
    hardware = js.compose(js.slice_bits(2), js.analog(adc=6, rows=16))
    theirs = hardware(js.wrap(own_codes, **grids)(cnn()))
    np.testing.assert_array_equal(run(theirs, X), run(hardware(js.quantize()(cnn())), X))
    with pytest.raises(ValueError, match="quantize cannot follow own_codes"):
        js.quantize()(js.wrap(own_codes, **grids)(cnn()))


def test_an_array_of_somebody_elses_is_an_array():
    with pytest.raises(ValueError, match="analog cannot follow analog"):
        js.analog()(js.wrap(own_array)(js.quantize()(cnn())))


def test_roles_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match=r"name='converter': must be one of 'operand', 'mask'"):
        js.role("converter")


def test_a_renamed_function_keeps_its_name_at_rest():
    wrapper = js.Wrapper.of(uniform_adc, bits=8.0, percentile=99.0, signed=True)
    assert repr(wrapper).startswith("uniform_adc(")
    assert wrapper.signature() == "converted(bits=nan, percentile=nan, signed=True)"
    chip = js.compose(js.quantize(), js.slice_bits(2), js.analog(adc=8))(cnn())
    assert " sliced(bits=2, top=full_range) tiled(" in describe(chip)[0]


@dataclasses.dataclass(frozen=True)
class Own:
    """A format that stores weights on a grid and inputs, if asked, by a function of its own."""

    grid: js.Grid

    def wrappers(self, side):
        return [js.Wrapper.of(own_codes, **{"weights": None, "inputs": None, side: self.grid})]


def test_a_format_of_ones_own_is_stored_as_it_says():
    own = js.quantize(Own(js.Grid(6, per="channel")), Own(js.Grid(5)))(cnn())
    (wrapper,) = own.cores["Conv_0/kernel"]
    assert wrapper.settings == {"weights": js.Grid(6, per="channel"), "inputs": js.Grid(5)}
    ours = js.quantize(js.Grid(6, per="channel"), js.Grid(5))(cnn())
    np.testing.assert_array_equal(run(own, X), run(ours, X))
    mixed = js.quantize(Own(js.Grid(6, per="channel")), js.Floating("bfloat16"))(cnn())
    assert [w.name for w in mixed.cores["Conv_0/kernel"]] == ["own_codes", "minifloat"]


@dataclasses.dataclass(frozen=True)
class Ternary:
    """Codes of somebody else's, with what the hardware reads of a format and no more."""

    bits = 2
    symmetric = True
    code_range = (-1, 1)

    def wrappers(self, side):
        return [js.Wrapper.of(ternary, weights=self)]


@js.role("codes")
def ternary(core, *, weights):
    def write(op, w, key):
        code = jnp.sign(w).astype(jnp.int8) if op.integer else jnp.sign(w)
        return core.write(op.codes(*weights.code_range), code, key)

    def read(op, state, x, key):
        return core.read(op.codes(*weights.code_range), state, x, key)

    return core._replace(write=write, read=read)


def test_codes_without_a_grid_are_held_and_what_needs_grids_says_so():
    net = js.quantize(Ternary(), None)(cnn())
    held = js.compose(js.slice_bits(1), js.analog(rows=16))(net)
    expected = run(net, X)  # sums of signed products: near zero an error is as large as elsewhere
    np.testing.assert_allclose(run(held, X), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    refused = {
        "round_weights at .* expected a Grid": js.round_weights(js.rounding.gptq(), X),
        "smooth at .* expected a Grid": js.smooth(X),
        "learn_ranges at .* not on a grid": js.learn_ranges(X),
        "block at .* its inputs are floats": js.block(1),
        r"analog\(input_bits=1\) at .* its inputs are floats": js.analog(input_bits=1),
    }
    for match, transform in refused.items():
        with pytest.raises(ValueError, match=match):
            transform(net)


def test_ranges_are_learned_beside_codes_that_have_none():
    mixed = js.rules(
        {
            "Conv_0*": js.quantize(Ternary(), None),
            "*": js.compose(js.quantize(4, 4), js.learn_ranges(X)),
        }
    )(cnn())
    values = ranges(mixed)
    assert values
    doubled = ranges(with_ranges(mixed, {k: 2 * v for k, v in values.items()}))
    assert doubled.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(doubled[name], 2 * np.asarray(value))


def test_integers_alone_are_of_our_own_codes():
    grids = {"weights": js.Grid(8, per="channel"), "inputs": js.Grid(8)}
    chip = js.deploy(js.wrap(own_codes, **grids)(cnn()), calibrate=X)
    with pytest.raises(ValueError, match="is not quantized"):
        js.integer_only(chip)


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A format whose function stores both operands by one scale."""

    scale: float

    def wrappers(self, side):
        return [js.Wrapper.of(own_codes, **{side: js.Grid(8)}, scale=self.scale)]


def test_settings_of_both_operands_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"scale=1.0 for the weights and scale=2.0 for the inputs"):
        js.quantize(Scaled(1.0), Scaled(2.0))


class Nothing:
    def wrappers(self, side):
        return [tiled]


@pytest.mark.parametrize(
    "form", ["int8", 2.5, Own, Nothing(), object()], ids=lambda f: type(f).__name__
)
def test_what_is_no_format_is_refused_by_operand(form):
    for side in ("weights", "inputs"):
        with pytest.raises(ValueError, match=rf"{side}=|called|call it"):
            js.quantize(**{side: form})


def levels(y):
    """The largest number of values that a row of outputs takes."""
    return max(len(np.unique(row)) for row in np.asarray(y).round(4))


def test_a_converter_by_its_numbers_and_as_functions_are_one():
    layout = {"mapping": "offset", "rows": 16}
    numbers = js.compose(js.quantize(), js.analog(adc=5, percentile=99.0, **layout))(cnn())
    functions = js.analog(adc=js.adc.uniform(5, percentile=99.0), **layout)
    functions = js.compose(js.quantize(), functions)(cnn())
    np.testing.assert_array_equal(run(functions, X), run(numbers, X))
    spent = [js.Crossbar().estimate(net).energy for net in (numbers, functions)]
    assert spent[0] == spent[1] > 0


def halves(y, lo, hi, signed):
    return jnp.where(y > (lo + hi) / 2, hi, lo)


def test_a_converter_of_ones_own_converts_every_column():
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)
    net = js.trace(lambda p, x: x @ p, np.eye(8, dtype=np.float32), x)

    def outputs(adc):
        chip = js.compose(js.quantize(8, 8), js.analog(adc=adc, mapping="offset"))(net)
        return js.deploy(chip, calibrate=x)(x)

    assert levels(outputs(js.adc.uniform(8)._replace(convert=halves))) <= 2
    assert levels(outputs(js.adc.uniform(8))) > 2


def test_a_converter_whose_range_follows_from_codes_needs_codes_and_is_shown():
    own = js.adc.uniform(8)._replace(span=jax.tree_util.Partial(whole, 2.0))
    assert str(own) == "equal_steps, 8 bits, whole"
    with pytest.raises(ValueError, match=r"analog\(adc=equal_steps, 8 bits, whole\) at Conv_0"):
        js.compose(js.quantize(8, None), js.analog(adc=own))(cnn())


def whole(factor, column, bits, signed):
    return -factor * column.w_hi, factor * column.w_hi


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"adc": js.adc.uniform(8), "adc_range": "max"}, "a converter has its own range"),
        ({"adc": js.adc.uniform(8), "percentile": 99.0}, "a converter has its own range"),
        ({"adc": js.adc.uniform(1)}, "adc.bits=1"),
        ({"adc": "uniform"}, "adc=uniform: must be a number"),
    ],
)
def test_converters_that_do_not_fit_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        js.analog(**settings)


def test_settings_of_a_uniform_converter_are_checked():
    for settings in ({"bits": 0}, {"bits": 17}, {"bits": 8, "percentile": 0}):
        with pytest.raises(ValueError, match="must be a number"):
            js.adc.uniform(**settings)
    with pytest.raises(ValueError, match="span='full'"):
        js.adc.uniform(8, span="full")
