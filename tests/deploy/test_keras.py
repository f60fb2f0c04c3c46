"""Keras models become PyTorch modules: the same numbers, or a refusal by name."""

import io
import json
import os
import sys
import zipfile
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="the extra 'keras' is not installed")

from ptq_classroom.chapters.ch15.stripes import keras_model, stripes  # noqa: E402
from ptq_course import PTQQuantizer, QuantizationError, UnsupportedError, to_integer  # noqa: E402
from ptq_course.deploy.keras import from_keras  # noqa: E402
from ptq_course.deploy.onnx import export  # noqa: E402
from ptq_course.deploy.session import session  # noqa: E402
from ptq_course.errors import MissingExtraError  # noqa: E402

h5py = pytest.importorskip("h5py")

L = keras.layers
# Keras's own, under NumPy 2 and Hypothesis.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),
]


def channels_first(x):
    x = torch.from_numpy(np.ascontiguousarray(x))
    return x.movedim(-1, 1).contiguous() if x.dim() > 2 else x


def scrambled(model, seed=0):
    """The model with weights that no initializer makes: batch norms and biases included."""
    rng = np.random.default_rng(seed)
    model.set_weights(
        [
            rng.uniform(0.5, 1.5, w.shape) if "var" in v.path else rng.normal(0, 0.4, w.shape)
            for v, w in zip(model.weights, model.get_weights(), strict=True)
        ]
    )
    return model


def outputs(model, seed=0, layout: Any = "channels_first"):
    """(what Keras predicts, what the module computes), channels last, for inputs at random."""
    rng = np.random.default_rng(seed)
    inputs = [
        rng.normal(size=(2, *(7 if n is None else n for n in given.shape[1:]))).astype("float32")
        for given in model.inputs
    ]
    expected = model(inputs if len(inputs) > 1 else inputs[0], training=False)
    module = from_keras(model, layout)
    first = layout == "channels_first"
    got = module(*[channels_first(x) if first else torch.from_numpy(x) for x in inputs])
    several = isinstance(got, tuple)
    found = [g.movedim(1, -1) if first and g.dim() > 2 else g for g in (got if several else [got])]
    wanted = expected if isinstance(expected, (list, tuple)) else [expected]
    return [w.detach().numpy() for w in wanted], [g.numpy() for g in found]


def assert_equal(model, **how):
    for wanted, got in zip(*outputs(model, **how), strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def alone(layer, shape=(9, 8, 6)):
    return scrambled(keras.Sequential([keras.Input(shape), layer]))


# --- each layer with its settings ----------------------------------------------------------------

PICTURES = {
    **{
        f"conv {padding} {size} stride {stride} dilation {dilation}": lambda p=padding, k=size,
        s=stride, d=dilation: L.Conv2D(4, k, s, p, dilation_rate=d)
        for padding in ("same", "valid")
        for size, stride, dilation in (
            (3, 1, 1), (3, 2, 1), (2, 1, 1), (2, 2, 1), ((3, 2), (2, 1), 1), (3, 1, 2), (1, 3, 1),
        )
    },
    "conv groups": lambda: L.Conv2D(6, 3, groups=3, use_bias=False, activation="relu"),
    "depthwise": lambda: L.DepthwiseConv2D(3, 2, "same", depth_multiplier=2, activation="silu"),
    "separable": lambda: L.SeparableConv2D(5, 3, 2, "same", depth_multiplier=2),
    **{
        f"transposed {padding} {size} stride {stride}": lambda p=padding, k=size, s=stride: (
            L.Conv2DTranspose(4, k, s, p)
        )
        for padding in ("same", "valid")
        for size, stride in ((3, 2), (2, 2), (4, 2), (3, 1), (2, 3), ((3, 4), (1, 3)))
    },
    "transposed output_padding": lambda: L.Conv2DTranspose(4, 3, 2, "same", output_padding=1),
    "transposed dilation": lambda: L.Conv2DTranspose(4, 3, 1, "same", dilation_rate=2),
    **{
        f"max pool {padding} {size} stride {stride}": lambda p=padding, k=size, s=stride: (
            L.MaxPooling2D(k, s, p)
        )
        for padding in ("same", "valid")
        for size, stride in ((2, 2), (3, 2), (2, 1), (3, 1), ((2, 3), (1, 2)), (4, 3), (1, 2))
    },
    "average pool": lambda: L.AveragePooling2D(3, 2),
    "average pool same": lambda: L.AveragePooling2D(3, 1, "same"),
    "global average": lambda: L.GlobalAveragePooling2D(),
    "global max": lambda: L.GlobalMaxPooling2D(keepdims=True),
    "upsample": lambda: L.UpSampling2D((2, 3)),
    "upsample bilinear": lambda: L.UpSampling2D(2, interpolation="bilinear"),
    "zero padding": lambda: L.ZeroPadding2D(((1, 0), (2, 3))),
    "cropping": lambda: L.Cropping2D(((1, 0), (2, 3))),
    "dense on channels": lambda: L.Dense(3),
    "batch norm": lambda: L.BatchNormalization(epsilon=0.01),
    "batch norm bare": lambda: L.BatchNormalization(scale=False, center=False),
    "layer norm": lambda: L.LayerNormalization(),
    "layer norm of pictures": lambda: L.LayerNormalization(axis=(1, 2, 3), scale=False),
    "relu to 3": lambda: L.ReLU(max_value=3.0),
    "relu6": lambda: L.ReLU(6.0),
    "leaky relu to 1": lambda: L.ReLU(max_value=1.0, negative_slope=0.3),
    "leaky relu": lambda: L.LeakyReLU(0.3),
    "prelu of channels": lambda: L.PReLU(shared_axes=(1, 2)),
    "prelu of elements": lambda: L.PReLU(),
    "elu": lambda: L.ELU(0.7),
    "softmax": lambda: L.Softmax(),
    "softmax over rows": lambda: L.Softmax(axis=1),
    "flatten": lambda: L.Flatten(),
    "reshape": lambda: L.Reshape((4, -1, 9)),
    "reshape to a vector": lambda: L.Reshape((-1,)),
    "permute": lambda: L.Permute((3, 1, 2)),
    "rescaling": lambda: L.Rescaling(0.5, -1.0),
    "rescaling of channels": lambda: L.Rescaling([1, 2, 3, 4, 5, 6], 0.5),
    "normalization": lambda: L.Normalization(mean=[1.0] * 6, variance=[0.0, 1, 2, 3, 4, 5]),
    "activation as a layer": lambda: L.Conv2D(3, 1, activation=L.LeakyReLU(0.1)),
    **{
        f"activation {name}": lambda n=name: L.Activation(n)
        for name in (
            "relu", "relu6", "sigmoid", "tanh", "silu", "gelu", "elu", "selu", "softmax",
            "softplus", "hard_sigmoid", "hard_silu", "leaky_relu", "mish", "linear",
            "exponential", "log_softmax", "celu", "softsign", "hard_tanh", "log_sigmoid",
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_layer_of_pictures(name):
    assert_equal(alone(PICTURES[name]()))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.Conv1D(4, 3, padding="causal", dilation_rate=2),
        lambda: L.Conv1D(4, 4, strides=2, padding="same"),
        lambda: L.DepthwiseConv1D(3, padding="same"),
        lambda: L.SeparableConv1D(4, 3),
        lambda: L.Conv1DTranspose(4, 3, strides=2, padding="same"),
        lambda: L.MaxPooling1D(2, padding="same"),
        lambda: L.AveragePooling1D(2),
        lambda: L.GlobalAveragePooling1D(),
        lambda: L.UpSampling1D(2),
        lambda: L.ZeroPadding1D((1, 2)),
        lambda: L.Cropping1D((1, 2)),
        lambda: L.Dense(5, activation="tanh"),
        lambda: L.BatchNormalization(),
        lambda: L.LayerNormalization(),
        lambda: L.Flatten(),
    ],
)
def test_a_layer_of_sequences(layer):
    assert_equal(alone(layer(), (9, 5)))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.Dense(5, use_bias=False),
        L.PReLU,
        L.Softmax,
        L.Flatten,
        L.BatchNormalization,
        lambda: L.Reshape((2, 3, 1)),
        lambda: L.Reshape((1, 1, 6)),
    ],
)
def test_a_layer_of_vectors(layer):
    assert_equal(alone(layer(), (6,)))


@pytest.mark.parametrize("stride", [1, 2])
def test_average_pooling_leaves_an_uneven_border_out(stride):
    """As TensorFlow and JAX do. Keras on PyTorch repeats the border, which a warning says."""
    model = alone(L.AveragePooling2D(2, stride, "same"), (5, 5, 1))
    with pytest.warns(UserWarning, match="uneven width"):
        module = from_keras(model)
    x = np.random.default_rng(0).normal(size=(5, 5)).astype("float32")
    wanted = [[x[i : i + 2, j : j + 2].mean() for j in range(0, 5, stride)]
              for i in range(0, 5, stride)]  # fmt: skip
    got = module(torch.from_numpy(x)[None, None])[0, 0]
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5, atol=1e-6)


# --- whole graphs --------------------------------------------------------------------------------


@st.composite
def models(draw):
    """A functional model: blocks with or without a shortcut, then a head."""
    x = inputs = keras.Input((draw(st.integers(5, 9)), draw(st.integers(5, 9)), 3))
    shared = L.Conv2D(4, 3, padding="same")
    x = L.Conv2D(4, draw(st.integers(1, 3)), draw(st.integers(1, 2)), padding="same")(x)
    for _ in range(draw(st.integers(1, 4))):
        before = x
        kind = draw(st.sampled_from(["conv", "depthwise", "separable", "shared", "up", "pool"]))
        size = draw(st.integers(1, 3))
        if kind == "up":
            x = L.UpSampling2D()(x) if draw(st.booleans()) else (
                L.Conv2DTranspose(4, size, 2, padding="same")(x))  # fmt: skip
        elif kind == "pool":
            x = L.MaxPooling2D(size + 1, draw(st.integers(1, 2)), padding="same")(x)
        else:
            layer = {"conv": lambda n: L.Conv2D(4, n, padding="same"),
                     "depthwise": lambda n: L.DepthwiseConv2D(n, padding="same"),
                     "separable": lambda n: L.SeparableConv2D(4, n, padding="same"),
                     "shared": lambda n: shared}[kind](size)  # fmt: skip
            x = layer(x)
            if draw(st.booleans()):
                x = L.BatchNormalization()(x)
            x = draw(st.sampled_from([L.ReLU, L.LeakyReLU, lambda: L.Activation("tanh")]))()(x)
            join = draw(st.sampled_from([None, L.Add, L.Multiply, L.Maximum]))
            x = join()([x, before]) if join else x
    head = draw(st.sampled_from(["flatten", "average", "picture", "cat"]))
    if head == "flatten":
        x = L.Dense(3, activation="softmax")(L.Flatten()(x))
    elif head == "average":
        x = L.Dense(3)(L.Dropout(0.5)(L.GlobalAveragePooling2D()(x)))
    elif head == "cat":
        x = L.Concatenate()([x, L.ReLU()(x)])
    return scrambled(keras.Model(inputs, x))


@settings(max_examples=25)
@given(models(), st.integers(0, 9), st.sampled_from(["channels_first", "channels_last"]))
def test_generated_models(model, seed, layout):
    assert_equal(model, seed=seed, layout=layout)


@pytest.fixture(scope="module")
def nested():
    """A shared layer, a model inside a model used twice, two inputs, two outputs."""
    block = keras.Sequential(
        [keras.Input((8, 8, 4)), L.Conv2D(4, 3, padding="same"), L.BatchNormalization()],
        name="block",
    )
    a, b = keras.Input((8, 8, 4), name="a"), keras.Input((8, 8, 4), name="b")
    x = L.Add()([block(a), block(b)])
    conv = L.Conv2D(4, 3, strides=2, padding="same", name="twice")
    half = conv(x)
    quarter = conv(half)
    gate = L.Reshape((1, 1, 4))(L.Dense(4, activation="sigmoid")(L.GlobalMaxPooling2D()(quarter)))
    return scrambled(keras.Model([a, b], [L.Multiply()([half, gate]), L.Flatten()(quarter)]))


def test_nested_models_shared_layers_several_inputs_and_outputs(nested):
    assert_equal(nested)
    module = from_keras(nested)
    convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 2  # each stands there once, however often it is called
    assert isinstance(module.block, torch.nn.Module)


def test_arithmetic_with_numbers_and_functions():
    x = keras.Input((4, 4, 2))
    model = keras.Model(x, keras.ops.relu(1.0 - 0.5 * x) + keras.ops.sigmoid(x / 2.0) - x)
    assert_equal(model)


def test_a_shared_layer_that_must_pad_differently_keeps_one_weight():
    """SAME with a stride pads 7 places on both sides and 4 at the end only."""
    x = keras.Input((7, 7, 2))
    conv = L.Conv2D(2, 3, strides=2, padding="same")
    model = scrambled(keras.Model(x, conv(conv(x))))
    assert_equal(model)
    convolutions = [m for m in from_keras(model).modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.padding for m in convolutions] == [(1, 1), (0, 0)]
    assert convolutions[0].weight is convolutions[1].weight


def test_an_application_of_keras():
    """MobileNetV2 of random weights, as its users build it: 53 convolutions, ten residual adds."""
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=5)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):  # or the numbers fade away in so many layers
            layer.moving_variance.assign(layer.moving_variance * 0.05)
    assert_equal(model)


def test_an_open_size_serves_where_nothing_depends_on_it():
    layers = [keras.Input((None, None, 3)), L.Conv2D(4, 3, padding="same"), L.MaxPooling2D()]
    assert_equal(scrambled(keras.Sequential(layers)))
    model = keras.Sequential([*layers, L.Conv2D(4, 3, strides=2, padding="same", name="last")])
    with pytest.raises(UnsupportedError, match=r"'last'.*open.*fixed input size"):
        from_keras(model)


def test_the_users_model_is_left_alone(nested):
    before = [w.copy() for w in nested.get_weights()]
    with torch.no_grad():
        for parameter in from_keras(nested).parameters():
            parameter.zero_()
    assert all(np.array_equal(a, b) for a, b in zip(before, nested.get_weights(), strict=True))


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_files(tmp_path, nested, ending):
    path = tmp_path / f"model.{ending}"
    nested.save(path)
    x = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for got, wanted in zip(from_keras(path)(*x), from_keras(nested)(*x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def as_keras_2(part):
    """A description as tf.keras 2 wrote it: no modules, strings for types, batch_input_shape."""
    if isinstance(part, list):
        return [as_keras_2(inner) for inner in part]
    if not isinstance(part, dict):
        return part
    if part.get("class_name") == "DTypePolicy":
        return part["config"]["name"]
    renamed = {"batch_shape": "batch_input_shape"}
    dropped = ("module", "registered_name", "build_config", "optional")
    kept = {k: v for k, v in part.items() if k not in dropped}
    return {renamed.get(name, name): as_keras_2(value) for name, value in kept.items()}


def test_a_file_of_keras_2(tmp_path):
    path = tmp_path / "old.h5"
    model = alone(L.Conv2D(4, 3, strides=2, padding="same", activation="relu"))
    model.save(path)
    with h5py.File(path, "r+") as file:
        written = as_keras_2(json.loads(str(file.attrs["model_config"])))
        assert "registered_name" not in json.dumps(written)
        file.attrs["model_config"] = json.dumps(written)
        file.attrs["keras_version"] = "2.15.0"
    x = torch.randn(2, 6, 9, 8)
    assert torch.equal(from_keras(path)(x), from_keras(model)(x))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_lambda_layer_is_refused_before_keras_opens_the_file(tmp_path, ending, monkeypatch):
    model = keras.Sequential(
        [keras.Input((3,)), L.Lambda(lambda x: x * 2, output_shape=(3,), name="mine")]
    )
    path = tmp_path / f"model.{ending}"
    model.save(path)
    monkeypatch.setattr(keras.saving, "load_model", lambda *a, **k: pytest.fail("opened"))
    with pytest.raises(UnsupportedError, match=r"model.*'mine' is a Lambda layer.*code"):
        from_keras(path)
    with pytest.raises(UnsupportedError, match=r"'mine' \(Lambda\)"):
        from_keras(model)


def rewritten(source, target, change):
    """A copy of a .keras file whose description `change` has edited."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name == "config.json" else data)
    return target


@pytest.mark.parametrize(
    ("module", "kind"),
    [("os", "system"), ("keras_but_not", "Dense"), ("builtins", "exec"), ("numpy", "load")],
)
def test_a_class_from_elsewhere_is_refused(tmp_path, module, kind):
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((3,)), L.Dense(2, name="door")]).save(path)

    def plant(data):
        config = json.loads(data)
        layer = config["config"]["layers"][1]
        layer["config"]["activation"] = {"module": module, "class_name": kind, "config": {}}
        return json.dumps(config)

    with pytest.raises(UnsupportedError, match=rf"'door' is .*{kind}"):
        from_keras(rewritten(path, tmp_path / "planted.keras", plant))


def test_files_that_are_none(tmp_path):
    with pytest.raises(QuantizationError, match="no file"):
        from_keras(tmp_path / "absent.keras")
    damaged = tmp_path / "damaged.keras"
    damaged.write_bytes(b"PK no archive")
    with pytest.raises(QuantizationError, match="no Keras model"):
        from_keras(damaged)
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    model.save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(QuantizationError, match="file of weights"):
        from_keras(tmp_path / "only.weights.h5")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as other:
        other.writestr("config.json", "{}")
    damaged.write_bytes(archive.getvalue())
    with pytest.raises(QuantizationError, match="cannot read"):
        from_keras(damaged)


# --- refusals ------------------------------------------------------------------------------------


class Own(L.Layer):
    def call(self, x):
        return x * 2


class OwnModel(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (lambda: L.LSTM(3, name="inner"), r"'outer/inner' \(LSTM\) has no form here"),
        (lambda: Own(name="inner"), r"'outer/inner' \(Own\) is a class of its own"),
        (lambda: L.ReLU(threshold=1.0, name="inner"), r"'outer/inner'.*threshold"),
        (lambda: L.Dense(2, activation=lambda x: x, name="inner"), r"'outer/inner'.*not Keras's"),
        (lambda: L.Dense(2, activation="sparsemax", name="inner"), r"sparsemax.*known are"),
        (lambda: L.BatchNormalization(axis=1, name="inner"), r"'outer/inner'.*axis 1"),
        (lambda: L.Conv1D(2, 3, data_format="channels_first", name="inner"), "channels first"),
    ],
)
def test_what_has_no_form_is_named_with_its_path(layer, says):
    outer = keras.Sequential([keras.Input((6, 4)), L.Dense(4), layer()], name="outer")
    x = keras.Input((6, 4))
    with pytest.raises(UnsupportedError, match=says):
        from_keras(keras.Model(x, outer(x)))


def test_tensors_of_different_ranks_are_not_joined_by_guess():
    a, b = keras.Input((4, 4, 3)), keras.Input((3,))
    with pytest.raises(UnsupportedError, match=r"'join' \(Add\).*different ranks.*Reshape"):
        from_keras(keras.Model([a, b], L.Add(name="join")([a, b])))


def test_models_that_cannot_be_read():
    with pytest.raises(UnsupportedError, match=r"call\(\) of its own"):
        from_keras(OwnModel())
    with pytest.raises(QuantizationError, match="not been built"):
        from_keras(keras.Sequential([L.Dense(2)]))
    with pytest.raises(QuantizationError, match=r"takes a keras\.Model or a path, got Linear"):
        from_keras(torch.nn.Linear(2, 2))
    with pytest.raises(QuantizationError, match="layout"):
        from_keras(keras.Sequential([keras.Input((2,)), L.Dense(2)]), cast(Any, "NHWC"))


def test_an_absent_keras_or_backend_is_said(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "keras", None)
        with pytest.raises(MissingExtraError, match=r"ptq-course\[keras\]"):
            from_keras("model.keras")
    (tmp_path / "keras.py").write_text("import tensorflow\n")
    monkeypatch.delitem(sys.modules, "keras")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    with pytest.raises(QuantizationError, match=r"'tensorflow'.*KERAS_BACKEND=torch"):
        from_keras("model.keras")


# --- the whole way -------------------------------------------------------------------------------


def test_a_keras_file_becomes_an_int8_file(tmp_path):
    model = keras_model()
    model.save(tmp_path / "stripes.keras")
    network = from_keras(tmp_path / "stripes.keras")
    pictures, labels = stripes(1000, 2)
    x = channels_first(pictures)
    quantizer = PTQQuantizer(network)
    quantizer.calibrate([channels_first(stripes(256, 3)[0])], num_batches=1)
    quantized = quantizer.convert()
    path = export(quantized, x[:2], tmp_path / "stripes.onnx")
    run = session(path)
    of_keras = (model.predict(pictures, verbose=0).argmax(1) == labels).mean()
    of_int8 = (run(x).argmax(1).numpy() == labels).mean()
    assert 0.75 < of_keras < 0.99, "neither too easy nor untrained, or the comparison says nothing"
    assert of_int8 >= of_keras - 0.01
    assert run.operators["QLinearConv"] == 6
    assert "Conv" not in run.operators
    assert run.operators["QLinearAdd"] == 2
    agree = (to_integer(quantized)(x).argmax(1) == quantized(x).argmax(1)).float().mean()
    assert agree > 0.99
