"""What hidden tests are written with."""

import torch
from torch import nn

from autograder.hidden import gradients, inputs


def test_inputs_are_those_of_the_course_and_of_no_other(monkeypatch):
    monkeypatch.setenv("COURSE_SECRET", "one")
    first, again = (torch.rand(4, generator=inputs("draw")) for _ in range(2))
    other_draw = torch.rand(4, generator=inputs("another draw"))
    monkeypatch.setenv("COURSE_SECRET", "two")
    other_course = torch.rand(4, generator=inputs("draw"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other_draw)
    assert not torch.equal(first, other_course)


def test_gradients_of_a_model_by_name():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model(torch.randn(4, 2)).square().sum().backward()
    found = gradients(model)
    assert set(found) == set(model.state_dict())
    assert torch.equal(found["0.weight"], model[0].weight.grad)
    assert found["1.running_mean"] is None
