"""Masks of pictures, shape (batch, classes, height, width): which pixels belong to which digit?

Scenes of 24 x 24 pixels are made of scikit-learn's handwritten digits 0, 1 and 2, which may overlap: each class has its
own mask. Pixels of faint ink belong to nobody and are marked 255, which ``ignore_index`` leaves out. Most pixels of a
mask are empty, so ``pos_weight`` has one number for each class; ``label_axis=1`` says where the classes are, and
nothing is moved or copied for it.

    python examples/segmentation.py
"""

import argparse
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits

import gpubce
from gpubce.adapters.torch import BCEWithLogitsLoss

CLASSES, SIZE, NOBODY = 3, 24, 255


def scenes(count: int, digits: np.ndarray, labels: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (count, 1, size, size) and uint8 masks (count, classes, size, size)."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, 1, SIZE, SIZE), np.float32)
    masks = np.zeros((count, CLASSES, SIZE, SIZE), np.uint8)
    for scene in range(count):
        for digit in rng.choice(len(digits), 4):
            top, left = rng.integers(0, SIZE - 8, 2)
            place = np.s_[top : top + 8, left : left + 8]
            ink = digits[digit]
            pictures[scene, 0][place] = np.maximum(pictures[scene, 0][place], ink / 16)
            mask = masks[scene, labels[digit]][place]
            mask[(ink > 4) & (ink <= 8) & (mask == 0)] = NOBODY
            mask[ink > 8] = 1
    return torch.tensor(pictures), torch.tensor(masks)


def main() -> None:
    """Train a small network on 256 scenes, and report each class on 64 others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    data = load_digits(n_class=CLASSES)
    pictures, masks = scenes(256, data.images[:400], data.target[:400], seed=0)
    others, truth = scenes(64, data.images[400:], data.target[400:], seed=1)

    positives = (masks == 1).sum((0, 2, 3))
    negatives = (masks == 0).sum((0, 2, 3))
    weights = (negatives / positives).sqrt().tolist()
    print("pos_weight " + " ".join(f"{weight:.2f}" for weight in weights))

    layers, channels = [], (1, 16, 16, 16)
    for before, after in pairwise(channels):
        layers += [torch.nn.Conv2d(before, after, 5, padding=2), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Conv2d(16, CLASSES, 1))
    options = {"ignore_index": NOBODY, "label_axis": 1}
    loss = BCEWithLogitsLoss(pos_weight=weights, **options)  # A tensor would have to have the shape (classes, 1, 1).
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for epoch in range(epochs):
        total = 0.0
        for batch in range(0, len(pictures), 32):
            optimizer.zero_grad()
            value = loss(model(pictures[batch : batch + 32]), masks[batch : batch + 32])
            value.backward()
            optimizer.step()
            total += value.item() / 8
        if epoch % 10 == 0 or epoch == epochs - 1:
            print(f"epoch {epoch:2}  loss {total:.4f}")

    with torch.no_grad():
        logits = model(others)
    by_class = gpubce.BinaryCrossEntropy(from_logits=True, axis=(0, 2, 3), **options)
    empty = torch.full_like(logits, float(torch.log(positives.sum() / negatives.sum())))
    for name, predictions in (("the network", logits), ("the share of ink everywhere", empty)):
        print(f"{name}: " + " ".join(f"{value:.4f}" for value in by_class(predictions, truth).tolist()))


if __name__ == "__main__":
    main()
