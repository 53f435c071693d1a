"""One positive in ten: what ``pos_weight`` buys, and what it costs.

The question to scikit-learn's handwritten digits is "is this an eight?". A logistic regression in PyTorch is trained
twice, plainly and with the ``pos_weight`` that balances the classes. The second finds more of the eights at the
threshold 0.5, and its probabilities are too high: pos_weight w adds log w to the logits of a model that fits perfectly.
Subtracting that again gives back most of the calibration. gpubce's report shows all three.

    python examples/imbalance.py
"""

import argparse
import math

import torch
from sklearn.datasets import load_digits

from gpubce import Evaluator
from gpubce.adapters.torch import BCEWithLogitsLoss


def train(pictures: torch.Tensor, eights: torch.Tensor, pos_weight: float, steps: int) -> torch.nn.Module:
    """A logistic regression."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 1)
    loss = BCEWithLogitsLoss(pos_weight=pos_weight)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=steps)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = 0.003 * model.weight.square().sum()
        value = loss(model(pictures)[:, 0], eights) + penalty
        value.backward()
        return value

    optimizer.step(closure)
    return model


def main() -> None:
    """Train on two thirds, report on the rest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    steps = parser.parse_args().steps
    digits = load_digits()
    pictures = torch.tensor(digits.data / 16, dtype=torch.float32)
    eights = torch.tensor(digits.target == 8)  # Bool: no conversion is needed.
    train_part, test_part = slice(0, 1200), slice(1200, None)

    balancing = float((~eights[train_part]).sum() / eights[train_part].sum())
    print(f"pos_weight {balancing:.2f} balances the classes")
    plain = train(pictures[train_part], eights[train_part], 1.0, steps)
    weighted = train(pictures[train_part], eights[train_part], balancing, steps)
    with torch.no_grad():
        logits = {
            "plain": plain(pictures[test_part])[:, 0],
            "weighted": weighted(pictures[test_part])[:, 0],
            "weighted, less its log": weighted(pictures[test_part])[:, 0] - math.log(balancing),
        }
    for name, predictions in logits.items():
        evaluator = Evaluator(from_logits=True, metrics="all")
        evaluator.update(predictions, eights[test_part])
        report = evaluator.report()
        print(
            f"{name:22}  loss {report.loss:.4f}  recall {report.recall:.3f}  precision {report.precision:.3f}  "
            f"calibration {report.calibration_ratio:.2f}"
        )


if __name__ == "__main__":
    main()
