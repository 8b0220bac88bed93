import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsim as js
from tests.support.cut_networks import network


def test_a_report_counts_what_masks_leave():
    net = js.prune(0.9)(network("depthwise"))
    report = js.sparsity_report(net)
    rows = {row.name: row for row in report.rows}
    assert sum(row.nonzero for row in report.rows) == sum(int(m.sum()) for m in net.masks.values())
    row, mask = rows["Conv_0/kernel"], np.asarray(net.masks["Conv_0/kernel"])
    assert row.bits["CSR"] == js.storage_bits(mask, js.storage.csr())
    assert row.bits["BSR 4×4"] is None
    assert row.macs == net.cost().sites[0].spent["macs"]
    assert report.useful == pytest.approx(sum(r.macs * r.nonzero / r.size for r in report.rows))
    best = sum(min(b for n, b in r.bits.items() if b and n != "bound") for r in report.rows)
    dense = 32 * sum(r.size for r in report.rows)
    assert report.compression == dense / best > 3
    assert "Conv_0/kernel" in str(report)


def test_zeros_count_without_masks_and_full_weights_are_dense():
    net = network("mlp")
    report = js.sparsity_report(net)
    assert {row.best for row in report.rows} == {"dense"}
    assert report.compression == 1
    params = dict(net.params)
    params["Dense_0"] = params["Dense_0"] | {"kernel": jnp.zeros((5, 16)).at[0].set(1.0)}
    report = js.sparsity_report(dataclasses.replace(net, params=params), value_bits=8)
    assert report.rows[0].nonzero == 16
    assert report.rows[0].best != "dense"
