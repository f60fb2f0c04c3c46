"""What travels arrives; what is no message is refused, whatever it is made of."""

import contextlib
import json
import socket
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ptq_classroom.kit.values import same
from ptq_classroom.teaching import wire
from ptq_course.grids.affine import IntGrid, QParams

NUMBERS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([torch.float32, torch.int8]),
)  # fmt: skip
KEYS = [*"tvdsb", "class", "id", "kind", "name", "parts", "settings", "hooks"]
VALUES = st.recursive(
    NUMBERS,
    lambda part: st.one_of(
        st.lists(part, max_size=4),
        st.tuples(part, part),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), part, max_size=4),
    ),
    max_leaves=12,
)


def codec():
    return wire.Codec(lambda kind, number, name: (kind, number, name), describe_modules=True)


def through(value):
    packed, blobs = codec().pack(value)
    return codec().unpack(json.loads(json.dumps(packed)), blobs)


@given(VALUES)
def test_plain_values_arrive(value):
    got = through(value)
    assert type(got) is type(value)
    assert repr(got) == repr(value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.bool, torch.int64]
)
def test_tensors_arrive_bit_by_bit(dtype):
    tensor = torch.tensor([[0.0, -1.5, float("inf")], [3.0, 1.0, 2.0]]).T.to(dtype)
    got = through(tensor)
    assert got.dtype is dtype
    assert got.shape == (3, 2)
    assert got.equal(tensor)
    assert through(torch.zeros(0, 3)).shape == (0, 3)
    assert through(torch.tensor(2.0)).shape == ()


def test_arrays_grids_and_words_arrive():
    words = np.array([["day", "night"]])
    assert (through(words) == words).all()
    assert through(np.float32(1.5)) == np.float32(1.5)
    assert through(np.arange(6, dtype=np.uint8).reshape(2, 3)).dtype == np.uint8
    q = QParams(torch.tensor([[0.5]]), torch.tensor([[3]], dtype=torch.int32), IntGrid(4), (1, -1))
    got = through({"q": q, "grid": IntGrid(8, narrow=True)})
    assert got["grid"] == IntGrid(8, narrow=True)
    assert got["q"].grid == q.grid
    assert got["q"].scale.equal(q.scale)


def test_a_network_of_plain_layers_arrives():
    norm = nn.BatchNorm2d(3).eval()
    norm.register_buffer("running_mean", torch.full([3], 0.5))
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), norm, nn.ReLU(), nn.Dropout())
    got = through(net)
    x = torch.randn(2, 2, 5, 5)
    assert same(got, net, rtol=0)
    assert got.eval()(x).equal(net.eval()(x))


def test_what_cannot_travel_is_kept_under_a_number():
    held = codec()
    packed, _ = held.pack([len, object])
    assert held.held == {0: len, 1: object}
    kinds = [part["kind"] for part in packed["v"]]
    assert kinds == ["function", "function"]
    back = codec().unpack(packed, [])
    assert back == [("function", 0, "len"), ("function", 1, "object")]


@settings(deadline=None)
@given(st.recursive(
    st.one_of(NUMBERS.filter(lambda v: not isinstance(v, torch.dtype)), st.sampled_from(
        ["int", "tensor", "module", "onnx", "qparams", "yours", "mine", "words", "iterator"])),
    lambda part: st.one_of(
        st.lists(part, max_size=3),
        st.dictionaries(st.sampled_from(KEYS), part, max_size=5),
    ), max_leaves=15,
))  # fmt: skip
def test_nonsense_is_refused_and_nothing_else_happens(value):
    with contextlib.suppress(wire.Unreadable):
        codec().unpack(value, [b"1234"])


@pytest.mark.parametrize("packed", [
    {"t": "array", "d": "O", "s": [1], "b": 0},
    {"t": "array", "d": "<f4", "s": [1 << 40], "b": 0},
    {"t": "module", "class": "functional", "settings": {}},
    {"t": "module", "class": "Own", "source": "1 / 0", "settings": {}, "parameters": {},
     "buffers": {}, "parts": {}, "training": True, "hooks": [0, 0]},
    {"t": "int", "v": "9" * 10_000},
    {"t": "yours", "id": 5},
    {"t": "unheard of"},
    ["a bare list"],
])  # fmt: skip
def test_a_trap_is_refused(packed):
    with pytest.raises(wire.Unreadable):
        codec().unpack(packed, [b"\0" * 8])


@pytest.mark.parametrize(("sent", "error"), [
    (b"", wire.Gone),
    (struct.pack("<II", 10, 0) + b"short", wire.Gone),
    (struct.pack("<II", 4, 0) + b"nope", wire.Unreadable),
    (struct.pack("<II", 2, 0) + b"[]", wire.Unreadable),
    (struct.pack("<II", 1 << 31, 1 << 31), wire.Unreadable),
    (struct.pack("<II", 14, 3) + b'{"sizes": [2]}' + b"abc", wire.Unreadable),
    (struct.pack("<II", 20_000, 0) + b"[" * 20_000, wire.Unreadable),
])  # fmt: skip
def test_a_broken_frame_is_refused(sent, error):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(error):
            wire.Channel(ours).receive()


def test_who_does_not_answer_is_late():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = wire.Channel(ours)
        channel.deadline = 0
        with pytest.raises(wire.Late):
            channel.receive()
