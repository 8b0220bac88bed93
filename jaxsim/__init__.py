"""jaxsim: what a Flax model becomes on tomorrow's hardware, by composing pure functions."""

from jaxsim import accelerators, export, sparsity
from jaxsim._version import __version__ as __version__
from jaxsim.accelerators.accelerator import Accelerator
from jaxsim.accelerators.estimate import estimate
from jaxsim.adaptive import tokens
from jaxsim.adaptive.rule import Buckets, Exits, Rule
from jaxsim.checkpoint.save_load import load, save
from jaxsim.cores import adc, cells, dac, wires
from jaxsim.cores.adc import fpg_bits
from jaxsim.cores.core import Core, float_core
from jaxsim.cores.op import Op
from jaxsim.cores.role import role
from jaxsim.cores.storage import Format
from jaxsim.cores.wrapper import Wrapper
from jaxsim.evaluate import language
from jaxsim.evaluate.comparison import classify, compare
from jaxsim.evaluate.crossbar import Crossbar
from jaxsim.evaluate.sweep import sweep
from jaxsim.evaluate.systolic import Hardware
from jaxsim.formats import clipping, rounding
from jaxsim.formats.block_grid import BlockGrid
from jaxsim.formats.codebook import Codebook, Floating, fp4, nf4
from jaxsim.formats.grid import Grid
from jaxsim.formats.microscaling import mx, nvfp4
from jaxsim.integer.convert import integer_only
from jaxsim.integer.network import IntegerNetwork
from jaxsim.network.adc_span import common_span
from jaxsim.network.aging import age, count_pulses, recalibrate
from jaxsim.network.deployment import deploy, widen_ranges
from jaxsim.network.network import Network
from jaxsim.network.operands import fix_writes
from jaxsim.network.site import Site
from jaxsim.network.tracing import trace
from jaxsim.network.transform import compose, rules, wrap
from jaxsim.numerics.renamed import old_names
from jaxsim.search.bits import ablation_sensitivity, assign_bits, hessian_sensitivity
from jaxsim.search.blocks import search_blocked
from jaxsim.search.explore import explore
from jaxsim.search.front import Front
from jaxsim.search.options import Option
from jaxsim.search.report import report
from jaxsim.sparsity import storage
from jaxsim.sparsity.channels.groups import dependencies
from jaxsim.sparsity.efficiency import hardness_normalized, parameter_efficiency
from jaxsim.sparsity.report import sparsity_report
from jaxsim.sparsity.storage import storage_bits
from jaxsim.staged.gradient import pipeline_value_and_grad
from jaxsim.staged.network import Staged
from jaxsim.staged.pipeline import simulate_schedule
from jaxsim.transforms import designs
from jaxsim.transforms.analog import analog
from jaxsim.transforms.awq import awq
from jaxsim.transforms.block import block
from jaxsim.transforms.code_cache import code_cache
from jaxsim.transforms.correct_bias import correct_bias
from jaxsim.transforms.equalize import equalize
from jaxsim.transforms.exit_early import distill_exits, exit_early
from jaxsim.transforms.fit_ranges import fit_ranges
from jaxsim.transforms.fold_norms import fold_norms
from jaxsim.transforms.learn_ranges import learn_ranges
from jaxsim.transforms.lora import adapters, lora, merge_adapters, with_adapters
from jaxsim.transforms.magic_pyramid import magic_pyramid
from jaxsim.transforms.pipeline_shard import pipeline_shard
from jaxsim.transforms.prune import prune
from jaxsim.transforms.prune_layers import prune_layers
from jaxsim.transforms.prune_tokens import prune_tokens
from jaxsim.transforms.quantize import quantize
from jaxsim.transforms.rotate import rotate
from jaxsim.transforms.round_weights import round_weights
from jaxsim.transforms.run_sparse import measure_break_even, run_sparse
from jaxsim.transforms.shrink import shrink
from jaxsim.transforms.slice_bits import slice_bits
from jaxsim.transforms.smooth import smooth
from jaxsim.transforms.synthesize import synthesize_inputs
from jaxsim.transforms.update_norms import update_norms

__all__ = [
    "trace",
    "deploy",
    "integer_only",
    "widen_ranges",
    "age",
    "recalibrate",
    "fix_writes",
    "common_span",
    "count_pulses",
    "compare",
    "classify",
    "language",
    "save",
    "load",
    "export",
    "Network",
    "IntegerNetwork",
    "Site",
    "compose",
    "rules",
    "wrap",
    "prune",
    "prune_layers",
    "shrink",
    "dependencies",
    "run_sparse",
    "measure_break_even",
    "sparsity_report",
    "storage",
    "storage_bits",
    "parameter_efficiency",
    "hardness_normalized",
    "quantize",
    "learn_ranges",
    "fold_norms",
    "equalize",
    "smooth",
    "rotate",
    "awq",
    "fit_ranges",
    "round_weights",
    "correct_bias",
    "update_norms",
    "lora",
    "adapters",
    "with_adapters",
    "merge_adapters",
    "synthesize_inputs",
    "rounding",
    "sparsity",
    "block",
    "slice_bits",
    "analog",
    "code_cache",
    "Staged",
    "exit_early",
    "distill_exits",
    "prune_tokens",
    "magic_pyramid",
    "tokens",
    "Rule",
    "Exits",
    "Buckets",
    "pipeline_shard",
    "pipeline_value_and_grad",
    "simulate_schedule",
    "adc",
    "dac",
    "cells",
    "designs",
    "wires",
    "Accelerator",
    "accelerators",
    "estimate",
    "Hardware",
    "Crossbar",
    "sweep",
    "explore",
    "Option",
    "Front",
    "report",
    "search_blocked",
    "hessian_sensitivity",
    "ablation_sensitivity",
    "assign_bits",
    "fpg_bits",
    "Grid",
    "BlockGrid",
    "Codebook",
    "Floating",
    "mx",
    "nf4",
    "nvfp4",
    "fp4",
    "clipping",
    "Format",
    "Core",
    "Op",
    "Wrapper",
    "float_core",
    "role",
]

__getattr__ = old_names(__name__, {"EarlyExit": Staged})
