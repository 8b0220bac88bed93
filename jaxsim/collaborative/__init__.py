"""Classes that explain a feature together: ridge codes, residuals, heads, pooling, transfer."""

from jaxsim.collaborative.codes import loo_codes, ridge_codes
from jaxsim.collaborative.dictionary import Dictionary, make_dictionary
from jaxsim.collaborative.head import batch_logits, dictionary_logits, leave_one_out_entropy, unit
from jaxsim.collaborative.pooling import bilinear_pool, compact_bilinear_pool, tensor_sketch
from jaxsim.collaborative.residuals import class_residuals
from jaxsim.collaborative.statistics import Paired, holm, paired_test
from jaxsim.collaborative.transfer import Stage, balanced_rows, fit_stages

__all__ = [
    # codes and residuals
    "ridge_codes",
    "loo_codes",
    "class_residuals",
    # heads
    "Dictionary",
    "make_dictionary",
    "batch_logits",
    "dictionary_logits",
    "leave_one_out_entropy",
    "unit",
    # pooling
    "bilinear_pool",
    "compact_bilinear_pool",
    "tensor_sketch",
    # transfer
    "Stage",
    "fit_stages",
    "balanced_rows",
    # comparisons
    "Paired",
    "paired_test",
    "holm",
]
