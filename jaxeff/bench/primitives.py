"""Names of JAX primitives by how :mod:`jaxeff.bench.flops` counts them.

Names rather than primitive objects, because a name that a JAX release lacks does no harm in a set.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Data movement, casts, bookkeeping, random bits, communication.
FREE = _names(
    """
    after_all all_gather all_gather_invariant all_gather_reduced all_to_all axis_index
    bitcast_convert_type broadcast_in_dim broadcast_to complex concatenate convert_element_type
    copy copy_p create_linear create_token dce_sink debug_callback device_put dynamic_slice
    dynamic_update_slice empty empty2 empty_ref expand_dims free_ref freeze from_edtype full gather
    get imag iota layout_constraint mesh_cast name new_ref opt_barrier optimization_barrier pad
    pbroadcast pbroadcast_dynamic pcast pmax pmin ppermute preduced psum psum2 psum_invariant
    psum_scatter pvary ragged_all_to_all real reduce_precision reduce_scatter reduced_vary_cast
    relayout reshape reshard rev rng_bit_generator rng_uniform scatter select_n sharding_constraint
    slice split squeeze stack stop_gradient swap threefry2x32 tie tile to_edtype transpose
    unreduced_pmax unreduced_pmin unreduced_psum unreduced_reduce_scatter unstack
    vary_unreduced_cast zeros_like
    """
)

ELEMENTWISE = _names(
    """
    abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp
    conj cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow
    is_finite le le_to lgamma log log1p log2 logistic lt lt_to max min mul ne neg nextafter pow rem
    round rsqrt sign sin sinh sqrt square sub tan tanh
    """
)

REDUCTIONS = _names(
    """
    argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_and reduce_max reduce_min
    reduce_or reduce_prod reduce_sum reduce_xor
    """
)

# Window operations besides ``reduce_window*``: the operand with one element per window, or None
# when that is the output.
WINDOWED: dict[str, int | None] = {
    "select_and_gather_add": None,
    "select_and_scatter": 1,
    "select_and_scatter_add": 0,
}

SCATTERS = _names(
    """
    scatter-add scatter-max scatter-min scatter-mul scatter-sub scatter_add scatter_max scatter_min
    scatter_mul scatter_sub
    """
)
