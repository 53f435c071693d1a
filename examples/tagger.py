"""Several labels at once, in PyTorch: what is true of the digit in this picture?

The data are scikit-learn's 1,797 handwritten digits. Each has four tags: even, prime, has a closed loop, less than
five; any number of them may hold. A tenth of the tags are withheld, as if nobody had looked (-1), and ``ignore_index``
leaves them out of the loss and its mean. Targets stay int8: no conversion. The loss and the report are gpubce's.

    python examples/tagger.py
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits

from gpubce import Evaluator
from gpubce.adapters.torch import BCEWithLogitsLoss

TAGS = {"even": {0, 2, 4, 6, 8}, "prime": {2, 3, 5, 7}, "loop": {0, 6, 8, 9}, "below five": {0, 1, 2, 3, 4}}
UNKNOWN = -1


def load() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, tags of which some are unknown, and all tags."""
    digits = load_digits()
    known = np.stack([np.isin(digits.target, [*tag]) for tag in TAGS.values()], axis=1).astype(np.int8)
    withheld = np.random.default_rng(0).random(known.shape) < 0.1
    seen = np.where(withheld, np.int8(UNKNOWN), known)
    return torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(seen), torch.tensor(known)


def main() -> None:
    """Train on three quarters, report on the rest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    pictures, seen, known = load()
    train, test = slice(0, 1350), slice(1350, None)

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, len(TAGS)))
    loss = BCEWithLogitsLoss(ignore_index=UNKNOWN)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for epoch in range(epochs):
        optimizer.zero_grad()
        value = loss(model(pictures[train]), seen[train])
        value.backward()
        optimizer.step()
        if epoch % 20 == 0 or epoch == epochs - 1:
            print(f"epoch {epoch:3}  loss {value.item():.4f}")

    evaluator = Evaluator(from_logits=True, metrics="all", per_label=True)
    evaluator.update(model(pictures[test]).detach(), known[test])
    report = evaluator.report()
    for tag, label in zip(TAGS, report.labels, strict=True):
        print(f"{tag:10}  loss {label.loss:.4f}  accuracy {label.accuracy:.3f}  ROC AUC {label.roc_auc:.3f}")


if __name__ == "__main__":
    main()
