"""Which layers and channels are trained: costs, criteria, policies. Needs numpy, neither TVM nor torch.

`select` is the entry: a cost accounting, budgets and Fisher potentials in, a `Selection` with its
`UpdatePlan` out.
"""

from tvm_tinytrain.selection.accounting import (
    Accounting,
    ExactAccounting,
    OptimizerCost,
    PaperAccounting,
    PlanCost,
    plan_cost,
)
from tvm_tinytrain.selection.adapters import Adapter, lite_residuals
from tvm_tinytrain.selection.bound import upper_bound
from tvm_tinytrain.selection.candidates import LAYER_KINDS, LayerKind, block_starts, expansions, of_kind
from tvm_tinytrain.selection.compiled import CompiledMacs, compiled_macs
from tvm_tinytrain.selection.cost import LayerCost, NetworkCosts, layer_cost, network_costs
from tvm_tinytrain.selection.criterion import Greedy
from tvm_tinytrain.selection.exact import Exact
from tvm_tinytrain.selection.fisher import FisherMap, squared_norms
from tvm_tinytrain.selection.network import LayerSpec, inverted_bottlenecks
from tvm_tinytrain.selection.policies import (
    bias_only,
    find_scheme,
    full_train,
    last_layer,
    sparse_update,
    train_layers,
)
from tvm_tinytrain.selection.problem import Budgets, Problem
from tvm_tinytrain.selection.resample import resample
from tvm_tinytrain.selection.schemes import SCHEMES
from tvm_tinytrain.selection.selector import Selection, TaskAdaptive, captured_share, select
from tvm_tinytrain.selection.table_accounting import ChainLink, TableAccounting, TableCandidate

__all__ = [
    "LAYER_KINDS",
    "SCHEMES",
    "Accounting",
    "Adapter",
    "Budgets",
    "ChainLink",
    "CompiledMacs",
    "Exact",
    "ExactAccounting",
    "FisherMap",
    "Greedy",
    "LayerCost",
    "LayerKind",
    "LayerSpec",
    "NetworkCosts",
    "OptimizerCost",
    "PaperAccounting",
    "PlanCost",
    "Problem",
    "Selection",
    "TableAccounting",
    "TableCandidate",
    "TaskAdaptive",
    "bias_only",
    "block_starts",
    "captured_share",
    "compiled_macs",
    "expansions",
    "find_scheme",
    "full_train",
    "inverted_bottlenecks",
    "last_layer",
    "layer_cost",
    "lite_residuals",
    "network_costs",
    "of_kind",
    "plan_cost",
    "resample",
    "select",
    "sparse_update",
    "squared_norms",
    "train_layers",
    "upper_bound",
]
