"""Threads share a quantizer, and trace while others run: nothing is lost, nobody is disturbed."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from ptq_course.errors import CalibrationError
from ptq_course.graph import trace
from ptq_course.simulation.network import TracedNetwork
from ptq_course.simulation.quantizer import PTQQuantizer

THREADS = 4
RULES = ("minmax", "percentile", "kl", "mse")


class While(nn.Module):
    """Does something of ours in the middle of its forward pass, and so of its tracing."""

    def __init__(self, does: Callable[[], object]) -> None:
        super().__init__()
        self.does, self.fc = does, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.arange(x.shape[1])
        self.does()
        return self.fc(x)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def batches(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 6, generator=generator) * (1 + seed) for _ in range(3)]


def scales(quantizer: PTQQuantizer) -> list[dict[str, float]]:
    return [quantizer.compute_qparams(rule).scales for rule in RULES]


def slowly(data: list[Tensor]) -> Iterator[Tensor]:
    time.sleep(0.02)  # time enough for every thread to have begun
    yield from data


def test_threads_that_observe_lose_nothing():
    together, alone = PTQQuantizer(network()), PTQQuantizer(network())

    def observe(seed: int) -> None:
        together.observe(slowly(batches(seed)), progress=False)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(observe, range(THREADS)))
    for seed in range(THREADS):
        alone.observe(batches(seed), progress=False)
    assert together.statistics.num_batches == 3 * THREADS
    assert scales(together) == scales(alone)


def test_threads_that_merge_lose_nothing():
    parts = [PTQQuantizer(network()).observe(batches(s), progress=False) for s in range(THREADS)]
    expected = copy.copy(parts[0])
    for part in parts[1:]:
        expected.merge(part)
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(parts[0].merge, parts[1:]))
    assert scales(parts[0]) == scales(expected)


def test_a_loader_that_observes_is_refused_and_what_it_observed_stays():
    quantizer = PTQQuantizer(network())

    def loader() -> Iterator[Tensor]:
        quantizer.observe(batches(0), progress=False)
        yield from batches(1)

    with pytest.raises(CalibrationError, match="the loader itself observed"):
        quantizer.observe(loader(), progress=False)
    expected = PTQQuantizer(network()).observe(batches(0), progress=False)
    assert scales(quantizer) == scales(expected)


@pytest.mark.parametrize("example", [None, [torch.ones(2, 6)]])
def test_a_model_runs_in_one_thread_while_another_traces(example):
    model, x = network(), torch.randn(3, 6)
    expected, found = model(x), []

    def run_elsewhere() -> None:
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(model, x).result())

    traced = trace(While(run_elsewhere), example)
    assert len(found) == 1
    assert torch.equal(found[0], expected)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["fc"]


def test_two_threads_trace_one_after_the_other():
    call, arange = nn.Module.__call__, torch.arange
    inside = threading.Event()
    model = While(lambda: inside.set())  # a function, because trace() copies the model
    second = threading.Thread(target=trace, args=[model])
    met: list[bool] = []

    def begin_the_second() -> None:
        second.start()
        met.append(inside.wait(0.1))

    trace(While(begin_the_second))
    second.join()
    assert inside.is_set()
    assert met == [False], "the second waited"
    assert nn.Module.__call__ is call
    assert torch.arange is arange


def test_a_fork_owns_its_network():
    quantizer = PTQQuantizer(network()).observe(batches(0), progress=False)
    fork = quantizer.fork()
    assert isinstance(fork.network, TracedNetwork)
    for node in fork.network.module.graph.nodes:
        node.meta["floating"] = False
    assert quantizer.network.types == {}
    assert quantizer.network.module is not fork.network.module
    weights = [q.network.module.state_dict().values() for q in (quantizer, fork)]
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(*weights, strict=True))
    assert scales(quantizer) == scales(PTQQuantizer(network()).observe(batches(0), progress=False))


def test_a_copy_has_a_lock_of_its_own():
    quantizer = PTQQuantizer(network()).observe(batches(0), progress=False)
    for other in (copy.copy(quantizer), copy.deepcopy(quantizer), quantizer.fork()):
        assert other._lock is not quantizer._lock
        assert scales(other) == scales(quantizer)
