"""Costs of a model: arithmetic, latency, memory, parameters, and the machine they belong to."""

from jaxeff.bench.chips import all_reduce_seconds, hidden_batch, scaling_efficiency
from jaxeff.bench.collectives import Collective, collectives
from jaxeff.bench.flops import Cost, cost_per_example, count, macs_per_example
from jaxeff.bench.latency import Latency, compile_time, interleaved, measure
from jaxeff.bench.memory import compiled_flops, compiled_memory
from jaxeff.bench.summary import count_parameters, environment, git_commit, parameter_table
from jaxeff.bench.topologies import Topology, topology

__all__ = [
    "Collective",
    "Cost",
    "Latency",
    "Topology",
    "all_reduce_seconds",
    "collectives",
    "compile_time",
    "compiled_flops",
    "compiled_memory",
    "cost_per_example",
    "count",
    "count_parameters",
    "environment",
    "git_commit",
    "hidden_batch",
    "interleaved",
    "macs_per_example",
    "measure",
    "parameter_table",
    "scaling_efficiency",
    "topology",
]
