import dataclasses

import jax.numpy as jnp
import pytest

import jaxsim as js
from jaxsim.accelerators import DigitalArray, Link, Memory, Part, SimdUnit, Spent

PRESETS = [
    js.accelerators.systolic_45nm(16, 8),
    js.accelerators.ax_bxp(2),
    js.accelerators.isaac_like(),
    *map(js.accelerators.paper_design, "ABCDE"),
    js.accelerators.mixed(),
    js.accelerators.mixed(4),
]
OWN = js.Accelerator(
    {"a b": DigitalArray(2, 3, dataflow="input", clock=1.5), "simd": SimdUnit(contracts=False)},
    {
        "near": Memory(read=0.1, write=0.2, size=300, bandwidth=4e9, serves=("simd", "a b")),
        "far": Memory(read=7, area=2.5),
    },
    {"simd": Link(energy=0.25, bandwidth=8e9)},
    weights="near",
    activations=12,
)


@pytest.mark.parametrize("chip", [*PRESETS, OWN])
def test_what_is_written_is_what_is_read(chip, tmp_path):
    js.accelerators.save(chip, tmp_path / "chip.toml")
    again = js.accelerators.load(tmp_path / "chip.toml")
    assert again == chip
    assert hash(again) == hash(chip)
    assert (list(again.parts), list(again.memory)) == (list(chip.parts), list(chip.memory))


def test_presets_hold_activations_in_eight_bits_and_mix_what_the_others_have():
    assert {chip.activations for chip in PRESETS} == {8}
    for K, digital in ((None, js.accelerators.systolic_45nm()), (3, js.accelerators.ax_bxp(3))):
        chip = js.accelerators.mixed(K)
        analog = js.accelerators.isaac_like().parts["analog"]
        assert chip.parts == {"analog": analog, **digital.parts}
        assert chip.memory == digital.memory


def test_presets_differ():
    for i, chip in enumerate(PRESETS):
        assert chip not in PRESETS[:i]


def read(tmp_path, text):
    (tmp_path / "chip.toml").write_text(text)
    return js.accelerators.load(tmp_path / "chip.toml")


def test_what_a_file_leaves_out_has_its_default(tmp_path):
    found = read(tmp_path, '[parts.array]\nkind = "DigitalArray"\nrows = 4\n')
    assert found == js.Accelerator({"array": DigitalArray(rows=4)})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("parts = [", "not TOML"),
        ("[part.array]\n", "'part' is no key of it; the nearest is 'parts'"),
        ('[parts.array]\nkind = "Digital"\n', r"\[parts.array\]: kind='Digital': must be one of"),
        ("[parts.array]\nrows = 3\n", "kind=None: must be one of 'DigitalArray'"),
        (
            '[parts.array]\nkind = "DigitalArray"\ncolumn = 3\n',
            r"\[parts.array\]: 'column' is no key of it; the nearest is 'columns'",
        ),
        ('[parts.a]\nkind = "SimdUnit"\n[memory.m]\nreed = 3\n', "nearest is 'read'"),
        ('[parts.a]\nkind = "SimdUnit"\n[memory.m]\n', r"\[memory.m\].*read"),
        ('[parts.a]\nkind = "SimdUnit"\nlanes = 0\n', r"\[parts.a\]: lanes=0: must"),
        ('[parts.a]\nkind = "SimdUnit"\nlanes = "many"\n', r"\[parts.a\]: lanes='many'"),
        ('weights = "sram"\n[parts.a]\nkind = "SimdUnit"\n', "weights='sram': must be one of none"),
        ("memory = 3\n", "memory must hold tables"),
        ("activations = 8\n", r"parts=\{\}"),
    ],
)
def test_what_a_file_may_not_say_is_named(tmp_path, text, match):
    with pytest.raises(ValueError, match=match):
        read(tmp_path, text)


def test_functions_of_ones_own_are_not_written(tmp_path):
    own = Part(lambda work: "", lambda work: Spent({}, 0, 0.0))
    with pytest.raises(ValueError, match=r"parts\['own'\]: is of functions of one's own"):
        js.accelerators.save(js.Accelerator({"own": own}), tmp_path / "chip.toml")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"parts": {}}, "parts={}: give at least one"),
        ({"parts": {"a": 3}}, r"parts\['a'\]=3: must be a part"),
        ({"parts": [SimdUnit()]}, "parts=.*must be a dict by name"),
        ({"parts": {1: SimdUnit()}}, "parts=.*must be a dict by name"),
        ({"memory": {"m": 3}}, r"memory\['m'\]=3: must be Memory"),
        ({"links": {"b": Link(energy=1)}}, "links='b': must be one of a"),
        ({"links": {"a": 1}}, r"links\['a'\]=1: must be Link"),
        ({"memory": {"m": Memory(read=1, serves=("b",))}}, r"memory\['m'\].serves='b': must be"),
        ({"weights": "m"}, "weights='m': must be one of none"),
        ({"activations": 0}, "activations=0"),
    ],
)
def test_what_does_not_fit_together_is_named(changes, match):
    with pytest.raises(ValueError, match=match):
        js.Accelerator(**{"parts": {"a": SimdUnit()}, **changes})


@pytest.mark.parametrize("name", ["F", "a", "", None])
def test_there_are_five_designs(name):
    with pytest.raises(ValueError, match="must be one of A, B, C, D, E"):
        js.accelerators.paper_design(name)


def test_an_accelerator_does_not_change():
    chip = js.accelerators.mixed()
    with pytest.raises(TypeError):
        chip.parts["other"] = SimdUnit()
    with pytest.raises(dataclasses.FrozenInstanceError):
        chip.weights = "sram"


def test_area_is_that_of_all_parts_and_levels():
    assert OWN.area == pytest.approx(sum(p.area for p in OWN.parts.values()) + 2.5)


def test_designs_hold_what_their_recipes_ask():
    """The recipes as reported, on a layer: each fits its own design, and not that of fewer rows."""
    net = js.trace(lambda p, x: x @ p["w"], {"w": jnp.ones((2000, 3))}, jnp.ones((2, 2000)))
    recipes = {
        "A": js.analog(8, rows=1152, input_bits=1, accumulate="analog"),
        "B": js.compose(js.slice_bits(1), js.analog(8, rows=1152, input_bits=1)),
        "C": js.analog(8, rows=144, input_bits=1, accumulate="analog"),
        "D": js.compose(js.slice_bits(1), js.analog(8, rows=144, input_bits=1)),
        "E": js.compose(js.slice_bits(2), js.analog(8, rows=72, mapping="offset", input_bits=1)),
    }
    fits = {
        name: "".join(
            design
            for design in "ABCDE"
            if _runs(js.compose(js.quantize(8, 8), recipe)(net), design)
        )
        for name, recipe in recipes.items()
    }
    assert fits == {"A": "A", "B": "AB", "C": "AC", "D": "ABCD", "E": "ACE"}


def _runs(net, design):
    try:
        js.estimate(net, js.accelerators.paper_design(design))
    except ValueError:
        return False
    return True
