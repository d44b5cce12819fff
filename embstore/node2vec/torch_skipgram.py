"""Skip-gram by torch, on whatever device it has: the interface and the objective of ``embstore.node2vec.skipgram``.

    x_BLD  vectors of a batch of walks       y_BLD  their contexts       n_BSD  contexts of each walk's negatives
    pairs  x y^T  [B, L, L], where a window has both          negatives  x n^T  [B, L, S], weighted

A window's centre meets its contexts and ``negatives`` others. Here all windows of a walk share a pool of S negatives,
each weighted by negatives / S for each pair it stands against, so that the expected loss is the same and nearly all
work is products of matrices. All errors are of the numbers before the batch's updates, which are summed. So a batch
must be small against the graph, or rows that many of its walks visit overshoot: it takes at most as many walks as
visit each node once on average. Hubs are visited more often: of a row whose pairs in the batch, each times its learning
rate, add up to more than ``most``, the moves are scaled down by as much. (Without, the default batches diverge on
BlogCatalog, whose first node has 38 visits in one.)

On a CPU the numba path is several times as fast; an H200 takes about 1 ms a batch, which on graphs of some thousand
nodes is about as long as that path takes on 16 cores. On CUDA ``index_add_`` sums in any order unless
``torch.use_deterministic_algorithms`` is on.

Suffixes: N nodes, W walks, B walks of a batch, L nodes of a walk, S negatives of a walk, D numbers of a vector.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from embstore.errors import ConfigError, GraphError
from embstore.node2vec.skipgram import SkipGramSettings, draw_vectors
from embstore.node2vec.walks import check_walks

_MOST_WALKS = 1024  # of a batch


class TorchSkipGram:
    """Vectors of nodes, trained on walks that are given piece by piece.

    What is drawn depends on (seed, epoch, first walk of a batch) and on the device's generator: the same bits for the
    same pieces, where torch's sums are deterministic; a piece of whole batches may be divided between them.

    Args:
        visits_N: how often all walks come to each node, int64 ``[N]``.
        num_walks: of an epoch.
        settings: how.
        vectors, contexts: float32 ``[N, dim]`` to start from; small random numbers and zeros when not given.
        device: where.
        pool: negatives of a walk.
        batch: walks of a batch; by default what the module's text says.
        most: pairs of a row in a batch, times the rate, beyond which its moves are scaled down. Of 1, 2, 4, 6 and 8, 4
            had the least loss after 6,000 walks of BlogCatalog, at rates of 0.015 and of 0.025.
    """

    def __init__(
        self,
        visits_N: NDArray[np.int64],
        num_walks: int,
        settings: SkipGramSettings,
        *,
        vectors: NDArray[np.float32] | None = None,
        contexts: NDArray[np.float32] | None = None,
        device: str | torch.device = "cpu",
        pool: int = 32,
        batch: int | None = None,
        most: float = 4.0,
    ) -> None:
        if not visits_N.sum():
            raise GraphError("walks to train on", expected="visits of at least one node", found="none")
        if pool < 1 or (batch is not None and batch < 1):
            raise ConfigError("pool and batch", expected="1 or more", found=f"{pool} and {batch}")
        if not most > 0:
            raise ConfigError("most", expected="more than 0", found=str(most))
        self.settings, self.num_walks, self.device = settings, num_walks, torch.device(device)
        self.pool, self.batch, self.most = pool, batch, most
        shape = (len(visits_N), settings.dim)
        if vectors is None:
            vectors = np.empty(shape, dtype=np.float32)
            draw_vectors(vectors, settings.seed)
        if contexts is None:
            contexts = np.zeros(shape, dtype=np.float32)
        if vectors.shape != shape or contexts.shape != shape:
            found = f"{list(vectors.shape)} and {list(contexts.shape)}"
            raise GraphError("vectors to start from", expected=f"{list(shape)}", found=found)
        self._vectors = torch.tensor(vectors, dtype=torch.float32, device=self.device)
        self._contexts = torch.tensor(contexts, dtype=torch.float32, device=self.device)
        share_N = visits_N / visits_N.sum()
        self._kept: Tensor | None = None
        if settings.subsample > 0:
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = settings.subsample / share_N
                kept_N = np.where(share_N > 0, np.minimum(np.sqrt(ratio) + ratio, 1), 1)
            self._kept = torch.tensor(kept_N, dtype=torch.float32, device=self.device)
        below_N = np.cumsum(visits_N.astype(np.float64) ** settings.power * (visits_N > 0))
        self._below = torch.tensor(below_N / below_N[-1], device=self.device)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """What was learnt, float32 ``[N, dim]``; a copy, on this machine."""
        return self._vectors.cpu().numpy().copy()

    @property
    def contexts(self) -> NDArray[np.float32]:
        """The vectors of nodes as centres, float32 ``[N, dim]``; a copy, on this machine."""
        return self._contexts.cpu().numpy().copy()

    def train(self, walks_WL: NDArray[np.int32], first: int, *, epoch: int = 0) -> float:
        """Train on walks ``first``, ``first + 1``, ... of an epoch.

        Returns:
            The mean loss of a window's contexts; NaN when there was none.

        Raises:
            GraphError: walks of another type, or of nodes that there aren't.
        """
        how = self.settings
        check_walks(walks_WL, len(self._vectors))
        slope = (how.last_learning_rate - how.learning_rate) / (self.num_walks * how.epochs)
        batch = self.batch or max(1, min(_MOST_WALKS, len(self._vectors) // max(1, walks_WL.shape[1])))
        lost = torch.zeros(2, dtype=torch.float64, device=self.device)
        for start in range(0, len(walks_WL), batch):
            walks_BL = torch.from_numpy(walks_WL[start : start + batch].astype(np.int64)).to(self.device)
            number_B = torch.arange(len(walks_BL), device=self.device) + (epoch * self.num_walks + first + start)
            generator = torch.Generator(device=self.device)
            draw = np.random.SeedSequence([how.seed, epoch, first + start]).generate_state(1, np.uint64)[0]
            generator.manual_seed(int(draw >> np.uint64(1)))
            lost += self._step(walks_BL, (how.learning_rate + slope * number_B).float(), generator)
        loss, pairs = lost.tolist()
        return loss / pairs if pairs else float("nan")

    def _step(self, walks_BL: Tensor, rate_B: Tensor, generator: torch.Generator) -> Tensor:
        """Train on a batch; its loss and its pairs."""
        how, device = self.settings, self.device
        there_BL = walks_BL >= 0
        if self._kept is not None:
            kept_BL = self._kept[walks_BL.clamp(min=0)]
            there_BL &= torch.rand(walks_BL.shape, generator=generator, device=device) < kept_BL
            # Those that stay close up.
            there_BL, order_BL = there_BL.to(torch.uint8).sort(dim=1, descending=True, stable=True)
            there_BL, walks_BL = there_BL.bool(), walks_BL.gather(1, order_BL)
        walks_BL = torch.where(there_BL, walks_BL, 0)
        count, length = walks_BL.shape
        span_BL = torch.randint(1, how.window + 1, (count, length), generator=generator, device=device)
        place_L = torch.arange(length, device=device)
        apart_LL = (place_L[:, None] - place_L).abs()
        # Input i of the window around centre j.
        pair_BLL = (apart_LL > 0) & (apart_LL <= span_BL[:, None, :]) & there_BL[:, :, None] & there_BL[:, None, :]
        pairs_BLL = pair_BLL.float()
        drawn_BS = torch.rand((count, self.pool), generator=generator, device=device, dtype=torch.float64)
        negative_BS = torch.searchsorted(self._below, drawn_BS, right=True).clamp(max=len(self._below) - 1)
        other_BLS = (walks_BL[:, :, None] != negative_BS[:, None, :]).float()
        weight_BLS = torch.bmm(pairs_BLL, other_BLS) * (how.negatives / self.pool)  # a centre is not its own negative

        x_BLD, y_BLD, n_BSD = self._vectors[walks_BL], self._contexts[walks_BL], self._contexts[negative_BS]
        z_BLL, z_BLS = torch.bmm(x_BLD, y_BLD.mT), torch.bmm(x_BLD, n_BSD.mT)
        loss = (softplus(-z_BLL) * pairs_BLL).sum(dtype=torch.float64)
        loss += (softplus(z_BLS) * weight_BLS).sum(dtype=torch.float64)
        error_BLL = pairs_BLL * torch.sigmoid(-z_BLL) * rate_B[:, None, None]
        error_BLS = -weight_BLS * torch.sigmoid(z_BLS) * rate_B[:, None, None]
        move_x_BLD = torch.bmm(error_BLL, y_BLD) + torch.bmm(error_BLS, n_BSD)
        move_y_BLD, move_n_BSD = torch.bmm(error_BLL.mT, x_BLD), torch.bmm(error_BLS.mT, x_BLD)
        pairs_x_BL, pairs_y_BL, pairs_n_BS = pairs_BLL.sum(2) + weight_BLS.sum(2), pairs_BLL.sum(1), weight_BLS.sum(1)
        self._move(self._vectors, rate_B, (walks_BL, pairs_x_BL, move_x_BLD))
        moves = (walks_BL, pairs_y_BL, move_y_BLD), (negative_BS, pairs_n_BS, move_n_BSD)
        self._move(self._contexts, rate_B, *moves)
        return torch.stack([loss, pairs_BLL.sum(dtype=torch.float64)])

    def _move(self, rows_ND: Tensor, rate_B: Tensor, *moves: tuple[Tensor, Tensor, Tensor]) -> None:
        """Add moves to rows: which rows, how many pairs each has there, and by how much."""
        pairs_N = torch.zeros(len(rows_ND), device=self.device)
        for at_BL, pairs_BL, _ in moves:
            pairs_N.index_add_(0, at_BL.reshape(-1), (pairs_BL * rate_B[:, None]).reshape(-1))
        scale_N = (self.most / pairs_N).clamp(max=1)
        for at_BL, _, move_BLD in moves:
            move_BLD *= scale_N[at_BL][:, :, None]
            rows_ND.index_add_(0, at_BL.reshape(-1), move_BLD.reshape(-1, self.settings.dim))
