"""XGBoost with the focal loss, which spends less on what is easy.

The question to scikit-learn's handwritten digits is "is this an eight?", one in ten. The same 60 trees are grown with
XGBoost's own objective and with the focal loss (gamma = 2); the hessian is the true second derivative. Focal scores are
no log-odds: the loss of the figures below is plain cross-entropy, in which they lose, and the ranking is as good.

    python examples/focal_boosting.py
"""

import argparse

import numpy as np
import xgboost
from sklearn.datasets import load_digits

from gpubce import Evaluator
from gpubce.adapters.xgboost import Metric, Objective


def main() -> None:
    """Train on two thirds, report on the rest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    rounds = parser.parse_args().rounds
    digits = load_digits()
    eights = (digits.target == 8).astype(np.float32)
    train = xgboost.DMatrix(digits.data[:1200], eights[:1200])
    test = xgboost.DMatrix(digits.data[1200:], eights[1200:])
    trees = {"max_depth": 3, "eta": 0.2, "nthread": 1, "disable_default_eval_metric": True}

    own = xgboost.train({**trees, "objective": "binary:logistic"}, train, rounds)
    focal = Objective(gamma=2.0)
    history: dict = {}
    start = {"base_score": focal.initial_score(eights[:1200])}
    model = xgboost.train(
        {**trees, **start},
        train,
        rounds,
        obj=focal,
        custom_metric=Metric(gamma=2.0),
        evals=[(train, "train")],
        evals_result=history,
        verbose_eval=False,
    )
    losses = history["train"]["logloss"]
    print(f"focal loss in training: {losses[0]:.4f} after 1 round, {losses[-1]:.4f} after {rounds}")
    for name, booster in (("binary:logistic", own), ("focal", model)):
        evaluator = Evaluator(from_logits=True, metrics="all")
        evaluator.update(booster.predict(test, output_margin=True), eights[1200:])
        report = evaluator.report()
        print(
            f"{name:15}  loss {report.loss:.4f}  average precision {report.average_precision:.3f}  "
            f"calibration {report.calibration_ratio:.2f}"
        )


if __name__ == "__main__":
    main()
