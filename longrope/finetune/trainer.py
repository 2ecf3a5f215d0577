"""transformers' Trainer, fed with shards of segments and counting every token once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PrinterCallback, Trainer

from longrope.data.segments import begun_epochs
from longrope.finetune.monitor import Monitor
from longrope.finetune.window_passes import WindowPasses


class SegmentTrainer(Trainer):
    """A Trainer whose batches come ready for this process: its segments, and of each its shard of the sequence.

    The loss of an optimizer step is the sum of the NLL over all its tokens, on whichever process they lie, divided by
    the number of predicted tokens. So it does not depend on how many processes there are and how a sequence is cut.

    Args:
        loader: yields the batches of :class:`longrope.data.segment_dataset.SegmentDataset`.
        gradient_scale: see :func:`longrope.finetune.deepspeed_config.gradient_scale`.
        monitor: shows and records what is logged.
        passes: of the windows that the batches are meant for.
        options: arguments of Trainer.
    """

    def __init__(
        self,
        loader: Iterable[dict[str, Any]],
        gradient_scale: int,
        monitor: Monitor,
        passes: WindowPasses,
        **options: Any,
    ) -> None:
        self._loader = loader
        self._gradient_scale = gradient_scale
        self.stream_state: Any = None
        self._monitor = monitor
        self._passes = passes
        super().__init__(**options)
        self.add_callback(monitor)
        self.remove_callback(PrinterCallback)  # Trainer's own lines
        # The loss is divided by the tokens of the whole step below, so never again by the accumulation steps.
        self.model_accepts_loss_kwargs = True
        # Every process cuts its own shard: the adapter would read one segment a process and exchange them, and
        # could not say which of them a checkpoint has seen.
        self.accelerator.deepspeed_ulysses_dl_adapter = lambda loader, model: loader

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(self._monitor.with_speed(logs), start_time)

    def get_train_dataloader(self) -> Any:
        return self._loader

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        if self.state.global_step >= self.args.max_steps:  # resumed when it was done; Trainer would take one more step
            return [], None
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        items = [batch.pop("num_items") for batch in batches]
        before, self.stream_state = self.stream_state, batches[-1].pop("stream")
        if before is not None and self.is_world_process_zero():
            for line in begun_epochs(before, self.stream_state):
                print(line, flush=True)
        return batches, max(items[0], 1)  # templates may leave a step without a label

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, use_cache=False)
        loss = outputs.loss * self._gradient_scale
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        with self._passes.of(inputs.pop("window")):
            loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        # What is logged is averaged over all processes.
        share: float = self.accelerator.num_processes / self._gradient_scale
        return loss.mul(share)
