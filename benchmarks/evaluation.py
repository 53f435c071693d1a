"""All metrics of an evaluation in one pass, beside the loss alone, and scikit-learn's functions one after the other.

    python -m benchmarks.evaluation [--elements N] [--output DIRECTORY]

Results are compared before they are timed.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn import calibration, metrics

import gpubce
from benchmarks import measure
from gpubce.backends.cpu.launch import thread_count


def report(logits, targets, names, **options):
    evaluator = gpubce.Evaluator(from_logits=True, metrics=names, **options)
    evaluator.update(logits, targets)
    return evaluator.report()


def with_scikit_learn(logits, targets) -> dict[str, float]:
    """The same figures where scikit-learn has them."""
    p = 1.0 / (1.0 + np.exp(-logits))
    chosen = p >= 0.5
    calibration.calibration_curve(targets, p, n_bins=15)
    return {
        "loss": metrics.log_loss(targets, p),
        "brier_score": metrics.brier_score_loss(targets, p),
        "accuracy": metrics.accuracy_score(targets, chosen),
        "precision": metrics.precision_score(targets, chosen),
        "recall": metrics.recall_score(targets, chosen),
        "f1": metrics.f1_score(targets, chosen),
        "roc_auc": metrics.roc_auc_score(targets, p),
        "average_precision": metrics.average_precision_score(targets, p),
    }


def compare(elements: int, rounds: int) -> tuple[dict, float]:
    """The median seconds of each row, and those of scikit-learn's one round."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1.0, 2.0, elements).astype(np.float32)
    targets = (rng.random(elements) < 1.0 / (1.0 + np.exp(-logits))).astype(np.uint8)
    ours = report(logits, targets, "all")
    loss = gpubce.BinaryCrossEntropy(from_logits=True)
    theirs: dict[str, float] = {}
    slow = measure.seconds({"scikit-learn": lambda: theirs.update(with_scikit_learn(logits, targets))}, 1)
    for name, value in theirs.items():
        bound = getattr(ours, f"{name}_bound", None) or 0.0
        if abs(getattr(ours, name) - value) > bound + 1e-6:
            raise SystemExit(f"{name} is {getattr(ours, name)} here and {value} in scikit-learn")
    functions = {
        "loss": lambda: loss(logits, targets),
        "Evaluator, the loss alone": lambda: report(logits, targets, "loss"),
        "Evaluator, by default": lambda: report(logits, targets, None),
        "Evaluator, all metrics": lambda: report(logits, targets, "all"),
    }
    return measure.seconds(functions, rounds), slow["scikit-learn"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the results as JSON into this directory")
    arguments = parser.parse_args()
    times, slow = compare(arguments.elements, arguments.rounds)
    rows = [("", "ms", "of the loss", "scikit-learn / gpubce")]
    rows += [
        (name, f"{1e3 * time:.1f}", f"{time / times['loss']:.2f}", f"{slow / time:.0f}" if "all" in name else "")
        for name, time in times.items()
    ]
    rows.append(("scikit-learn, eight of the metrics", f"{1e3 * slow:.0f}", f"{slow / times['loss']:.0f}", ""))
    print(f"{arguments.elements:,} float32 logits and uint8 targets, {thread_count()} threads")
    print(measure.table(rows))
    if arguments.output:
        results = {"elements": arguments.elements, "threads": thread_count(), "seconds": times | {"scikit-learn": slow}}
        measure.write(results, arguments.output / "evaluation.json")


if __name__ == "__main__":
    main()
