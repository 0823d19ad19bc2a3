"""PyTorch's side of ``bottleneck_results.py``: an encoder of MiniLM's sizes, for `Worker`."""

from __future__ import annotations

import os
import sys

import torch
from transformers import BertConfig, BertModel
from workers import serve


def main() -> None:
    """Serves the shapes ``BATCHxLENGTH`` of the command line."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    model = BertModel(BertConfig(num_attention_heads=12, **sizes), add_pooling_layer=False).eval()

    def variant(batch: int, length: int):
        tokens = torch.zeros((batch, length), dtype=torch.long)
        mask = torch.ones((batch, length), dtype=torch.long)

        def call():
            with torch.inference_mode():
                model(tokens, attention_mask=mask)

        return call

    serve({shape: variant(*map(int, shape.split("x"))) for shape in sys.argv[1:]})


if __name__ == "__main__":
    main()
