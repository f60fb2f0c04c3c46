"""PyTorch's optimizer of exported graphs, without the one step that is slow on large ones."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

# Looks for pairs of Slice nodes, and for it walks the whole graph from every node: of 400 layers it
# took half of the time of the export. Without it two slices of a tensor stay two nodes.
SLOW_RULES = {"SlicesSplit"}


def is_look_up(node: ir.Node) -> bool:
    """Whether a node casts the codes of a codebook, or gathers its entries."""
    if node.op_type == "Gather" and len(node.inputs) == 2:
        source = node.inputs[1].producer() if node.inputs[1] is not None else None
        return source is not None and is_look_up(source)
    given = node.inputs[0] if node.op_type == "Cast" and node.inputs else None
    constant = given.const_value if given is not None else None
    return constant is not None and constant.dtype in (ir.DataType.UINT8, ir.DataType.UINT4)


def optimize(model: ir.Model) -> None:
    """In place what ``torch.onnx.export(optimize=True)`` does: fold constants, simplify, clean up.

    The rules are onnxscript's own. Where another version of it keeps them elsewhere, all of them
    are applied.
    """
    from onnxscript import optimizer, rewriter

    default = getattr(rewriter, "_DEFAULT_REWRITE_RULES", None)
    folding = getattr(optimizer, "constant_folding", None)
    if not default or folding is None:
        optimizer.optimize_ir(model)
        return
    rules = [rule for rule in default if getattr(rule, "name", None) not in SLOW_RULES]
    rounds = ir.passes.PassManager(
        [
            folding.FoldConstantsPass(
                shape_inference=True,
                input_size_limit=folding.DEFAULT_CONSTANT_FOLD_INPUT_SIZE_LIMIT,
                output_size_limit=folding.DEFAULT_CONSTANT_FOLD_OUTPUT_SIZE_LIMIT,
                # A codebook's codes stay codes, also those of a layer of a few weights.
                should_fold=lambda node: False if is_look_up(node) else None,
            ),
            rewriter.RewritePass(rules),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedFunctionsPass(),
            common.RemoveUnusedOpsetsPass(),
        ],
        steps=2,
        early_stop=True,
    )
    ir.passes.Sequential(
        common.InlinePass(),
        rounds,
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)
