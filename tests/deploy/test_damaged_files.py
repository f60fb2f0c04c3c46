"""Files from anybody: damaged, in a circle, very long, with data elsewhere. One kind of refusal."""

from __future__ import annotations

import random
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ptq_course import PTQQuantizer, QConfig, QuantizationError
from ptq_course.deploy import onnx as deploy
from ptq_course.deploy.onnx.reading import GraphReader
from ptq_course.deploy.tensorrt import check_tensorrt
from tests.networks import Residual, batches


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small network with each kind of node, as two targets have it."""
    folder = tmp_path_factory.mktemp("whole")
    x = batches()[0][0]
    written = []
    for target in ("tensorrt", "onnxruntime"):
        quantizer = PTQQuantizer(Residual(), config=getattr(QConfig, target)())
        quantized = quantizer.calibrate([x], progress=False, ranges="minmax").convert()
        written.append(deploy.export(quantized, x, folder / f"{target}.onnx", target=target))
    return [path.read_bytes() for path in written]


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 1:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        elif kind < 4:
            data[at] ^= 1 << rng.randrange(8)
        else:
            data[at] = rng.randrange(256)
    return bytes(data)


def damage_graph(data: bytes, rng: random.Random) -> bytes:
    """Damage that protobuf does not see: another tensor, type, shape, attribute, graph."""
    proto = onnx.ModelProto.FromString(data)
    graph = proto.graph
    names = [n for node in graph.node for n in (*node.input, *node.output)]
    for _ in range(rng.choice((1, 2, 4))):
        node, tensor = rng.choice(graph.node), rng.choice(graph.initializer)
        kind = rng.randrange(11)
        if kind == 0 and node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        elif kind == 1 and node.output:
            node.output[0] = rng.choice(names)
        elif kind == 2:
            del node.input[rng.randrange(len(node.input) + 1) :]
        elif kind == 3:
            del node.output[:]
        elif kind == 4:
            tensor.data_type = rng.randrange(30)
        elif kind == 5:
            del tensor.dims[:]
            tensor.dims.extend(rng.choice(([], [0], [-3], [2**40, 2**30], [7, 7], [1])))
        elif kind == 6:
            tensor.raw_data = rng.randbytes(rng.randrange(9))
        elif kind == 7:
            value = rng.choice((0, -9, 2**40, 1.5, "x", [], [3, 1], [9] * 4, tensor))
            name = rng.choice(("axis", "perm", "transB", "block_size", "mode", "value"))
            if value != []:
                node.attribute.append(helper.make_attribute(name, value))
        elif kind == 8:
            node.op_type = rng.choice(("Constant", "Identity", "Add", "Conv", "If", "", "Gemm"))
        elif kind == 9:
            rng.shuffle(names)
            node.input.extend(names[: rng.randrange(4)])
        else:
            inner = onnx.GraphProto()
            inner.CopyFrom(graph)
            node.attribute.append(helper.make_attribute("body", inner))
    return proto.SerializeToString()


@pytest.mark.parametrize("damage", [damage_bytes, damage_graph])
def test_a_damaged_file_is_read_or_refused(tmp_path, files, damage):
    rng, path = random.Random(7), tmp_path / "damaged.onnx"
    refusals = []
    for _ in range(300):
        path.write_bytes(damage(rng.choice(files), rng))
        try:
            check_tensorrt(path)
        except QuantizationError as error:
            refusals.append(str(error))
    assert all(str(path) in text for text in refusals)
    assert 20 < len(refusals) < 300, "some damage is seen, some is not"


@pytest.mark.parametrize("damage", [damage_bytes, damage_graph])
def test_a_session_opens_a_damaged_file_or_refuses_it(tmp_path, files, damage, capfd):
    rng, path, x = random.Random(7), tmp_path / "damaged.onnx", batches()[0][0]
    refusals = []
    for _ in range(60):
        path.write_bytes(damage(rng.choice(files), rng))
        try:
            run = deploy.session(path, threads=1, exact=False)
            run(x)
        except QuantizationError as error:
            refusals.append(str(error))
    assert refusals
    assert all("damaged.onnx" in text for text in refusals)
    assert "EP Error" not in capfd.readouterr().out


def model(nodes, tensors=(), output="y"):
    return helper.make_model(
        helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], tensors,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
    )  # fmt: skip


def saved(folder, *given, **more):
    path = folder / "file.onnx"
    onnx.save(model(*given, **more), path)
    return path


def test_nodes_in_a_circle(tmp_path):
    circle = [("a", "b"), ("b", "a")]
    nodes = [helper.make_node("Identity", [x], [y]) for x, y in circle]
    product = helper.make_node("MatMul", ["x", "a"], ["y"])
    with pytest.raises(QuantizationError, match=r"'b' .*before it is computed.*circle"):
        check_tensorrt(saved(tmp_path, [*nodes[::-1], product]))
    with pytest.raises(QuantizationError, match="circle"):
        check_tensorrt(saved(tmp_path, [helper.make_node("Identity", ["y"], ["y"])]))


def chain(length, op, readers):
    """x through ``length`` nodes; products along the way ask where their weight comes from."""
    nodes = [helper.make_node(op, [f"t{i}" if i else "w"], [f"t{i + 1}"]) for i in range(length)]
    nodes += [helper.make_node("MatMul", ["x", f"t{length}"], [f"y{i}"]) for i in range(readers)]
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    return nodes, [weight], "y0"


@pytest.mark.parametrize("op", ["Identity", "Transpose", "Relu"])
def test_work_grows_with_the_length_of_a_chain_and_not_with_its_square(tmp_path, op):
    work = []
    for length in (200, 400):
        path = saved(tmp_path, *chain(length, op, readers=length))
        calls = 0

        def count(frame, event, argument):
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            check_tensorrt(path)
        finally:
            sys.setprofile(None)
        work.append(calls)
    assert work[1] < 2.2 * work[0]
    check_tensorrt(saved(tmp_path, *chain(8000, op, readers=1)))


def test_weights_in_another_file_are_not_read(tmp_path):
    weight = numpy_helper.from_array(np.zeros((4, 4), np.int8), "w")
    weight.ClearField("raw_data")
    weight.dims[0] = 1_500_000_000
    scales = numpy_helper.from_array(np.full(4, -1, np.float32), "s")
    for tensor, file in ((weight, "missing.bin"), (scales, "scales.bin")):
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=file)
        tensor.external_data.add(key="length", value=str(4 * int(np.prod(tensor.dims))))
    scales.ClearField("raw_data")
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    path = saved(tmp_path, nodes, [weight, scales])
    with pytest.raises(QuantizationError, match=r"scales\.bin"):
        check_tensorrt(path)
    (tmp_path / "scales.bin").write_bytes(np.full(4, -1, np.float32).tobytes())
    found = {breach.rule: breach for breach in check_tensorrt(path)}
    assert "holds -1" in found["scale"].found
    assert "input" in found


def test_a_reader_in_a_branch_counts(tmp_path):
    """A DequantizeLinear that a branch reads, too, serves two layers."""
    shape = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("MatMul", ["x", "d"], ["z"])], "b", [], [shape])
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
        helper.make_node("If", ["c"], ["v"], then_branch=inner, else_branch=inner),
    ]
    arrays = {"w": np.zeros((4, 4), np.int8), "s": np.float32(1), "c": np.array(True)}
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()]
    proto = model(nodes, tensors)
    graph = GraphReader(proto.graph)
    assert [node.op_type for node in graph.readers("d")] == ["MatMul"] * 3
    assert [reader.readers("d") for reader in graph.inner] == [graph.readers("d")] * 2
    onnx.save(proto, tmp_path / "file.onnx")
    assert {b.rule for b in check_tensorrt(tmp_path / "file.onnx")} == {"input", "weight"}


def test_inputs_that_a_file_does_not_take(tmp_path, files):
    path = tmp_path / "file.onnx"
    path.write_bytes(files[1])
    run, x = deploy.session(path, threads=1), batches()[0][0]
    for wrong in (x.double(), x[:, :1], x[0], None, x.to(torch.int64)):
        with pytest.raises(QuantizationError, match=r"file\.onnx cannot be run on .* it takes"):
            run(wrong)


def test_no_room_for_the_optimized_graph(tmp_path, files, monkeypatch):
    """The session itself needs none; the message speaks of the folder and not of the file."""
    path = tmp_path / "file.onnx"
    path.write_bytes(files[1])
    (tmp_path / "full").mkdir()
    run, x = deploy.session(path, threads=1), batches()[0][0]
    monkeypatch.setattr("tempfile.mkdtemp", lambda *a, **k: str(tmp_path / "full" / "gone"))
    assert run(x).shape[0] == len(x)
    with pytest.raises(QuantizationError, match=r"full/gone.*Make room"):
        _ = run.operators
