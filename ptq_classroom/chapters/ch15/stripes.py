"""A task for a small Keras model: in which of four directions do the stripes of a picture run?

Made up here, so that a network can be trained in seconds and is still sometimes wrong.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

SIZE = 16


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures float32 [n, 16, 16, 1] of stripes under noise, and their direction int64 [n]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    angle = labels * np.pi / 4 + rng.normal(0, 0.25, count)
    wave = np.cos(angle)[:, None, None] * rows + np.sin(angle)[:, None, None] * columns
    wave = np.sin(wave + rng.uniform(0, 6, (count, 1, 1))) + rng.normal(0, 0.6, wave.shape)
    return wave[..., None].astype(np.float32), labels


def keras_model(epochs: int = 6) -> Any:
    """A Keras model with separable convolutions and residual sums, trained for a few seconds."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    layers: Any = keras.layers
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((SIZE, SIZE, 1))
    for channels in (8, 16):
        x = layers.Conv2D(channels, 3, 2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        y = layers.SeparableConv2D(channels, 3, padding="same", activation="relu")(x)
        x = layers.Add()([x, y])
    x = layers.Flatten()(layers.MaxPooling2D(3, 2, padding="same")(x))
    model: Any = keras.Model(inputs, layers.Dense(4)(layers.Dropout(0.1)(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a network is slower with more, and sums in another order
    try:
        model.fit(*stripes(1024, 1), batch_size=64, epochs=epochs, verbose=0)
    finally:
        torch.set_num_threads(threads)
    return model
