"""Pipelines on several devices, each check in a process of its own: eight of the host's, or two
processes on loopback."""

import pytest

from tests.support.processes import finished, of_two_and_of_one, start


def worst(*arguments):
    """The largest error that a check met."""
    *_, word, number = finished(start("tests.support.pipeline_grid", *arguments, devices=8))
    assert word == "worst"
    return float(number)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "encoder", "mlp"])
def test_gradients_are_the_networks_for_any_stages_micro_batches_and_schedule(name):
    assert worst("grid", name, "float64") <= 1e-12


@pytest.mark.slow
def test_gradients_are_the_networks_in_single_precision():
    assert worst("single") <= 1e-5


@pytest.mark.parametrize("setting", ["mlp 8 2 1", "mlp 2 4 2", "stack 4 2 2"])
def test_one_programme_for_all_devices_computes_the_same(setting):
    assert worst("spmd", *setting.split()) <= 1e-5


@pytest.mark.slow
def test_one_programme_pipelines_an_encoder_with_its_mask():
    assert worst("spmd", "encoder", 3, 2, 2) <= 1e-5


@pytest.mark.slow
def test_replicas_of_a_stage_share_each_micro_batch_and_its_batch_statistics():
    assert worst("replicas", "cnn", "float64") <= 1e-12


def test_parameters_and_gradients_stay_with_their_stages():
    assert worst("placed") <= 1e-5


def test_what_a_device_raises_surfaces_and_changes_nothing():
    assert worst("raising") <= 1e-5


def test_what_one_programme_cannot_do_is_named():
    assert worst("refused") == 0


def test_two_processes_compute_what_one_does():
    """To the bit: the same program, its collectives over loopback instead of memory."""
    first, second, alone = of_two_and_of_one("tests.support.pipeline_process")
    assert first == second == alone
