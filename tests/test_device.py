"""Ranks to devices, with pretended nodes: the mapping is a pure function of name, ranks and GPUs of a node."""

import platform
from types import SimpleNamespace

import pytest
import torch

from latticeflow.errors import InputError
from latticeflow.production.device import bind_device, pick_device
from latticeflow.production.ranks import Ranks


def node(name: str, ranks: int, gpus: int, share: bool = False) -> list[str]:
    """Devices of the ranks of one node."""
    return [pick_device(name, i, gpus, ranks, share, "node1") for i in range(ranks)]


@pytest.mark.parametrize(
    ("name", "ranks", "gpus", "share", "devices"),
    [
        ("cpu", 3, 2, False, ["cpu"] * 3),
        ("auto", 2, 0, False, ["cpu"] * 2),
        ("auto", 1, 1, False, ["cuda:0"]),
        ("auto", 3, 4, False, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cuda", 4, 4, False, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda", 5, 2, True, ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]),
        ("auto", 4, 1, True, ["cuda:0"] * 4),
    ],
)
def test_one_gpu_for_each_rank(name, ranks, gpus, share, devices):
    assert node(name, ranks, gpus, share) == devices


@pytest.mark.parametrize(
    ("name", "ranks", "gpus", "said"),
    [
        ("auto", 4, 2, "device 'auto', local rank 0 of 4 on node1: 4 ranks and 2 GPUs"),
        ("cuda", 2, 1, "2 ranks and 1 GPUs. Start at most one rank for each GPU.*--device cpu.*--share-gpus"),
        ("cuda", 1, 0, "device 'cuda', local rank 0 of 1 on node1: torch sees no GPU"),
        ("tpu", 1, 1, "'tpu'; expected cpu, cuda or auto"),
    ],
)
def test_too_few_gpus(name, ranks, gpus, said):
    with pytest.raises(InputError, match=said):
        node(name, ranks, gpus)


def test_sharing_needs_a_gpu():
    with pytest.raises(InputError, match="torch sees no GPU"):
        node("cuda", 2, 0, share=True)
    assert node("auto", 2, 0, share=True) == ["cpu", "cpu"]


class Node(Ranks):
    """Local rank `rank` of a node whose ranks see `gpus`, a list of names for each rank."""

    def __init__(self, monkeypatch, rank: int, gpus: list[list[str]], first: int = 0):
        super().__init__()
        self.local_rank, self.local_size, self.gpus = rank, len(gpus), gpus
        self.rank = first + rank
        own = gpus[rank]
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(own))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: SimpleNamespace(uuid=own[i]))
        monkeypatch.setattr(torch.cuda, "set_device", self.set_device)
        self.current = None

    def set_device(self, device):
        self.current = device

    def gather_local(self, value):
        assert value == self.gpus[self.local_rank]
        return self.gpus


def bound(monkeypatch, gpus: list[list[str]], name: str = "auto", share: bool = False) -> list[str]:
    """Devices of all ranks of a node, each also torch's current one."""
    devices = []
    for rank in range(len(gpus)):
        ranks = Node(monkeypatch, rank, gpus)
        devices.append(bind_device(name, ranks, share))
        assert ranks.current == (None if devices[-1] == "cpu" else devices[-1])
    return devices


def test_nodes_of_different_kinds(monkeypatch):
    """A job over three nodes: 4 GPUs and 4 ranks, 2 GPUs and 2 ranks, no GPU and 3 ranks."""
    four, two, none = [list("abcd")] * 4, [list("ef")] * 2, [[]] * 3
    assert bound(monkeypatch, four) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert bound(monkeypatch, two) == ["cuda:0", "cuda:1"]
    assert bound(monkeypatch, none) == ["cpu"] * 3
    with pytest.raises(InputError, match=f"on {platform.node()}: torch sees no GPU here"):
        bound(monkeypatch, none, "cuda")
    assert bound(monkeypatch, none, "cpu") == bound(monkeypatch, two, "cpu")[:1] * 3


def test_a_batch_system_that_shows_each_rank_its_own(monkeypatch):
    assert bound(monkeypatch, [["a"], ["b"], ["c"]]) == ["cuda:0"] * 3
    assert bound(monkeypatch, [["a", "b"], ["c", "d"]], "cuda") == ["cuda:0"] * 2
    with pytest.raises(InputError, match="2 ranks and 1 GPUs"):
        bound(monkeypatch, [["a"], ["a"]])  # the same one: not their own
    assert bound(monkeypatch, [["a"], ["a"]], share=True) == ["cuda:0"] * 2


def test_cpu_never_asks_for_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("asked"))
    assert bind_device("cpu", Ranks()) == "cpu"
