"""A graph reads and writes the addresses that it was captured with: buffers around it stay where they are."""

import pytest
import torch

from sparktier.kernels.captured import StaticOutputs, staged_inputs

MOST = 4
CPU = torch.device("cpu")


def test_what_is_written_again_lies_where_it_lay() -> None:
    outputs = StaticOutputs(MOST)
    outputs.write("chain", (torch.ones(MOST, 3),))
    (seen,) = outputs.read("chain", MOST)
    outputs.write("tree", (torch.full((MOST, 3), 7.0),))
    outputs.write("chain", (torch.full((2, 3), 2.0),))
    assert seen[:, 0].tolist() == [2.0, 2.0, 1.0, 1.0]
    assert outputs.read("chain", 1)[0].tolist() == [[2.0] * 3]
    assert outputs.read("tree", MOST)[0].eq(7.0).all()


def test_what_is_staged_reaches_a_graph_of_any_size() -> None:
    inputs = staged_inputs(MOST, device=CPU)
    captured = [inputs.first(size) for size in range(1, MOST + 1)]
    inputs.stage_sampling(torch.tensor([0.5, 0.7]), torch.tensor([1, 40]))
    inputs.stage_limits(torch.tensor([[5, 3], [2, 1]]))
    for size, graph in enumerate(captured, start=1):
        live = min(size, 2)
        assert graph.temperatures.tolist() == pytest.approx([0.5, 0.7, 1.0, 1.0][:size])
        assert graph.greedy.tolist() == [True, False, True, True][:size]
        assert graph.limits[:live].tolist() == [[5, 3], [2, 1]][:live]
        assert graph.limits[live:].eq(1).all()
