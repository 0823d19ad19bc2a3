"""PyTorch's side of ``pose_search_speed.py``: the published search, one start after the other."""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from workers import serve


def network(latents: int, size: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Returns encoder, head of mean and of log-variance in one, and decoder."""
    small = size // 4
    encoder = nn.Sequential(
        *(nn.Conv2d(1, 32, 5, 1, 2, bias=False), nn.BatchNorm2d(32), nn.ELU()),
        *(nn.Conv2d(32, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ELU()),
        *(nn.Conv2d(32, 64, 3, 2, 1, bias=False), nn.BatchNorm2d(64), nn.ELU()),
        nn.Conv2d(64, 16, 5, 1, 2),
        nn.Flatten(),
    )
    decoder = nn.Sequential(
        *(nn.Linear(latents, 16 * small**2), nn.Unflatten(1, (16, small, small))),
        *(nn.ConvTranspose2d(16, 32, 4, 1, 2, bias=False), nn.BatchNorm2d(32), nn.ELU()),
        *(nn.ConvTranspose2d(32, 16, 5, 2, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ELU()),
        *(nn.ConvTranspose2d(16, 16, 5, 2, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ELU()),
        *(nn.Conv2d(16, 1, 3, 1, 1), nn.Sigmoid()),
    )
    return encoder, nn.Linear(16 * small**2, 2 * latents), decoder


def main() -> None:
    """Serves one start of the search; the search is as many calls as it has starts."""
    batch, steps, latents, size, threads = map(int, sys.argv[1:6])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    encoder, head, decoder = (part.eval() for part in network(latents, size))
    images = torch.rand(batch, 1, size, size)
    rng = np.random.default_rng(0)

    def loss_of(angle):
        c, s = torch.cos(angle), torch.sin(angle)
        zero = torch.zeros_like(c)
        forth = torch.stack([torch.stack([c, -s, zero], -1), torch.stack([s, c, zero], -1)], -2)
        back = torch.stack([torch.stack([c, s, zero], -1), torch.stack([-s, c, zero], -1)], -2)
        grid = F.affine_grid(forth, images.shape, align_corners=False)
        mean, log_variance = head(encoder(F.grid_sample(images, grid, align_corners=False))).chunk(
            2, 1
        )
        grid = F.affine_grid(back, images.shape, align_corners=False)
        output = F.grid_sample(decoder(mean), grid, align_corners=False)
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
        return ((output - images) ** 2).sum((1, 2, 3)) + kl

    def one_start(frozen):
        for part in (encoder, head, decoder):
            part.requires_grad_(not frozen)
        angle = torch.tensor(rng.uniform(0, 2 * np.pi, batch), dtype=torch.float32)
        angle.requires_grad_()
        optimizer = torch.optim.Adam([angle], lr=0.01)
        best = torch.full((batch,), float("inf"))
        for _ in range(steps):
            optimizer.zero_grad()
            losses = loss_of(angle)
            losses.sum().backward()
            optimizer.step()
            best = torch.minimum(best, losses.detach())
        return best

    # As published the weights collect gradients too; frozen is the loop at its best.
    serve(
        {"as_published": lambda: one_start(False), "frozen_weights": lambda: one_start(True)},
        warmup=1,
    )


if __name__ == "__main__":
    main()
