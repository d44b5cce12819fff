"""Skip-gram by torch against the numba path, which it shall equal but for what is drawn."""

import numpy as np
import pytest
import torch

from embstore.errors import ConfigError, GraphError
from embstore.node2vec.graph import Graph
from embstore.node2vec.skipgram import SkipGram, SkipGramSettings
from embstore.node2vec.torch_skipgram import TorchSkipGram
from embstore.node2vec.walks import Walker, WalkSettings

NODES, GROUPS = 300, 5
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def planted():
    """Walks on a planted partition, their visits, and edges that were held out."""
    generator = np.random.default_rng(0)
    source, target = generator.integers(0, NODES, (2, 9000))
    inside = (source % GROUPS == target % GROUPS) | (generator.random(9000) < 0.15)
    source, target = source[inside], target[inside]
    held = generator.random(len(source)) < 0.1
    walker = Walker(Graph.of_edges(source[~held], target[~held], num_nodes=NODES), WalkSettings(length=20))
    walks = walker.walks(0, walker.num_walks)
    return walks, np.bincount(walks[walks >= 0], minlength=NODES), source[held], target[held]


def settings(**kw):
    return SkipGramSettings(**{"dim": 16, "window": 4, "subsample": 0, "epochs": 2, **kw})


def run(model, walks):
    return [
        model.train(walks[at : at + 500], at, epoch=epoch) for epoch in range(2) for at in range(0, len(walks), 500)
    ]


def group_accuracy(vectors):
    """Of nearest group means, each taken over the other half of the nodes."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    group, half = np.arange(NODES) % GROUPS, np.arange(NODES) % 2 == 0
    right = 0
    for some in (half, ~half):
        means = np.stack([unit[some & (group == g)].mean(axis=0) for g in range(GROUPS)])
        right += ((unit[~some] @ means.T).argmax(axis=1) == group[~some]).sum()
    return right / NODES


def link_auc(vectors, source, target):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    others = np.random.default_rng(5).integers(0, NODES, (2, 4000))
    linked, apart = (unit[source] * unit[target]).sum(axis=1), (unit[others[0]] * unit[others[1]]).sum(axis=1)
    return (linked[:, None] > apart).mean()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("subsample", [0.0, 0.003])
def test_losses_and_quality_are_those_of_the_numba_path(planted, device, subsample):
    walks, visits, source, target = planted
    how = settings(subsample=subsample, learning_rate=0.05)
    ours, theirs = TorchSkipGram(visits, len(walks), how, device=device), SkipGram(visits, len(walks), how)
    losses, others = run(ours, walks), run(theirs, walks)
    # The numba path counts one window in 32 (some 2%). Contexts start from 0, where a batch, whose errors are all of
    # the numbers before it, is a little behind.
    np.testing.assert_allclose(losses[:1], others[:1], rtol=0.2)
    np.testing.assert_allclose(losses[1:], others[1:], rtol=0.08)
    np.testing.assert_allclose(np.mean(losses[6:]), np.mean(others[6:]), rtol=0.03)
    assert losses[-1] < 0.8 * losses[0]
    assert abs(group_accuracy(ours.vectors) - group_accuracy(theirs.vectors)) < 0.04
    assert group_accuracy(ours.vectors) > 0.9
    assert abs(link_auc(ours.vectors, source, target) - link_auc(theirs.vectors, source, target)) < 0.03


@pytest.mark.parametrize("device", DEVICES)
def test_hubs_do_not_overshoot(device):
    """As on BlogCatalog, whose hubs are visited so often in a batch that plain sums diverge."""
    generator = np.random.default_rng(1)
    ends = generator.integers(0, 1000, (2, 6000))
    hubs = np.stack([generator.integers(0, 6, 6000), generator.integers(6, 1000, 6000)])
    walker = Walker(Graph.of_edges(*np.concatenate([ends, hubs], axis=1), num_nodes=1000), WalkSettings(length=40))
    walks = walker.walks(0, walker.num_walks)
    visits, losses = np.bincount(walks[walks >= 0], minlength=1000), {}
    for most in (4.0, np.inf):
        how = settings(window=10, learning_rate=0.05, epochs=1)
        model = TorchSkipGram(visits, len(walks), how, device=device, most=most)
        losses[most] = [model.train(walks[at : at + 2000], at) for at in range(0, len(walks), 2000)]
    assert losses[4.0][-1] < losses[4.0][0]
    assert not losses[np.inf][-1] < 2 * losses[np.inf][0]


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_is_the_gradient_of_its_loss(device):
    """Moves of a batch at rate 1, against autograd on the written loss."""
    generator = np.random.default_rng(2)
    walks = generator.integers(0, 12, (3, 7)).astype(np.int32)
    walks[2, 4:] = -1
    visits = np.bincount(walks[walks >= 0], minlength=12)
    start = generator.standard_normal((2, 12, 8)).astype(np.float32)
    how = settings(dim=8, window=3, learning_rate=1.0, last_learning_rate=1.0, negatives=3)
    model = TorchSkipGram(
        visits, 3, how, vectors=start[0], contexts=start[1], device=device, pool=6, batch=3, most=np.inf
    )
    drawn = {}
    random, spans = torch.rand, torch.randint

    def keep(name, function):
        def call(*args, **kw):
            drawn[name] = function(*args, **kw)
            return drawn[name]

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", keep("rand", random))
        patch.setattr(torch, "randint", keep("span", spans))
        model.train(walks, 0)
    share = visits**0.75 / (visits**0.75).sum()
    negative = np.searchsorted(np.cumsum(share), drawn["rand"].cpu().numpy(), side="right")
    vectors, contexts = (torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in start)
    loss = torch.zeros((), dtype=torch.float64)
    for w, walk in enumerate(walks):
        for j, centre in enumerate(walk):
            for i, node in enumerate(walk):
                if centre < 0 or node < 0 or not 0 < abs(i - j) <= drawn["span"][w, j]:
                    continue
                loss = loss - torch.nn.functional.logsigmoid(vectors[node] @ contexts[centre])
                for other in negative[w]:
                    if other != centre:
                        loss = loss - 3 / 6 * torch.nn.functional.logsigmoid(-vectors[node] @ contexts[other])
    loss.backward()
    np.testing.assert_allclose(model.vectors - start[0], -vectors.grad.numpy(), atol=1e-4)
    np.testing.assert_allclose(model.contexts - start[1], -contexts.grad.numpy(), atol=1e-4)


def test_the_same_bits_again_and_for_other_pieces_of_whole_batches(planted):
    walks, visits, *_ = planted
    one, other = (TorchSkipGram(visits, len(walks), settings(), batch=50) for _ in range(2))
    one.train(walks[:600], 0)
    other.train(walks[:250], 0)
    other.train(walks[250:600], 250)
    np.testing.assert_array_equal(one.vectors, other.vectors)
    np.testing.assert_array_equal(one.contexts, other.contexts)


def test_starts_are_those_of_the_numba_path(planted):
    walks, visits, *_ = planted
    start = np.random.default_rng(0).standard_normal((2, NODES, 16)).astype(np.float32)
    ours = TorchSkipGram(visits, len(walks), settings())
    np.testing.assert_array_equal(ours.vectors, SkipGram(visits, len(walks), settings()).vectors)
    given = TorchSkipGram(visits, len(walks), settings(), vectors=start[0], contexts=start[1])
    np.testing.assert_array_equal(given.vectors, start[0])
    np.testing.assert_array_equal(given.contexts, start[1])


def test_walks_without_windows():
    model = TorchSkipGram(np.array([1, 1]), 2, settings())
    before = model.vectors
    assert np.isnan(model.train(np.array([[0, -1], [1, -1]], dtype=np.int32), 0))
    np.testing.assert_array_equal(model.vectors, before)


def test_what_cannot_be():
    with pytest.raises(GraphError, match="walks to train on"):
        TorchSkipGram(np.zeros(3, np.int64), 1, settings())
    with pytest.raises(GraphError, match="nodes below 3"):
        TorchSkipGram(np.ones(3, np.int64), 1, settings()).train(np.array([[0, 3]], np.int32), 0)
    with pytest.raises(GraphError, match="vectors to start from"):
        TorchSkipGram(np.ones(3, np.int64), 1, settings(), vectors=np.zeros((2, 16), np.float32))
    for wrong in ({"pool": 0}, {"batch": 0}):
        with pytest.raises(ConfigError, match="pool and batch"):
            TorchSkipGram(np.ones(3, np.int64), 1, settings(), **wrong)
    with pytest.raises(ConfigError, match="most"):
        TorchSkipGram(np.ones(3, np.int64), 1, settings(), most=0)
