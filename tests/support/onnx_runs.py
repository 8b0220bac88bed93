"""What onnxruntime computes of a graph, with any of its values beside the outputs."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime


def session(model, *, optimized=False, extra=()):
    """A session of a model on one thread, which also gives values of these names.

    Without VNNI, products of bytes saturate on x86: sites run on the floats of their codes there.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for name in extra:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads = 1
    processor = Path("/proc/cpuinfo")
    if processor.exists() and "vnni" not in processor.read_text():
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model, *args, optimized=False, extra=()):
    """Outputs and the extra values by name."""
    running = session(model, optimized=optimized, extra=extra)
    given = {i.name: np.asarray(a) for i, a in zip(running.get_inputs(), args, strict=True)}
    names = [o.name for o in running.get_outputs()]
    return dict(zip(names, running.run(names, given), strict=True))


def constants(model):
    """Constants of a graph by name."""
    return {c.name: onnx.numpy_helper.to_array(c) for c in model.graph.initializer}
