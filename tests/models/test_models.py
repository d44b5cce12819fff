"""Each model against its equations, written as float64 loops over numpy arrays."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from embstore import models
from embstore.errors import ConfigError

Weights = dict[str, np.ndarray]


# --- the judge -------------------------------------------------------------------------------------------------------


def affine(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)


def hidden(weights: Weights, name: str, x: np.ndarray, activation: Callable = lambda x: np.maximum(x, 0)) -> np.ndarray:
    """Linear, batch norm where there is one, activation; layer after layer."""
    numbers = sorted({int(key.removeprefix(f"{name}.").split(".")[0]) for key in weights if key.startswith(f"{name}.")})
    for number in numbers:
        layer = f"{name}.{number}"
        if f"{layer}.running_mean" in weights:
            continue
        x = affine(weights, layer, x)
        norm = f"{name}.{number + 1}"
        if f"{norm}.running_mean" in weights:
            x = (x - weights[f"{norm}.running_mean"]) / np.sqrt(weights[f"{norm}.running_var"] + 1e-5)
            x = x * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]
        x = activation(x)
    return x


def vectors(weights: Weights, features: list[np.ndarray]) -> list[np.ndarray]:
    """Features as given, or each projected."""
    projected = [weights.get(f"vectors.projections.{i}.weight") for i in range(len(features))]
    return [x if matrix is None else matrix @ x for x, matrix in zip(features, projected, strict=True)]


def dnn(weights: Weights, dense: np.ndarray, features: list[np.ndarray], settings: dict[str, Any]) -> float:
    activation = {"tanh": np.tanh, "silu": lambda x: x / (1 + np.exp(-x))}.get(settings.get("activation"))
    x = np.concatenate([dense, *features])
    return affine(weights, "head", hidden(weights, "deep", x, *filter(None, [activation])))


def dcn(weights: Weights, dense: np.ndarray, features: list[np.ndarray], settings: dict[str, Any]) -> float:
    first = np.concatenate([dense, *features])
    x = first
    for layer in range(settings.get("cross_layers", 3)):
        name = f"crosses.{layer}"
        if settings.get("experts", 1) > 1:
            gates = np.exp(affine(weights, f"{name}.gate", x))
            total = np.zeros_like(x)
            for i in range(settings["experts"]):
                down, core, up = (weights[f"{name}.{part}"][i] for part in ("down", "core", "up"))
                expert = first * (up @ np.tanh(core @ np.tanh(down @ x)) + weights[f"{name}.bias"])
                total += gates[i] / gates.sum() * expert
            x = total + x
        elif settings.get("low_rank"):
            down, up = weights[f"{name}.weight.0.weight"], weights[f"{name}.weight.1.weight"]
            x = first * (up @ (down @ x) + weights[f"{name}.weight.1.bias"]) + x
        else:
            x = first * affine(weights, f"{name}.weight", x) + x
    if settings.get("hidden") == ():
        return affine(weights, "head", x)
    if settings.get("structure", "parallel") == "stacked":
        return affine(weights, "head", hidden(weights, "deep", x))
    return affine(weights, "head", np.concatenate([x, hidden(weights, "deep", first)]))


def dlrm(weights: Weights, dense: np.ndarray, features: list[np.ndarray], settings: dict[str, Any]) -> float:
    every = vectors(weights, features)
    bottom = []
    if len(dense):
        bottom = [hidden(weights, "bottom", dense)]
        every = bottom + every
    dots = [every[i] @ every[j] for i in range(len(every)) for j in range(i)]
    return affine(weights, "head", hidden(weights, "top", np.concatenate([*bottom, dots])))


def deepfm(weights: Weights, dense: np.ndarray, features: list[np.ndarray], settings: dict[str, Any]) -> float:
    x = np.concatenate([dense, *features])
    every = vectors(weights, features)
    if len(dense):
        every += [value * vector for value, vector in zip(dense, weights["dense_vectors"], strict=True)]
    logit = affine(weights, "first_order", x)
    for a, b in combinations(every, 2):
        logit = logit + a @ b
    if settings.get("hidden") == ():
        return logit
    return logit + weights["deep.1.weight"] @ hidden(weights, "deep.0", x)


JUDGES = {"dnn": dnn, "dcn": dcn, "dlrm": dlrm, "deepfm": deepfm}


# --- the cases -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    dense_width: int = 3
    widths: tuple[int, ...] = (4, 4, 4)

    def model(self, seed: int = 0) -> nn.Module:
        """In float64 and eval mode, with every parameter and running statistic drawn at random."""
        torch.manual_seed(seed)
        model = (
            models.build(self.name, dense_width=self.dense_width, widths=self.widths, **self.settings).double().eval()
        )
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.normal_(std=0.5)
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.1)
        return model

    def inputs(self, rows: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(
            torch.randn(rows, width, generator=generator, dtype=torch.float64)
            for width in (self.dense_width, sum(self.widths))
        )

    def __str__(self) -> str:
        return f"{self.name}-{self.dense_width}-{self.widths}-{self.settings}"


DEEP = {"hidden": (6, 5)}
UNEVEN = (4, 8, 2, 4)
CASES = [
    Case(name="dnn", settings=DEEP),
    Case(name="dnn", settings=DEEP | {"batch_norm": False, "activation": "tanh"}, dense_width=0),
    Case(name="dnn", settings=DEEP | {"activation": "silu", "dropout": 0.5}, widths=UNEVEN),
    Case(name="dnn", settings={"hidden": ()}),
    Case(name="dnn", settings=DEEP, widths=()),
    Case(name="dcn", settings=DEEP),
    Case(name="dcn", settings=DEEP | {"structure": "stacked", "cross_layers": 1}, dense_width=0, widths=UNEVEN),
    Case(name="dcn", settings={"hidden": (), "cross_layers": 4}),
    Case(name="dcn", settings={"hidden": (), "structure": "stacked"}),
    Case(name="dcn", settings=DEEP | {"low_rank": 2, "dropout": 0.1}),
    Case(name="dcn", settings=DEEP | {"low_rank": 3, "experts": 4}, widths=UNEVEN),
    Case(name="dcn", settings=DEEP | {"low_rank": 1, "experts": 2, "structure": "stacked", "batch_norm": False}),
    Case(name="dlrm", settings={"bottom": (7,), "top": (6, 5)}),
    Case(name="dlrm", settings={"bottom": (), "top": ()}, widths=(4,)),
    Case(name="dlrm", settings={"top": (6,)}, dense_width=0),
    Case(name="dlrm", settings={"bottom": (7,), "top": (6,)}, widths=UNEVEN),
    Case(name="dlrm", settings={"bottom": (7,), "top": (6,), "interaction_dim": 5}),
    Case(name="deepfm", settings=DEEP),
    Case(name="deepfm", settings=DEEP, dense_width=0, widths=UNEVEN),
    Case(name="deepfm", settings=DEEP | {"interaction_dim": 5, "batch_norm": False}),
    Case(name="deepfm", settings={"hidden": ()}, widths=(4,)),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_forward_is_the_equation(case):
    model = case.model()
    dense_BD, embedded_BW = case.inputs(6)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        logits_B = model(dense_BD, embedded_BW)
    cuts = np.cumsum(case.widths)[:-1].astype(int)
    expected = [
        JUDGES[case.name](weights, dense, np.split(row, cuts) if case.widths else [], case.settings)
        for dense, row in zip(dense_BD.numpy(), embedded_BW.numpy(), strict=True)
    ]
    assert logits_B.shape == (6,)
    np.testing.assert_allclose(logits_B, np.ravel(expected), rtol=1e-11, atol=1e-12)


@every_case
def test_gradients_reach_both_inputs_and_every_parameter(case):
    torch.manual_seed(0)
    model = models.build(case.name, dense_width=case.dense_width, widths=case.widths, **case.settings)
    inputs = [x.float().requires_grad_() for x in case.inputs(64)]
    model(*inputs).square().sum().backward()
    for x in inputs:
        assert x.grad is not None or not x.numel()
        assert x.numel() == 0 or (x.grad.abs().sum(dim=0) > 0).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@every_case
def test_a_row_does_not_depend_on_its_batch(case):
    model = case.model()
    dense_BD, embedded_BW = case.inputs(5)
    with torch.no_grad():
        whole_B = model(dense_BD, embedded_BW)
        rows = [model(dense_BD[i : i + 1], embedded_BW[i : i + 1]) for i in range(5)]
        assert model(dense_BD[:0], embedded_BW[:0]).shape == (0,)
    assert all(row.shape == (1,) for row in rows)
    torch.testing.assert_close(torch.cat(rows), whole_B, rtol=1e-12, atol=1e-12)


@given(st.permutations(range(8)), st.sampled_from(CASES))
def test_permuting_the_rows_permutes_the_logits(order, case):
    model = case.model()
    dense_BD, embedded_BW = case.inputs(8)
    with torch.no_grad():
        logits_B = model(dense_BD, embedded_BW)
        permuted_B = model(dense_BD[order], embedded_BW[order])
    torch.testing.assert_close(permuted_B, logits_B[order], rtol=1e-12, atol=1e-12)


@every_case
def test_state_dict_round_trip_is_bit_equal(case):
    model = case.model(seed=0)
    other = models.build(case.name, dense_width=case.dense_width, widths=case.widths, **case.settings).double().eval()
    other.load_state_dict(deepcopy(model.state_dict()))
    inputs = case.inputs(7)
    with torch.no_grad():
        assert torch.equal(model(*inputs), other(*inputs))
        assert torch.equal(model(*inputs), deepcopy(model)(*inputs))


@every_case
def test_training_on_one_row_works(case):
    """The last batch of a log can be a single row, which has no variance for batch norm."""
    model = case.model().train()
    model(*case.inputs(1)).sum().backward()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


# --- layers ----------------------------------------------------------------------------------------------------------


def test_batch_norm_is_torchs_but_for_one_row():
    torch.manual_seed(0)
    ours, theirs = models.layers.BatchNorm(4), nn.BatchNorm1d(4)
    for _ in range(3):
        x = torch.randn(10, 4)
        assert torch.equal(ours(x), theirs(x))
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    x = torch.randn(1, 4)
    assert torch.equal(ours(x), theirs.eval()(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_initial_values_come_from_the_callers_seed():
    for name in models.names():
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(models.build(name, dense_width=2, widths=(4, 8)).state_dict())
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_parameter_count_by_hand():
    model = models.build("dcn", dense_width=2, widths=(4, 4), hidden=(5,), cross_layers=2)
    cross, deep, head = 2 * (10 * 10 + 10), 10 * 5 + 2 * 5, (10 + 5) + 1
    assert models.parameter_count(model) == cross + deep + head
    model.head.requires_grad_(False)
    assert models.parameter_count(model) == cross + deep


def test_features_of_one_width_are_not_projected():
    assert not [
        name for name in models.build("dlrm", dense_width=1, widths=(8, 8)).state_dict() if "projections" in name
    ]


# --- registry --------------------------------------------------------------------------------------------------------


def test_names():
    assert {"dcn", "deepfm", "dlrm", "dnn"} <= set(models.names())


def test_settings_as_yaml_gives_them():
    model = models.build("dcn", dense_width=1, widths=[4, 4], hidden=[8, 8], low_rank=2, structure="stacked")
    assert model(torch.zeros(2, 1), torch.zeros(2, 8)).shape == (2,)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dcm", {}, "unknown model 'dcm'.*did you mean 'dcn'"),
        ("dcn", {"cros_layers": 2}, "unknown setting 'cros_layers'.*did you mean 'cross_layers'"),
        ("dlrm", {"batch_norm": True}, "model 'dlrm': unknown setting 'batch_norm'"),
        ("dnn", {"hidden": 400}, "hidden.*list of widths.*400"),
        ("dnn", {"hidden": (400, 0)}, "hidden.*1 or more.*0"),
        ("dnn", {"hidden": (400, "a")}, "hidden.*whole number.*'a'"),
        ("dnn", {"dropout": 1.0}, "dropout.*below 1.*1.0"),
        ("dnn", {"dropout": "0.1"}, "dropout.*'0.1'"),
        ("dnn", {"batch_norm": "yes"}, "batch_norm.*true or false.*'yes'"),
        ("dnn", {"activation": "rellu"}, "unknown activation 'rellu'.*did you mean 'relu'"),
        ("dcn", {"structure": "serial"}, "structure.*parallel or stacked.*'serial'"),
        ("dcn", {"experts": 4}, "experts.*low_rank"),
        ("dcn", {"cross_layers": 0}, "cross_layers.*1 or more.*0"),
        ("dcn", {"low_rank": 0}, "low_rank.*1 or more.*0"),
        ("dlrm", {"top": None}, "top.*list of widths.*None"),
        ("dlrm", {"interaction_dim": True}, "interaction_dim.*whole number.*True"),
        ("deepfm", {"interaction_dim": 0}, "interaction_dim.*1 or more.*0"),
    ],
)
def test_wrong_names_and_settings_are_named(name, settings, message):
    with pytest.raises(ConfigError, match=message):
        models.build(name, dense_width=1, widths=(4, 4), **settings)


@pytest.mark.parametrize(
    ("name", "dense_width", "widths", "message"),
    [
        ("dnn", 0, (), "at least one feature or dense column"),
        ("dnn", -1, (4,), "dense_width.*0 or more.*-1"),
        ("dnn", 1, (4, 0), "widths.*1 or more.*0"),
        ("dlrm", 0, (4,), "two features.*1 features and 0 dense.*'dnn'"),
        ("dlrm", 3, (), "two features.*0 features and 3 dense.*'dnn'"),
        ("deepfm", 3, (), "at least one feature.*'dnn'"),
    ],
)
def test_inputs_a_model_cannot_take_are_refused(name, dense_width, widths, message):
    with pytest.raises(ConfigError, match=message):
        models.build(name, dense_width=dense_width, widths=widths)


def test_a_name_is_registered_once():
    with pytest.raises(ConfigError, match="'dnn' is registered twice"):
        models.register("dnn")(nn.Module)
