"""A trainer of one's own: logistic regression by gradient descent with momentum, in NumPy or CuPy.

The data are scikit-learn's 569 breast cancer patients. Each step is one product of matrices for the logits, one pass
for loss and gradient, in place over the logits, and one product for the gradient of the weights. With
``--library cupy`` the same lines run on a GPU, and nothing waits for it but the printing.

    python examples/logistic_regression.py
"""

import argparse
import importlib

from sklearn.datasets import load_breast_cancer

from gpubce import BinaryCrossEntropy


def main() -> None:
    """Train on two thirds, and give the loss on the rest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", choices=("numpy", "cupy"), default="numpy")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    library = importlib.import_module(arguments.library)
    inputs, targets = load_breast_cancer(return_X_y=True)
    inputs = (inputs - inputs[:380].mean(0)) / inputs[:380].std(0)
    inputs, targets = library.asarray(inputs, "float32"), library.asarray(targets, "uint8")
    train, train_targets, test, test_targets = inputs[:380], targets[:380], inputs[380:], targets[380:]

    loss = BinaryCrossEntropy(from_logits=True)
    weights, speed = library.zeros(inputs.shape[1], "float32"), library.zeros(inputs.shape[1], "float32")
    for step in range(arguments.steps):
        logits = train @ weights
        value, gradient = loss.value_and_grad(logits, train_targets, grad_out=logits)
        speed = 0.9 * speed - 0.1 * (train.T @ gradient)
        weights = weights + speed
        if step % 50 == 0 or step == arguments.steps - 1:
            print(f"step {step:3}  loss {float(value):.4f}")
    print(f"test  loss {float(loss(test @ weights, test_targets)):.4f}")


if __name__ == "__main__":
    main()
