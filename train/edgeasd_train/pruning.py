"""Prune between epochs: each rank judges its share of the windows that are kept, the first decides for all."""

from __future__ import annotations

import numpy as np
import torch

from edgeasd_train.collectives import collect, share, tell
from edgeasd_train.corpus.logmel import LogMelWindows
from edgeasd_train.detectors.contract import Detector
from edgeasd_train.features import TorchWindows
from edgeasd_train.prune import JUDGED_TOGETHER, Doubles, Judged, Pruned, choose, recordings_of
from edgeasd_train.ranks import Ranks
from edgeasd_train.recipe import PruneRecipe
from edgeasd_train.sampling import Kept, Numbers


def prune(
    detector: Detector, windows: LogMelWindows, kept: Kept, recipe: PruneRecipe, *, ranks: Ranks, epoch: int
) -> Pruned:
    """Return, to all ranks, what goes before `epoch`: what one rank with the same weights would drop."""
    share(ranks, detector.network)  # running statistics are each rank's own between two steps
    blocks = range(0, len(kept), JUDGED_TOGETHER)
    lengths = [
        sum(min(JUDGED_TOGETHER, len(kept) - first) for first in blocks[rank :: ranks.size])
        for rank in range(ranks.size)
    ]
    mine = [
        kept.numbers(np.arange(first, min(first + JUDGED_TOGETHER, len(kept)), dtype=np.int64))
        for first in blocks[ranks.rank :: ranks.size]
    ]
    deviations = _judge(detector, TorchWindows(windows), mine)
    index = collect(ranks, np.concatenate(mine) if mine else np.empty(0, np.int64), lengths)
    deviation = collect(ranks, deviations, lengths)
    worst = Pruned()
    if ranks.is_first:
        everything = np.concatenate(index)
        judged = Judged(everything, np.concatenate(deviation), recordings_of(windows, everything))
        n_dropped = len(kept.dropped)
        worst = choose(judged, recipe, n_windows=kept.n_windows, n_dropped=n_dropped, epoch=epoch)
    return Pruned(
        tell(ranks, worst.index), tell(ranks, worst.deviation), tell(ranks, worst.z), tell(ranks, worst.epoch)
    )


@torch.inference_mode()
def _judge(detector: Detector, windows: TorchWindows, blocks: list[Numbers]) -> Doubles:
    """Return the deviation (n,) of the windows of all blocks, in evaluation mode."""
    network = detector.network
    device = next((value.device for value in network.state_dict().values()), torch.device("cpu"))
    was_training = network.training
    network.eval()
    found = [np.empty(0)]
    for numbers in blocks:
        batch = {name: value.to(device) for name, value in windows.__getitems__(numbers.tolist()).items()}
        found.append(detector.deviation(batch).double().cpu().numpy())
    network.train(was_training)
    return np.concatenate(found)
