"""Checks of chapter 15: what a runtime cannot fuse, a residual sum repaired, a file chosen."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from ptq_classroom.chapters.ch15.small_files import Graph
from ptq_classroom.kit.cheapest import (
    HINTS,
    WRONG_CHOICES,
    by_standard_error,
    first_that_fits,
    limit_cases,
)
from ptq_classroom.kit.decisions import (
    WRONG_INTERVALS,
    Scores,
    cheapest_within,
    defended,
    interval,
    same_decision,
    unpaired,  # noqa: F401  (a wrong answer of WRONG_INTERVALS calls it)
)
from ptq_classroom.kit.exercises import Exercise
from ptq_classroom.kit.expect import Failure

# 15.1 ------------------------------------------------------------------------------------------


def unfused(onnx_model: ModelProto) -> list[str]:
    """Names of the Conv and Gemm nodes that the runtime cannot compute with integers."""
    nodes, found = onnx_model.graph.node, []
    made_by = {name: node.op_type for node in nodes for name in node.output}
    results = [value.name for value in onnx_model.graph.output]
    for node in [n for n in nodes if n.op_type in ("Conv", "Gemm")]:
        inputs = [made_by.get(name) for name in node.input]
        readers = [n.op_type for n in nodes if node.output[0] in n.input]
        rounded = readers == ["QuantizeLinear"] and node.output[0] not in results
        codes = set(inputs) == {"DequantizeLinear"}
        if not codes or (node.op_type == "Conv" and not rounded):
            found.append(node.name)
    return found


def _graphs() -> Iterator[tuple[str, dict[str, Any]]]:
    for label, build in (
        ("a convolution between DQ and Q", lambda g: g.pair(g.conv(g.pair("x")))),
        ("with an int32 bias", lambda g: g.pair(g.conv(g.pair("x"), bias=(g.int32_bias(),)))),
        (
            "the bias is in floating point",
            lambda g: g.pair(g.conv(g.pair("x"), bias=(g.floats((4,)),))),
        ),
        ("the weight is in floating point", lambda g: g.pair(g.conv(g.pair("x"), g.floats()))),
        ("the input is in floating point", lambda g: g.pair(g.conv(g.add("Sigmoid", g.pair("x"))))),
        ("a HardSwish reads the output", lambda g: g.pair(g.add("HardSwish", g.conv(g.pair("x"))))),
        ("the output of the network", lambda g: g.conv(g.pair("x"))),
        ("two readers, one of them a Q", _two_readers),
        ("an output that is rounded as well", _output_and_codes),
        ("a Gemm that returns real numbers", lambda g: g.gemm(g.pair("x"))),
        ("a Gemm with weights in floating point", lambda g: g.gemm(g.pair("x"), g.floats((4, 4)))),
        ("a residual block", _block),
        ("two convolutions stay behind", _two_left),
    ):
        graph = Graph()
        yield label, {"onnx_model": graph.model(build(graph))}


def _two_readers(g: Graph) -> str:
    y = g.conv(g.pair("x"))
    return g.pair(g.add("Add", g.pair(y), g.pair(g.add("Sigmoid", y))))


def _output_and_codes(g: Graph) -> str:
    y = g.conv(g.pair("x"))
    g.outputs.append(y)
    return g.pair(y)


def _two_left(g: Graph) -> str:
    y = g.pair(g.add("HardSwish", g.conv(g.pair("x"))))
    return g.pair(g.add("HardSwish", g.conv(y)))


def _block(g: Graph) -> str:
    x = g.pair("x")
    a = g.pair(g.conv(x))
    b = g.conv(a)
    return g.gemm(g.pair(g.add("Add", g.pair("x"), b)))


def _same_names(got: Any, expected: list[str], **_: Any) -> None:
    try:
        names = sorted(str(name) for name in got)
    except TypeError:
        raise Failure("the result should be a list of names", expected=expected, got=got) from None
    if isinstance(got, str) or names != sorted(expected):
        raise Failure("not the names of the nodes that stay behind", expected=expected, got=got)


def _agree_on_names(got: Any, wanted: Any) -> bool:
    if isinstance(got, BaseException) or isinstance(wanted, BaseException):
        return type(got) is type(wanted)
    try:
        return sorted(map(str, got)) == sorted(map(str, wanted))
    except TypeError:
        return False


def _by_sets(onnx_model: ModelProto) -> set[str]:
    graph = onnx_model.graph
    decoded = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
    coded = {n.input[0] for n in graph.node if n.op_type == "QuantizeLinear"}
    uses = [name for n in graph.node for name in n.input] + [o.name for o in graph.output]
    left = set()
    for n in graph.node:
        if n.op_type == "Gemm" and not set(n.input) <= decoded:
            left.add(n.name)
        if n.op_type == "Conv":
            y = n.output[0]
            if not set(n.input) <= decoded or y not in coded or uses.count(y) != 1:
                left.add(n.name)
    return left


def _by_walking(onnx_model: ModelProto) -> list[str]:
    nodes = list(onnx_model.graph.node)

    def maker(name: str) -> str:
        return next((n.op_type for n in nodes if name in n.output), "a constant or an input")

    def stays_float(node: onnx.NodeProto) -> bool:
        if any(maker(name) != "DequantizeLinear" for name in node.input):
            return True
        if node.op_type == "Gemm":
            return False
        if any(o.name == node.output[0] for o in onnx_model.graph.output):
            return True
        readers = [n for n in nodes for name in n.input if name == node.output[0]]
        return len(readers) != 1 or readers[0].op_type != "QuantizeLinear"

    return [n.name for n in nodes if n.op_type in ("Conv", "Gemm") and stays_float(n)]


UNFUSED = Exercise(
    id="15.1", title="What stays behind", minutes=9, difficulty=3,
    signature="unfused(onnx_model)", reference=unfused, cases=_graphs, compare=_same_names,
    agree=_agree_on_names, returns="the names",
    accepted=(_by_sets, _by_walking),
    diagnoses=(
        ("node.input] => node.input[:2]]",
         "the bias was not looked at: the kernel adds an int32 bias, or none"),
        ("node.input] => node.input[:1]]",
         "the weight was not looked at: a weight in floating point makes a product in floating "
         "point, whatever the input is"),
        ("node.input] => node.input[1:]]",
         "the input was not looked at: integer weights alone make no integer product"),
        ("node.op_type == \"Conv\" and not rounded => not rounded",
         "a Gemm needs no Q behind it: QGemm may return real numbers"),
        ("and not rounded => and False",
         "the output of a Conv was not looked at: QLinearConv returns codes, so a Q must follow"),
        ("readers == [\"QuantizeLinear\"] => \"QuantizeLinear\" in readers",
         "another reader wants the real numbers, which an integer kernel does not leave behind"),
        ("and node.output[0] not in results =>",
         "an output of the network is read from outside, as real numbers"),
        ("(\"Conv\", \"Gemm\") => (\"Conv\",)", "a Gemm, the Linear of a file, counts too"),
        ("found.append(node.name) => found.append(node.output[0])",
         "that is the name of a value; asked for is the name of the node"),
        ("found.append(node.name) => found.append(node.op_type)",
         "that is the kind of the node; asked for is its name"),
        (lambda onnx_model: unfused(onnx_model)[:1], "only the first one was named"),
        (lambda onnx_model: [n.name for n in onnx_model.graph.node if n.op_type in ("Conv", "Gemm")
                             and n.name not in unfused(onnx_model)],
         "the other way round: these are the nodes that are fused"),
    ),
    hints=(
        ("Which node made a value?",
         "Values have names. Build a dictionary once: for each name in node.output, node.op_type."),
        ("Which nodes read it?", "Those that have its name among their `input`."),
        ("Is a value an output of the network?", "Its name stands in `onnx_model.graph.output`."),
    ),
)  # fmt: skip


# 15.2 ------------------------------------------------------------------------------------------


def repair_residual(onnx_model: ModelProto, scales: Mapping[str, float]) -> ModelProto:
    """A copy in which every input of an Add has passed a Q/DQ pair: int8, zero point 0."""
    repaired = copy.deepcopy(onnx_model)
    graph, nodes = repaired.graph, []
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    for node in graph.node:
        for i, name in enumerate(node.input if node.op_type == "Add" else ()):
            if made_by.get(name) != "DequantizeLinear":
                grid, codes, rounded = (
                    [f"{name}_s{i}", f"{name}_z{i}"],
                    f"{name}_q{i}",
                    f"{name}_d{i}",
                )
                scale, zero = np.float32(scales[name]), np.int8(0)
                values = zip(grid, (scale, zero), strict=True)
                graph.initializer.extend(numpy_helper.from_array(np.array(v), n) for n, v in values)
                nodes.append(helper.make_node("QuantizeLinear", [name, *grid], [codes]))
                nodes.append(helper.make_node("DequantizeLinear", [codes, *grid], [rounded]))
                node.input[i] = rounded
        nodes.append(copy.deepcopy(node))
    del graph.node[:]
    graph.node.extend(nodes)
    return repaired


SCALES = {"unrounded": 0.125, "also_unrounded": 0.25}


def _broken() -> Iterator[tuple[str, dict[str, Any]]]:
    for label, build in (
        ("neither is rounded", lambda g: g.add("Add", _y(g), _y(g, "also_unrounded"))),
        (
            "the branch with a convolution is not rounded",
            lambda g: g.add("Add", g.pair("x"), _y(g)),
        ),
        ("the first operand is not rounded", lambda g: g.add("Add", _y(g), g.pair("x"))),
        ("another node reads the value too", _read_twice),
        ("nothing to repair", lambda g: g.add("Add", g.pair("x"), g.pair(_y(g)))),
        ("two sums", _two_sums),
        ("no convolution made the operand", lambda g: g.add("Add", g.pair("x"), _sigmoid(g))),
        ("the input of the network is an operand", lambda g: g.add("Add", "x", g.pair(_y(g)))),
    ):
        graph = Graph()
        model = graph.model(graph.pair(build(graph)))
        scales = {name: 0.5 for node in model.graph.node for name in node.output} | SCALES
        scales["x"] = 0.0625
        yield label, {"onnx_model": model, "scales": scales}


def _y(g: Graph, name: str = "unrounded") -> str:
    return g.conv(g.pair("x"), name=name)


def _sigmoid(g: Graph) -> str:
    return g.add("Sigmoid", g.pair("x"), name="unrounded")


def _two_sums(g: Graph) -> str:
    first = g.pair(g.add("Add", g.pair("x"), _y(g)))
    return g.add("Add", first, _y(g, "also_unrounded"))


def _read_twice(g: Graph) -> str:
    y = _y(g)
    return g.add("Mul", g.add("Add", g.pair("x"), y), g.add("Sigmoid", y))


def _steps(model: ModelProto) -> list[tuple]:
    """What a file computes, whatever its values are called: operators, makers, and the grids."""
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    constants = {t.name: t for t in model.graph.initializer}
    told = []
    for node in model.graph.node:
        grid = []
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            for name in node.input[1:]:
                array = numpy_helper.to_array(constants[name]) if name in constants else None
                grid.append(None if array is None else (str(array.dtype), array.tolist()))
        told.append((node.op_type, [made_by.get(n, "given") for n in node.input], grid))
    return told


def _like_repaired(got: Any, expected: ModelProto, onnx_model: ModelProto, **_: Any) -> None:
    if not isinstance(got, ModelProto):
        raise Failure("the result should be an onnx.ModelProto", expected=ModelProto, got=type(got))
    try:
        onnx.checker.check_model(got, full_check=True)
    except Exception as error:
        raise Failure(
            f"ONNX's checker refuses the file: {str(error).splitlines()[0]}",
            expected="nodes in the order in which they compute, and every name defined once",
            got="another file",
            tentative=True,
        ) from error
    wanted, found = _steps(expected), _steps(got)
    if sorted(map(repr, wanted)) != sorted(map(repr, found)):
        extra = next((s for s in found if s not in wanted), None) or "nothing more"
        missing = next((s for s in wanted if s not in found), None) or "nothing more"
        raise Failure("the file computes something else", expected=missing, got=extra)


def _agree_on_steps(got: Any, wanted: Any) -> bool:
    if isinstance(got, ModelProto) and isinstance(wanted, ModelProto):
        return sorted(map(repr, _steps(got))) == sorted(map(repr, _steps(wanted)))
    return type(got) is type(wanted) and not isinstance(got, ModelProto)


def _leaves_the_given_alone(probe: Any) -> None:
    _, inputs = next(iter(_broken()))
    model = inputs["onnx_model"]
    before = model.SerializeToString()
    probe(model, inputs["scales"])
    if model.SerializeToString() != before:
        raise Failure(
            "the function changed its input `onnx_model` in place",
            expected="the model as it was given", got="a model with other nodes",
            cause="the file that was given is changed: begin with copy.deepcopy(onnx_model)",
        )  # fmt: skip


def _with_new_graph(onnx_model: ModelProto, scales: Mapping[str, float]) -> ModelProto:
    old, nodes = onnx_model.graph, []
    constants = list(old.initializer)
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero_of_the_sum")
    decoded = {n.output[0] for n in old.node if n.op_type == "DequantizeLinear"}
    for old_node in old.node:
        node = onnx.NodeProto()
        node.CopyFrom(old_node)
        if node.op_type == "Add":
            for name in dict.fromkeys(node.input):
                if name in decoded:
                    continue
                constants += [numpy_helper.from_array(np.array(scales[name], "f4"), f"s_{name}")]
                constants += [zero] if zero not in constants else []
                nodes += [
                    helper.make_node(
                        "QuantizeLinear", [name, f"s_{name}", zero.name], [f"q_{name}"]
                    ),
                    helper.make_node(
                        "DequantizeLinear", [f"q_{name}", f"s_{name}", zero.name], [f"d_{name}"]
                    ),
                ]
                inputs = [f"d_{name}" if n == name else n for n in node.input]
                del node.input[:]
                node.input.extend(inputs)
        nodes.append(node)
    graph = helper.make_graph(nodes, old.name, old.input, old.output, constants)
    return helper.make_model(
        graph, opset_imports=onnx_model.opset_import, ir_version=onnx_model.ir_version
    )


def _by_inserting(onnx_model: ModelProto, scales: Mapping[str, float]) -> ModelProto:
    model = ModelProto()
    model.ParseFromString(onnx_model.SerializeToString())
    graph, place = model.graph, 0
    while place < len(graph.node):
        node = graph.node[place]
        decoded = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
        floats = [n for n in node.input if n not in decoded] if node.op_type == "Add" else []
        if not floats:
            place += 1
            continue
        name = floats[0]
        for value, kind in ((scales[name], np.float32), (0, np.int8)):
            tensor = numpy_helper.from_array(np.array(value, kind), f"{name}_{kind.__name__}")
            graph.initializer.append(tensor)
        grid = [f"{name}_float32", f"{name}_int8"]
        node.input[list(node.input).index(name)] = f"{name}_again"
        back = helper.make_node("DequantizeLinear", [f"{name}_codes", *grid], [f"{name}_again"])
        graph.node.insert(place, back)
        graph.node.insert(
            place, helper.make_node("QuantizeLinear", [name, *grid], [f"{name}_codes"])
        )
    return model


def _behind_the_sum(onnx_model: ModelProto, scales: Mapping[str, float]) -> ModelProto:
    model = copy.deepcopy(onnx_model)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and any(
            n.op_type == "Add" and node.input[0] in n.output for n in model.graph.node
        ):
            return _after(model, node.input[0])
    return model


def _first_sum_only(onnx_model: ModelProto, scales: Mapping[str, float]) -> ModelProto:
    first = next(node.output[0] for node in onnx_model.graph.node if node.op_type == "Add")
    renamed = copy.deepcopy(onnx_model)
    for node in renamed.graph.node:
        node.op_type = "Sum" if node.op_type == "Add" and node.output[0] != first else node.op_type
    repaired = repair_residual(renamed, scales)
    for node in repaired.graph.node:
        node.op_type = "Add" if node.op_type == "Sum" else node.op_type
    return repaired


def _after(model: ModelProto, name: str) -> ModelProto:
    """One more pair between a value and all that read it."""
    grid = ["after_s", "after_z"]
    for value, constant in zip((np.float32(0.5), np.int8(0)), grid, strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), constant))
    nodes = []
    for node in model.graph.node:
        for i, read in enumerate(node.input):
            if read == name:
                node.input[i] = "after_d"
        nodes.append(copy.deepcopy(node))
        if name in node.output:
            nodes.append(helper.make_node("QuantizeLinear", [name, *grid], ["after_q"]))
            nodes.append(helper.make_node("DequantizeLinear", ["after_q", *grid], ["after_d"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


REPAIR = Exercise(
    id="15.2", title="Diagnose: a residual sum that breaks the rule", minutes=10, difficulty=4,
    signature="repair_residual(onnx_model, scales)", reference=repair_residual, cases=_broken,
    compare=_like_repaired, check=_leaves_the_given_alone, agree=_agree_on_steps,
    returns="the file", accepted=(_with_new_graph, _by_inserting),
    diagnoses=(
        ("node.input[i] = rounded => pass",
         "the pair stands beside the Add: its input must be the output of the new DQ"),
        ("np.int8(0) => np.uint8(0)", "the codes are uint8: a zero point of np.int8(0) says int8"),
        ("scales[name] => 1.0", "the scale is not the one that `scales` has for this value"),
        ("made_by.get(name) != \"DequantizeLinear\" => True",
         "an operand that comes from a DQ already was rounded a second time"),
        ("made_by.get(name) != \"Deq => i == 0 and made_by.get(name) != \"Deq",
         "only the first of the two operands was looked at"),
        ("made_by.get(name) != \"Deq => i == 1 and made_by.get(name) != \"Deq",
         "only the second of the two operands was looked at"),
        (_first_sum_only, "only the first sum was repaired: every Add of the file counts"),
        ("made_by.get(name) != \"DequantizeLinear\" => made_by.get(name) == \"Conv\"",
         "only operands that a convolution made; any other that is not decoded needs a pair, too"),
        (_behind_the_sum, "the pair stands behind the Add; its operands are what must be rounded"),
        ("node.op_type == \"Add\" => True",
         "other nodes were given pairs as well: only the operands of an Add"),
        (lambda onnx_model, scales: copy.deepcopy(onnx_model), "the copy is as it was"),
    ),
    hints=(
        ("How do I make a node?",
         "onnx.helper.make_node('QuantizeLinear', [value, scale, zero_point], [new_name])"),
        ("Where do scale and zero point come from?",
         "They are constants of the graph: after `import numpy as np`, "
         "onnx.numpy_helper.from_array(np.float32(0.5), 'name'), appended to graph.initializer."),
        ("ONNX's checker says that nodes are not sorted",
         "A node stands behind those that make its inputs. Collect all nodes in a list, the new "
         "ones just before their Add, then `del graph.node[:]` and `graph.node.extend(nodes)`."),
    ),
)  # fmt: skip


# 15.3 ------------------------------------------------------------------------------------------


def choose_file(scores: Scores, baseline: str) -> tuple[str, float, float]:
    """The first file that surely loses at most one point, and the interval of its change."""
    limit = 0.01
    for choice in scores:
        low, high = interval(scores[baseline], scores[choice])
        if low >= -limit:
            return choice, low, high
    raise ValueError("the baseline is one of the options")


CHOOSE_FILE = Exercise(
    id="15.3", title="Decide: one file for all, or one for each runtime", minutes=8, difficulty=3,
    signature="choose_file(scores, baseline)", reference=choose_file,
    cases=functools.partial(limit_cases, ("one file", "a file for each", "FP32"), 0.01, 1530),
    compare=functools.partial(defended, objection=cheapest_within(0.01)), agree=same_decision,
    accepted=(first_that_fits(0.01), by_standard_error(0.01)),
    diagnoses=(*WRONG_INTERVALS, *WRONG_CHOICES), hints=HINTS,
)  # fmt: skip


EXERCISES = [UNFUSED, REPAIR, CHOOSE_FILE]
