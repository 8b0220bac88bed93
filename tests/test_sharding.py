"""Arrays made beside parameters lie where the parameters do."""

import json

import pytest

from tests.support.processes import finished, free_port, of_two_and_of_one, start


@pytest.fixture(scope="module")
def made():
    process = start("tests.support.sharding_process", devices=4)
    output, error = process.communicate()
    assert process.returncode == 0, error[-3000:]
    return json.loads(output.splitlines()[-1])


def test_what_is_made_beside_parameters_takes_their_sharding(made):
    assert len(made["parameters"]) == 12
    for name, axes in made["parameters"].items():
        assert axes == {"a": 1, "b": 0}, name


def test_what_a_chip_holds_is_cut_as_its_weights_are_and_so_is_what_is_loaded(made):
    assert len(made["states"]) == 4
    for name, (shares, off) in made["states"].items():
        for found in shares:
            assert {path[0] for path in found} == {"a", "b"}, name
            assert set(found.values()) == {1 / 4}, (name, found)
        assert off < 1e-4, name


def test_a_table_of_codes_is_cut_as_the_parameter_at_both_of_its_sites(made):
    shares, off = made["tables"]
    sites = ("t:lookup", "t")
    assert shares == {f"{when} {name}": 1 / 4 for when in ("deployed", "loaded") for name in sites}
    assert off < 1e-4


def test_on_explicit_axes_parameters_masks_and_gradients_keep_theirs(made):
    """Every operation of jaxsim's leaves to the compiler what a model with such axes must say."""
    assert len(made["explicit"]) == 9
    for name, (params, masks, slope, shares, off) in made["explicit"].items():
        assert params == slope == {"a": 1, "b": 0}, name
        assert masks == ({"a": 1, "b": 0} if name == "pruned" else {}), name
        for found in shares:
            assert {path[0] for path in found} == {"a", "b"}, name
            assert set(found.values()) == {1 / 4}, (name, found)
        assert off < 1e-4, name


def test_two_processes_hold_halves_of_what_one_does_deployed_saved_and_loaded():
    """To the bit: the same network, its arrays on devices of another process or of this one."""
    first, second, alone = of_two_and_of_one("tests.support.sharded_process")
    assert first == second == alone


def test_a_run_of_two_processes_is_killed_and_goes_on_with_the_bits_of_one_that_was_not(tmp_path):
    """Weights, moments and keys, of which each process holds a part; the first one writes."""

    def run(folder, processes, kill):
        port, module = free_port(), "tests.support.resumed_process"
        devices = 2 // processes
        return [
            start(module, port, processes, i, tmp_path / folder, kill, devices=devices)
            for i in range(processes)
        ]

    whole = run("whole", 1, -1)
    for process in run("killed", 2, 5):
        process.communicate(timeout=300)
        assert process.returncode == 9
    assert [p.name for p in (tmp_path / "killed").iterdir() if p.name.isdigit()] == ["4"]
    resumed = [words[words.index("result") :] for words in map(finished, run("killed", 2, 3))]
    expected = finished(whole[0])
    assert resumed == [expected[expected.index("result") :]] * 2


def test_masks_and_codes_of_experts_are_cut_as_their_stack(made):
    axes, *off = made["experts"]
    assert axes == [0] * 5
    assert max(off) < 1e-4


def test_sites_inside_a_shard_map_are_those_of_each_device_written_out(made):
    """Codes, ranges, outputs, gradients; rows of inputs that devices share widen one range."""
    found = made["parts"]
    assert found["sites"] == {
        "a": [[2, 2, 2], [2, 2], ["", "d", "m"], [8, 4], [2, 8], [2]],
        "b": [[2, 2, 2], [2, 2], ["", "d", "m"], [4, 8], [2, 4], [2]],
        "c": [[], [], [], [8, 3], [4, 8], []],
    }
    assert len(found["codes and ranges"]) == 8
    assert set(found["codes and ranges"].values()) == {0}
    assert found["outputs"] < 1e-5 < 1e-2 < found["noise"]
    assert found["loaded"] == 0
    assert max(found["slopes"]) < 1e-5
    assert found["cut"] == [1 / 2]
    assert found["pruned"] == [True]
    assert found["macs"][0] == found["macs"][1]


def test_a_weight_that_devices_gather_is_whole_on_each_and_those_alike_draw_alike(made):
    found = made["gathered"]
    assert found["site"] == [["a"], [2]]
    assert found["off"] < 1e-5
    assert found["rows apart"] > 1e-2


def test_layers_by_a_counter_keep_explicit_axes(made):
    assert made["counted"] == [0, "m"]
