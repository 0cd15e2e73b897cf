"""--debug: the whole of a training on a handful of files, in seconds."""

from __future__ import annotations

from edgeasd_train.recipe import Recipe

_FILES = 20
_SECONDS = 20.0
_BATCH = 8


def debug_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe made small in everything that takes time, with a prune between its two epochs.

    Half is held out, so that clips of one window each are enough to calibrate on.
    """
    data, fit = recipe.data, recipe.fit
    end_s = data.start_s + _SECONDS
    small = {
        "data": {
            "max_files": min(data.max_files or _FILES, _FILES),
            "end_s": end_s if data.end_s is None else min(data.end_s, end_s),
            "held_out": 0.5,
        },
        "fit": {"epochs": 2, "min_steps": 1, "batch_size": min(fit.batch_size, _BATCH), "accumulate": 1},
        "prune": {"every_epochs": 1, "rounds": 1},
    }
    parts = {name: getattr(recipe, name).model_copy(update=values) for name, values in small.items()}
    return recipe.model_copy(update=parts)
