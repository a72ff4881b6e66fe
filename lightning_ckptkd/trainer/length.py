"""How long a training is and how far it is, in numbers that mean the same for any data and any optimisers.

Lightning's ``estimated_stepping_batches`` is no such number. Of data without a length it is ``max_steps``, so -1 where
there is no limit. It counts batches that end in a step, while ``global_step`` counts the steps of every optimiser, two
a batch with two of them, and none that manual optimisation takes behind Lightning's back.
"""

from __future__ import annotations

import math

from lightning.pytorch import LightningModule, Trainer


def share_done(trainer: Trainer) -> float | None:
    """How much of a training is done before the batch at hand, in [0, 1]; None where no limit is known.

    By batches and epochs, or by steps and ``max_steps``, which Lightning both counts for every optimiser: the limit
    that is nearer. With accumulated gradients, what is between two steps has the share of the first.

    Args:
        trainer: In a training step.
    """
    shares = []
    if trainer.max_steps > 0:
        shares.append(trainer.global_step / trainer.max_steps)
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs is not None and epochs > 0 and 0 < batches < math.inf:
        accumulated = trainer.accumulate_grad_batches
        windows = math.ceil(batches / accumulated)
        done = trainer.current_epoch * windows + trainer.fit_loop.batch_idx // accumulated
        shares.append(done / (windows * epochs))
    return min(max(shares), 1.0) if shares else None


def training_batches(trainer: Trainer) -> float:
    """How many batches a training has in all, as far as is known beforehand; infinity where it is not.

    Args:
        trainer: In a fit.
    """
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    limit = math.inf if epochs is None or epochs < 0 else batches * epochs
    if trainer.max_steps < 0:
        return limit
    module = trainer.lightning_module
    if module is None or module.automatic_optimization:  # None: a step that is taken outside of a fit
        return min(limit, trainer.max_steps * trainer.accumulate_grad_batches)
    return min(limit, trainer.max_steps / max(len(trainer.optimizers), 1))  # if each steps once a batch


def step_number(module: LightningModule) -> int:
    """A number that is another one in each training step that moves weights, and the same when a run is resumed.

    It is Lightning's ``global_step`` or, where steps are taken that Lightning does not count, that of batches before.

    Args:
        module: In a training step, or without a Trainer, where it is 0.
    """
    trainer = module._trainer
    if trainer is None or module.global_step:
        return module.global_step
    return trainer.fit_loop.total_batch_idx // trainer.accumulate_grad_batches
