"""A process of a run in which every shard of a sequence chooses its window by itself."""

from __future__ import annotations

import sys

from longrope.finetune import worker
from longrope.model.attach import Attachment

if __name__ == "__main__":
    Attachment.pin = lambda self, length: None
    worker.train(sys.argv[1], sys.argv[2])
